"""Train a tiny PixNerd on emoji, then look: the three-minute tour behind `make demo`.

Draws two grids, a row a class: from the model just trained, and from the one that comes
with the package. Run it again and it goes on where it stopped.
"""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

from pixelflow_jax import backend, build, resources
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validated

SHIPPED = resources.folder("assets") / "emoji.safetensors"
SHOWN = ("Smileys & Emotion", "People & Body", "Food & Drink", "Flags")  # of its nine

NEXT = """
Look at these pictures:
  just trained, in {minutes:.1f} minutes:  {fresh}
  the shipped model:             {shipped}

Try next:
  {python} -m pixelflow_jax.main --workdir={workdir} --mode=sample --trajectory
  {python} -m pixelflow_jax.main --workdir={workdir} --mode=sample \\
      --weights=emoji --classes=flags,food-drink --guidance=2.5
  {python} -m pixelflow_jax.main --workdir=runs/longer --config=emoji:demo \\
      --config.steps=6000
  {python} -m pixelflow_jax.prepare preview YOUR/FOLDER/OF/IMAGES
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


def main(argv: list[str] | None = None) -> None:
    """Train, draw both grids, and say where they lie."""
    parser = argparse.ArgumentParser(
        prog="python -m pixelflow_jax.quickstart", description=__doc__
    )
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/demo")
    parser.add_argument("--steps", type=int, help="train for fewer or more steps")
    args = parser.parse_args(argv)
    backend.configure()
    backend.keep_programs()
    config = load_config("emoji:demo")
    config.steps = args.steps or config.steps
    config.optimizer.warmup = min(config.optimizer.warmup, config.steps)
    started = time.monotonic()
    print(
        f"Training {config.name}: {config.steps} steps, about three minutes on 2 cores"
    )
    train(build.training_run(validated(config)), args.workdir)
    minutes = (time.monotonic() - started) / 60
    fresh, shipped = args.workdir / "fresh.png", args.workdir / "shipped.png"
    print("Sampling from the new model, then from the shipped one")
    own = Pipeline.from_pretrained(args.workdir)
    draw(own, fresh, own.class_names, scale=3)
    draw(on_cpu(Pipeline.from_pretrained(SHIPPED)), shipped, SHOWN, scale=1)
    print(
        NEXT.format(
            minutes=minutes,
            fresh=fresh,
            shipped=shipped,
            workdir=args.workdir,
            python=sys.executable,
        )
    )
