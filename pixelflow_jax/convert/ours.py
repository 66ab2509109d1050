"""Our own weights: a folder of config.json and safetensors, a file, or a run."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

from flax import traverse_util

from pixelflow_jax.convert.errors import ConvertError
from pixelflow_jax.convert.variants import shapes_of
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.base import misfitting
from pixelflow_jax.pipeline import METADATA, Pipeline
from pixelflow_jax.weightfiles import reader, safe
from pixelflow_jax.weightfiles.stored import Stored

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PARTIAL = ".partial"
FORMAT, VERSION = "pixelflow_jax", 1


@dataclasses.dataclass(frozen=True)
class Ours:
    """A model of ours on disk: its config, its parameters by path, its step."""

    config: Experiment
    tensors: Mapping[str, Stored]
    step: int


def is_ours(path: pathlib.Path) -> bool:
    """Whether something at a path is one of our formats."""
    if (path / "checkpoints").is_dir():
        return True
    try:
        if (path / CONFIG).is_file():
            return json.loads((path / CONFIG).read_text("utf-8"))["format"] == FORMAT
        return path.suffix == ".safetensors" and METADATA in safe.metadata(path)
    except Exception:  # whoever opens it next says what is wrong
        return False


def opened(path: pathlib.Path, ema: str = "") -> Ours:
    """Our weights at a path; of a run those of the average `ema`.

    Raises ConvertError for other files, and weights that do not fit their config;
    WeightFileError for damaged files, PipelineError and ConfigError for configs.
    """
    if (path / "checkpoints").is_dir():
        pipeline = Pipeline.from_run(path, ema)
        flat = traverse_util.flatten_dict(pipeline.params, sep="/")
        tensors = {name: Stored.of(array) for name, array in flat.items()}
        return Ours(pipeline.config, tensors, pipeline.step)
    if ema:
        raise ConvertError(
            f"{path} holds one set of weights: only a run's workdir has averages to "
            "choose from. Leave --ema away."
        )
    about = _about(path)
    config, tensors = Experiment.from_dict(about["config"]), reader.tensors(path)
    if problems := misfitting(dict(tensors), shapes_of(config.model)):
        raise ConvertError(
            f"{path} does not hold the weights of the model its own config describes:"
            + "".join(f"\n  {problem}" for problem in problems)
        )
    return Ours(config, tensors, about["step"])


def _about(path: pathlib.Path) -> dict:
    """What our weights say of themselves."""
    if path.is_dir() and (path / CONFIG).is_file():
        about = json.loads((path / CONFIG).read_text("utf-8"))
    elif path.suffix == ".safetensors" and path.is_file():
        reader.opened(path)  # says what is wrong with a damaged file
        about = json.loads(safe.metadata(path).get(METADATA, "{}"))
    else:
        about = {}
    if "config" not in about:
        raise ConvertError(
            f"{path} is no model of ours: give a folder with {CONFIG} and {WEIGHTS}, a "
            ".safetensors file written by Pipeline.save, or a training run's workdir."
        )
    if about.get("version", VERSION) != VERSION:
        raise ConvertError(
            f"{path} is of version {about['version']} of the format; this pixelflow_jax"
            f" knows version {VERSION}: install a newer one."
        )
    return about


def write(
    folder: pathlib.Path,
    tensors: Mapping[str, Stored],
    about: Mapping[str, object],
    *,
    overwrite: bool,
    advance: Callable[[int], object],
) -> None:
    """Write a folder of config.json and weights, as a whole or not at all.

    `about` is what config.json says besides the format. Raises ConvertError where
    there is something already.
    """
    if folder.exists() and not folder.is_dir():
        raise ConvertError(f"{folder} is a file: name a folder to write to.")
    taken = folder.is_dir() and any(p.name != PARTIAL for p in folder.iterdir())
    if taken and not overwrite:
        raise ConvertError(
            f"{folder} is not empty: give another folder, or --overwrite to replace "
            f"its {CONFIG} and {WEIGHTS}."
        )
    with _appearing(folder) as partial:
        safe.write(partial / WEIGHTS, tensors, {"format": FORMAT}, advance)
        text = json.dumps({"format": FORMAT, "version": VERSION, **about}, indent=1)
        (partial / CONFIG).write_text(text, "utf-8")


@contextlib.contextmanager
def _appearing(folder: pathlib.Path):
    """A partial folder, whose files are moved to `folder` where the block succeeds."""
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
        new = []
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in new:
            path.rmdir()
