"""Train a tiny PixNerd on emoji, then look: the three-minute tour behind `make demo`.

Draws two grids, a row a class: from the model just trained, and from the one that comes
with the package. Run it again and it goes on where it stopped.
"""

import dataclasses
import pathlib
import sys
import time
from typing import Any

from pixelflow_jax import backend, resources
from pixelflow_jax.cli import extending
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.terminal import accept_every_text, give_up
from pixelflow_jax.cli.train import run_training
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.errors import UserError
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.pretrained.pipeline import Pipeline

SHIPPED = resources.folder("assets") / "emoji.safetensors"
SHOWN = ("Smileys & Emotion", "People & Body", "Food & Drink", "Flags")  # of its nine

NEXT = """
Look at these pictures:
  just trained, in {minutes:.1f} minutes:  {fresh}
  the shipped model:             {shipped}

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
) -> None:
    """Write a grid of eight samples of each class, a row a class."""
    wanted = [name for name in classes for _ in range(8)]
    own: Any = pipeline.config.sampling.guidance
    guidance = dataclasses.replace(own, scale=2.0)
    images = pipeline(
        wanted, seed=1, grid=Grid(steps=20), guidance=guidance, progress=True
    )
    save_png(path, grid(images, columns=8, row_labels=list(classes), scale=scale))


def on_cpu(pipeline: Pipeline) -> Pipeline:
    """The pipeline computing in float32, which CPUs are faster in."""
    precision = dataclasses.replace(pipeline.config.precision, compute="float32")
    config = dataclasses.replace(pipeline.config, precision=precision)
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
    try:
        _tour(pathlib.Path(arguments.workdir).expanduser(), arguments.steps)
    except UserError as error:
        give_up(f"{type(error).__name__}: {error}")
    return 0


def _tour(workdir: pathlib.Path, steps: int | None) -> None:
    backend.configure()
    config = load_config("emoji:demo")
    if steps is not None:
        config = extending.with_steps(config, steps)
    started = time.monotonic()
    print(
        f"Training {config.name}: {config.steps} steps, about three minutes on 2 cores"
    )
    run_training(config, workdir)
    minutes = (time.monotonic() - started) / 60
    fresh, shipped = workdir / "fresh.png", workdir / "shipped.png"
    print("Sampling from the new model, then from the shipped one")
    own = Pipeline.from_pretrained(workdir)
    draw(own, fresh, own.class_names, scale=3)
    draw(on_cpu(Pipeline.from_pretrained(SHIPPED)), shipped, SHOWN, scale=1)
    print(
        NEXT.format(
            minutes=minutes,
            fresh=fresh,
            shipped=shipped,
            workdir=workdir,
            command=f"{sys.executable} -m pixelflow_jax",
        )
    )
