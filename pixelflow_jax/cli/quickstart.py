"""Train a tiny PixNerd on emoji, then look: the three-minute tour behind `make demo`.

Draws two grids, a row a class: from the model just trained, and from the one that comes
with the package. Run it again and it goes on where it stopped.
"""

import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np

from pixelflow_jax import backend, resources
from pixelflow_jax.cli import extending
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.terminal import accept_every_text, refusing
from pixelflow_jax.cli.train import run_training
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.errors import STOPPED, ConfigError, WeightsError
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.features import FEATURES, Extractor
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.evaluation.statistics import frechet_distance
from pixelflow_jax.paths import local_path
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.teachers import efficientnet

SHIPPED = resources.folder("assets") / "emoji.safetensors"
SCORED, COMPARED = 24, 192  # samples of each model, and training images
SHOWN = ("Smileys & Emotion", "People & Body", "Food & Drink", "Flags")  # of its nine

NEXT = """
Look at these pictures:
  just trained, in {minutes:.1f} minutes:  {fresh}
  the shipped model:             {shipped}

{scores}

Try next:
  {command} sample --workdir={workdir} --trajectory
  {command} sample --workdir={workdir} --weights=emoji --classes=flags,food-drink \\
      --guidance=2.5
  {command} train --config=emoji:demo --workdir=runs/longer --config.steps=6000
  {command} prepare preview YOUR/FOLDER/OF/IMAGES
"""
EXAMPLES = """examples:
  pixelflow quickstart
  pixelflow quickstart --workdir=/tmp/demo
  pixelflow quickstart --workdir=/tmp/short --steps=300
"""


def draw(
    pipeline: Pipeline, path: pathlib.Path, classes: tuple[str, ...], scale: int
) -> np.ndarray:
    """Write a grid of eight samples of each class, a row a class; returns them."""
    wanted = [name for name in classes for _ in range(8)]
    images = pipeline(wanted, seed=1, progress=True)
    save_png(path, grid(images, columns=8, row_labels=list(classes), scale=scale))
    return images


def score(
    extractor: Extractor,
    pipeline: Pipeline,
    images: np.ndarray,
    classes: tuple[str, ...],
) -> float:
    """FD-lite0 of the first samples against training images of their classes."""
    source: Any = pipeline.config.data.open("train")
    own = np.flatnonzero(np.isin(source.labels, pipeline.labels(classes)))
    chosen = own[np.linspace(0, len(own) - 1, COMPARED).astype(int)]
    trained = np.stack([source[int(i)]["image"] for i in chosen])
    sets = [
        set_features([(0, one)], ["fd_lite0"], {"lite0": extractor})["lite0"]
        for one in (images[spread(len(images))], trained)
    ]
    return frechet_distance(*(one.gaussians[FEATURES] for one in sets))


def spread(count: int) -> np.ndarray:
    """The places of `SCORED` of so many images, evenly over all rows."""
    return np.linspace(0, count - 1, SCORED).astype(int)


def scores(drawn: list[tuple[Pipeline, np.ndarray, tuple[str, ...]]]) -> str:
    """A line with the FD-lite0 of both models, or with how to get it."""
    try:
        extractor = open_extractor("lite0")
    except WeightsError:
        return (
            "For a number as well, the FD-lite0 of both models:\n  "
            f"{efficientnet.INSTALL}"
        )
    fresh, shipped = (score(extractor, *one) for one in drawn)
    return (
        f"FD-lite0 of {SCORED} samples, against training images of the same classes:\n"
        f"  {fresh:.1f} just trained, {shipped:.1f} shipped (so few images rank models "
        "at best)"
    )


def on_cpu(pipeline: Pipeline) -> Pipeline:
    """The pipeline computing in float32, which CPUs are faster in."""
    precision = dataclasses.replace(pipeline.config.precision, compute="float32")
    config = dataclasses.replace(pipeline.config, precision=precision)
    return dataclasses.replace(pipeline, config=config)


def in_half_the_time(pipeline: Pipeline) -> Pipeline:
    """The shipped model drawing by the quicker of its presets."""
    sampling = PRESETS["emoji_adams20"]()
    config = dataclasses.replace(pipeline.config, sampling=sampling)
    return dataclasses.replace(pipeline, config=config)


def main(argv: list[str] | None = None) -> int:
    """Train, draw both grids, and say where they lie; returns the exit code."""
    accept_every_text()
    parser = Parser(prog="pixelflow quickstart", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--workdir", type=nonempty, default="runs/demo", help="folder of the run")
    add("--steps", type=at_least(1), help="train for fewer or more steps than 2,200")
    arguments, unknown = parser.parse_known_args(argv)
    parser.refuse_unknown(unknown)
    with refusing(arguments.workdir):
        workdir = local_path(arguments.workdir, "--workdir", ConfigError)
        return _tour(workdir, arguments.steps)


def _tour(workdir: pathlib.Path, steps: int | None) -> int:
    backend.configure()
    config = load_config("emoji:demo")
    if steps is not None:
        config = extending.with_steps(config, steps)
    run = extending.begun(workdir)
    if run is not None and run.config.steps != config.steps:
        raise ConfigError(
            f"The run in {workdir} is one of {run.config.steps:,} steps: give "
            f"--steps={run.config.steps}, or another --workdir. To make it longer: "
            f"`pixelflow train --config=emoji:demo --workdir={workdir} "
            "--config.steps=N`."
        )
    started = time.monotonic()
    print(
        f"Training {config.name}: {config.steps} steps, about three minutes on 2 cores"
    )
    if not run_training(config, workdir):
        return STOPPED
    minutes = (time.monotonic() - started) / 60
    fresh, shipped = workdir / "fresh.png", workdir / "shipped.png"
    print("Sampling from the new model, then from the shipped one")
    own = Pipeline.from_pretrained(workdir)
    other = in_half_the_time(on_cpu(Pipeline.from_pretrained(SHIPPED)))
    drawn = [
        (own, draw(own, fresh, own.class_names, scale=3), own.class_names),
        (other, draw(other, shipped, SHOWN, scale=1), SHOWN),
    ]
    print(
        NEXT.format(
            minutes=minutes,
            fresh=fresh,
            shipped=shipped,
            workdir=workdir,
            command=f"{sys.executable} -m pixelflow_jax",
            scores=scores(drawn),
        )
    )
    return 0
