"""Train, sample, evaluate or export: `pixelflow VERB`, or this with --mode=VERB.

`python -m pixelflow_jax.main --mode=sample --help` is `pixelflow sample --help`.
Without a mode it trains.
"""

import dataclasses
import errno
import json
import pathlib
import sys

import jax
from absl import app, flags

from pixelflow_jax import backend, build, config_overrides
from pixelflow_jax.cli import (
    arguments,
    blame,
    estimate,
    export,
    extending,
    shared,
    train,
    verbs,
)
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.cli.terminal import accept_every_text, give_up
from pixelflow_jax.config_files import EXAMPLE, load_config
from pixelflow_jax.errors import ConfigError, PipelineError, UserError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.validate import validate_data

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

MODE = flags.DEFINE_enum("mode", "train", list(verbs.VERBS), "What to do.")


def run_evaluation(pipeline: Pipeline, workdir: pathlib.Path) -> dict[str, float]:
    """Loss on held-out images, printed and written to WORKDIR/evaluations/STEP.json."""
    shared.writable(workdir)
    config = pipeline.config
    shards = jax.device_count()
    batch = -(-min(config.batch_size, 256) // shards) * shards
    validate_data(config)
    result = build.heldout_loss(config, pipeline.params, batch, pipeline.constants)
    folder = workdir / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pipeline.step:08d}.json"
    path.write_text(json.dumps({"step": pipeline.step, **result}, indent=1))
    for key, value in result.items():
        print(f"{key:>14}  {value:.5f}")
    print(f"Written to {path}.")
    return result


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
    train.run_training(config, workdir, train.EXTEND.value, shared.YES.value)


def _sample(changes: list[str]) -> None:
    weights = shared.WEIGHTS.value
    out = pathlib.Path(shared.OUT.value).expanduser() if shared.OUT.value else None
    workdir = pathlib.Path()
    if weights is None or out is None:  # one of the two is asked of the run
        workdir = shared.folder_of_run(shared.WORKDIR.value, "sample")
    pipeline = _pipeline(workdir, changes)
    _estimate(pipeline, workdir if out is None else out)
    shared.writable(*((workdir,) if out is None else (out, "out")))
    try:
        paths = draw.run_sampling(pipeline, workdir, shared.EMA.value, out)
    except PipelineError as error:
        raise PipelineError(blame.with_flags(str(error))) from error
    for kind, path in paths.items():
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
    workdir = shared.folder_of_run(shared.WORKDIR.value, "evaluate")
    run_evaluation(_pipeline(workdir, changes), workdir)


def _export(changes: list[str]) -> None:
    if shared.OUT.value is None:
        raise ConfigError("`pixelflow export` needs --out, the folder to write.")
    workdir = pathlib.Path()
    if shared.WEIGHTS.value is None:
        workdir = shared.folder_of_run(shared.WORKDIR.value, "export")
    export.run_export(_pipeline(workdir, changes), shared.OUT.value)


RUNS = {"train": _train, "sample": _sample, "evaluate": _evaluate, "export": _export}


def _pipeline(workdir: pathlib.Path, changes: list[str]) -> Pipeline:
    """The weights that the flags name, with the fields of their config that are set."""
    name = shared.WEIGHTS.value
    pipeline = Pipeline.from_pretrained(
        workdir if name is None else shared.chosen_weights(name),
        shared.EMA.value,
        text_encoder=shared.TEXT_ENCODER.value,
        tokenizer=shared.TOKENIZER.value,
    )
    if not changes:
        return pipeline
    config = config_overrides.apply(pipeline.config, changes)
    return dataclasses.replace(pipeline, config=config)


def main(argv: list[str]) -> None:
    """Entry point; exits with 1 and one paragraph on errors a user can mend."""
    changes, _ = config_overrides.split(argv)
    backend.configure()
    try:
        RUNS[MODE.value](changes)
    except UserError as error:
        give_up(f"{type(error).__name__}: {error}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        folder = shared.OUT.value or shared.WORKDIR.value
        give_up(
            f"Writing {error.filename or f'to {folder}'} failed: {error.strerror}. "
            "Mend that and give the same command again: training goes on from the last "
            "checkpoint."
        )
    except KeyboardInterrupt:
        give_up("Interrupted.", INTERRUPTED)


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
