"""Train, sample, evaluate or export: `pixelflow VERB`, or this with --mode=VERB.

`python -m pixelflow_jax.main --mode=sample --help` is `pixelflow sample --help`.
Without a mode it trains.
"""

import dataclasses
import pathlib
import sys
import typing

from absl import app, flags

from pixelflow_jax import (
    backend,
    config_overrides,
    distributed,
    peers,
    remote,
    remote_runs,
    validate,
)
from pixelflow_jax.cli import (
    arguments,
    blame,
    doctor,
    estimate,
    evaluate,
    export,
    extending,
    plan,
    processes,
    shared,
    train,
    verbs,
)
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.cli.terminal import accept_every_text, give_up, refusing
from pixelflow_jax.config_files import EXAMPLE, load_config
from pixelflow_jax.errors import STOPPED, ConfigError, PipelineError
from pixelflow_jax.paths import local_path
from pixelflow_jax.pretrained.pipeline import Pipeline

MODE = flags.DEFINE_enum("mode", "train", list(verbs.VERBS), "What to do.")


def _train(changes: list[str]) -> None:
    name, workdir = shared.CONFIG.value, shared.WORKDIR.value
    if name is None:
        raise ConfigError(
            f"Training needs --config, such as {EXAMPLE}"
            + ("" if workdir else ", and --workdir, the folder to train in")
            + "."
        )
    workdir = shared.folder_of_run(workdir, "train")
    config = load_config(name, changes)
    if any(change.startswith("--config.steps") for change in changes):
        config = extending.shrunk(config)
    processes.agree(config)
    extend = typing.cast(extending.Kind | None, train.EXTEND.value)
    yes, profile = shared.YES.value, train.PROFILE.value or ""
    if not train.run_training(config, workdir, extend, yes, profile):
        sys.exit(STOPPED)


def _sample(changes: list[str]) -> None:
    weights = shared.WEIGHTS.value
    out = (
        local_path(shared.OUT.value, "--out", ConfigError) if shared.OUT.value else None
    )
    workdir = pathlib.Path()
    if weights is None or out is None:  # one of the two is asked of the run
        workdir = shared.folder_of_run(shared.WORKDIR.value, "sample")
    pipeline = _pipeline(workdir, changes)
    folder = workdir if out is None else out
    _estimate(pipeline, folder)
    shared.writable(folder, "workdir" if out is None else "out")
    try:
        paths = draw.run_sampling(pipeline, workdir, shared.EMA.value, out)
    except PipelineError as error:
        raise PipelineError(blame.with_flags(str(error))) from error
    for kind, path in paths.items() if distributed.is_main() else ():
        print(f"{kind:>10}: {path}")


def _estimate(pipeline: Pipeline, folder: pathlib.Path) -> None:
    """Refuse to draw what cannot be drawn, or will take too long."""
    asked = draw.PROMPTS.value or draw.CLASSES.value or pipeline.class_names
    trained = pipeline.config.data.image_size
    height, width = draw.HEIGHT.value or trained, draw.WIDTH.value or trained
    config = dataclasses.replace(
        pipeline.config, sampling=draw.changed(pipeline.config.sampling)
    )
    count = draw.COUNT.value * max(1, len(asked))
    whole = estimate.of_sampling(config, count, height, width)
    whole.check(shared.YES.value, folder)


def _evaluate(changes: list[str]) -> None:
    out = pathlib.Path(shared.OUT.value).expanduser() if shared.OUT.value else None
    workdir, apart = pathlib.Path(), shared.WEIGHTS.value is not None
    if evaluate.needs_workdir(apart and out is not None):
        workdir = shared.folder_of_run(shared.WORKDIR.value, "evaluate")
    name = shared.WEIGHTS.value
    weights = None if name is None else shared.chosen_weights(name)
    code = evaluate.run(lambda: _pipeline(workdir, changes), workdir, out, weights)
    if code:
        sys.exit(code)


def _export(changes: list[str]) -> None:
    if shared.OUT.value is None:
        raise ConfigError("`pixelflow export` needs --out, the folder to write.")
    local_path(shared.OUT.value, "--out", ConfigError)  # before weights are read
    workdir = pathlib.Path()
    if shared.WEIGHTS.value is None:
        workdir = shared.folder_of_run(shared.WORKDIR.value, "export")
    export.run_export(_pipeline(workdir, changes), shared.OUT.value)


def _doctor(changes: list[str]) -> None:
    config = load_config(shared.CONFIG.value or doctor.DEFAULT, changes)
    processes.agree(config)
    folder = shared.WORKDIR.value
    place = None if folder is None else local_path(folder, "--workdir", ConfigError)
    if code := doctor.run_doctor(config, place, doctor.ONLY.value):
        sys.exit(code)


def _plan(changes: list[str]) -> None:
    if shared.CONFIG.value is None:
        raise ConfigError(
            f"A plan needs --config, such as {EXAMPLE}. `pixelflow config list` lists "
            "those that come with the package."
        )
    plan.run_plan(load_config(shared.CONFIG.value, changes))


RUNS = {
    "train": _train,
    "config": _plan,
    "doctor": _doctor,
    "sample": _sample,
    "evaluate": _evaluate,
    "export": _export,
}


def _pipeline(workdir: pathlib.Path, changes: list[str]) -> Pipeline:
    """The weights that the flags name, with the fields of their config that are set."""
    name = shared.WEIGHTS.value
    pipeline = Pipeline.from_pretrained(
        workdir if name is None else shared.chosen_weights(name),
        shared.EMA.value,
        text_encoder=shared.TEXT_ENCODER.value,
        tokenizer=shared.TOKENIZER.value,
    )
    if changes:
        config = config_overrides.apply(pipeline.config, changes)
        validate.validate_settings(config)
        pipeline = dataclasses.replace(pipeline, config=config)
    processes.agree(pipeline.config)
    return pipeline


def main(argv: list[str]) -> None:
    """Entry point; ends with a paragraph and its code on errors a user can mend."""
    changes, _ = config_overrides.split(argv)
    backend.configure()
    folder = shared.OUT.value or shared.WORKDIR.value
    with distributed.leaving(), refusing(folder), peers.telling():
        if shared.CACHE_DIR.value:
            remote.use_cache(shared.CACHE_DIR.value)
        processes.start(MODE.value)  # before anything asks for devices
        run = remote_runs.folder(shared.WORKDIR.value, "--workdir", ConfigError)
        mine = run if distributed.is_main() else None
        with remote_runs.copied(mine, alone=MODE.value == "train"):
            RUNS[MODE.value](changes)


def parse_flags(argv: list[str]) -> list[str]:
    """The program's name, and those arguments that set fields of the config.

    Exits with 1 and a paragraph on errors, and with 0 after a help.
    """
    accept_every_text()
    program, *given = argv
    verb, rest = _mode(given)
    if verb is None and arguments.asks_for_help(rest):
        print(verbs.overview())
        sys.exit(0)
    line = arguments.read(rest, verb or "train")
    return [program, *line.changes]


def _mode(given: list[str]) -> tuple[str | None, list[str]]:
    """The verb that --mode names, and the other arguments."""
    verb, rest, waiting = None, [], False
    for argument in given:
        name, equals, value = argument.partition("=")
        if waiting:
            verb, waiting = argument, False
        elif name in ("--mode", "-mode"):
            verb, waiting = value, not equals
        else:
            rest.append(argument)
    if verb is not None and verb not in verbs.VERBS:
        known = ", ".join(verbs.VERBS)
        give_up(f"--mode={verb} is none: choose from {known}. See --help.")
    return verb, rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
