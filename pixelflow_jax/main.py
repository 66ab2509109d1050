"""Train, sample or evaluate: python -m pixelflow_jax.main --config=... --workdir=...

  train     go on from WORKDIR's newest checkpoint, or begin (the default)
  sample    images from WORKDIR's newest checkpoint, or from --weights, to
            WORKDIR/samples
  evaluate  loss of WORKDIR's newest checkpoint on held-out images, to
            WORKDIR/evaluations
  export    a folder to publish, --out, from WORKDIR's newest checkpoint: weights,
            config and model card

Any field of the config can be set on the command line: --config.steps=1000
--config.optimizer.lr=2e-4. Configs go by their path or, those of the package, by name,
and have variants: --config=pixnerd:l16_256. Examples:

  python -m pixelflow_jax.main --config=emoji --workdir=runs/emoji
  python -m pixelflow_jax.main --workdir=runs/emoji --mode=sample --classes=flags,3 \\
      --count=8 --solver=heun --sample_steps=50 --guidance=2 --trajectory
  python -m pixelflow_jax.main --workdir=runs/emoji --mode=sample \\
      --weights=emoji
  python -m pixelflow_jax.main --workdir=runs/text --mode=sample --count=4 \\
      --prompt="a red apple" --prompt="a cat, asleep" --height=96 --width=64
  python -m pixelflow_jax.main --workdir=runs/emoji --mode=export --out=emoji \\
      --ema=0.995 --samples
"""

import errno
import functools
import json
import os
import pathlib
import sys
from typing import NoReturn

import jax
from absl import app, flags

from pixelflow_jax import backend, build, config_overrides
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.config_files import EXAMPLE, load_config
from pixelflow_jax.errors import ConfigError, UserError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validate_data, validated

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
)
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Config: the path of a config file, or the name of one that comes with the "
    "package, with ':variant' behind it for a variant; or a run's config.json. "
    "Sampling and evaluation take the checkpoint's own config.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "sample", "evaluate", "export"], "What to do."
)
WEIGHTS = flags.DEFINE_string(
    "weights",
    "",
    "Take this folder, .safetensors file or organisation/name of the Hugging Face Hub "
    "instead of WORKDIR's checkpoint.",
)
EMA = flags.DEFINE_string(
    "ema", "", "Average to take, by its decay; 'raw' for none. Default: the first."
)
TEXT_ENCODER = flags.DEFINE_string(
    "text_encoder", "", "Weights of the text encoder. Default: the config's."
)
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "Folder of its tokenizer. Default: that of the config's weights."
)
OUT = flags.DEFINE_string("out", None, "Folder to export to.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", published.DTYPES, "Type of exported weights."
)
SAMPLES = flags.DEFINE_bool(
    "samples", False, "Draw a row of --classes or --prompt for the model card."
)


def run_training(config: Experiment, workdir: pathlib.Path) -> None:
    """Train `config` in `workdir` to its end, or to the next signal."""
    start = functools.partial(published.initial, config) if config.init_from else None
    run = build.training_run(validated(config), start)
    _writable(workdir)
    backend.keep_programs()
    train(run, workdir)
    if jax.process_index() == 0:
        print(f"Checkpoints, curves and previews are in {workdir}.")


def run_evaluation(pipeline: Pipeline, workdir: pathlib.Path) -> dict[str, float]:
    """Loss on held-out images, printed and written to WORKDIR/evaluations/STEP.json."""
    _writable(workdir)
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


def run_export(pipeline: Pipeline, out: str | None) -> None:
    """Write the published folder `out`, and say where it is."""
    if not out:
        raise ConfigError("--mode=export needs --out, the folder to write.")
    folder = pathlib.Path(out)
    _writable(folder, "out")
    classes = pipeline.class_names
    spread = classes[:: max(1, len(classes) // 4)][:4]
    asked = draw.PROMPTS.value if pipeline.reads_text else draw.CLASSES.value
    samples = (asked or spread) if SAMPLES.value else ()
    if SAMPLES.value and not samples:
        raise ConfigError(
            "--samples needs --classes, or --prompt for a model of text: what to draw "
            "for the card."
        )
    pipeline.save_pretrained(folder, dtype=DTYPE.value, samples=samples)
    print(f"Written to {folder}: {pipeline.origin or 'weights'}, {DTYPE.value}.")


def _writable(folder: pathlib.Path, flag: str = "workdir") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise ConfigError(
            f"Cannot write to the --{flag} {folder} ({error.strerror}): name a folder "
            "that this user may write to."
        ) from error


def _dispatch(workdir: pathlib.Path, changes: list[str]) -> None:
    if MODE.value == "train":
        if CONFIG.value is None:
            raise ConfigError(f"Training needs --config, such as {EXAMPLE}.")
        run_training(load_config(CONFIG.value, changes), workdir)
        return
    pipeline = Pipeline.from_pretrained(
        WEIGHTS.value or workdir,
        EMA.value,
        text_encoder=TEXT_ENCODER.value,
        tokenizer=TOKENIZER.value,
    )
    if MODE.value == "evaluate":
        run_evaluation(pipeline, workdir)
        return
    if MODE.value == "export":
        run_export(pipeline, OUT.value)
        return
    _writable(workdir)
    for kind, path in draw.run_sampling(pipeline, workdir, EMA.value).items():
        print(f"{kind:>10}: {path}")


def main(argv: list[str]) -> None:
    """Entry point; exits with 1 and one paragraph on errors a user can mend."""
    changes, (_, *unknown) = config_overrides.split(argv)
    if unknown:
        _give_up(f"Unknown arguments: {' '.join(unknown)}. Flags begin with --.")
    backend.configure()
    workdir = pathlib.Path(WORKDIR.value)
    try:
        _dispatch(workdir, changes)
    except UserError as error:
        _give_up(f"{type(error).__name__}: {error}")
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _give_up(
            f"Writing {error.filename or f'to {workdir}'} failed: {error.strerror}. "
            "Mend that and give the same command again: training goes on from the last "
            "checkpoint."
        )
    except KeyboardInterrupt:
        _give_up("Interrupted.", INTERRUPTED)


def _give_up(paragraph: str, code: int = 1) -> NoReturn:
    print(f"\n{paragraph}", file=sys.stderr)
    sys.exit(code)


def parse_flags(argv: list[str]) -> list[str]:
    """What is left of `argv` besides flags, those that set fields of the config last.

    Exits with 1 and a paragraph on errors.
    """
    changes, others = config_overrides.split(argv)
    try:
        return [*flags.FLAGS(others), *changes]
    except flags.Error as error:
        _give_up(f"{error}{'' if str(error).endswith('.') else '.'} See --help.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
