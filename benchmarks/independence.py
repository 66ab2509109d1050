"""How much the images of a set depend on the batch they are drawn in.

    python -m benchmarks.independence --weights=emoji --batches 1 4 8 32

Draws the same 32 images, of the same seed and classes, in programs of other batch
sizes, in bfloat16 and in float32, and compares their bytes with those of the first
batch size: the share of values that differ, and the largest difference (of 255). Prints
a table in Markdown.
"""

import argparse
import dataclasses

import jax
import numpy as np

from pixelflow_jax import Pipeline, backend

IMAGES = 32


def drawn(pipeline: Pipeline, batch: int, count: int) -> np.ndarray:
    """`count` images, class after class, by a program of a batch; uint8."""
    labels = [i % len(pipeline.class_names) for i in range(count)]
    stream = pipeline.stream(labels, seed=0)
    draw = dataclasses.replace(stream.draw, per_device=batch)
    stream = dataclasses.replace(stream, draw=draw)
    return np.concatenate([images for _, images in stream()])


def in_precision(pipeline: Pipeline, compute: str) -> Pipeline:
    """The pipeline with its matrix products in a type."""
    precision = dataclasses.replace(pipeline.config.precision, compute=compute)
    config = dataclasses.replace(pipeline.config, precision=precision)
    return dataclasses.replace(pipeline, config=config)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default="emoji")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    backend.configure()
    pipeline = Pipeline.from_pretrained(arguments.weights)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    print("| precision | batch | values that differ | largest | mean |")
    print("|---|---|---|---|---|")
    first, *others = arguments.batches
    for compute in ("float32", "bfloat16"):
        model = in_precision(pipeline, compute)
        reference = drawn(model, first, arguments.images).astype(int)
        for batch in others:
            images = drawn(model, batch, arguments.images).astype(int)
            apart = np.abs(images - reference)
            share = np.mean(apart > 0)
            print(
                f"| {compute} | {batch} against {first} | {share:.2%} | {apart.max()} "
                f"| {apart.mean():.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
