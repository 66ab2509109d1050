"""Which sampling settings are best for the shipped emoji model, by FD-lite0.

Against the images it was trained on, and apart from them those that were held out: the
kernel distance, which is unbiased for the few that these are. Classes are drawn in the
proportions of the training images.

python -m benchmarks.sweep_emoji --out=DIR [--count=2000] [--sweep=... --sweep=...]
"""

import argparse
import functools
import json
import pathlib
import time

import numpy as np

from pixelflow_jax import backend
from pixelflow_jax.cli.reference import images_of_data
from pixelflow_jax.cli.sweep import Sweep, run_sweep
from pixelflow_jax.evaluation import sweep
from pixelflow_jax.evaluation.accumulator import SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.evaluation.kernel_distance import kernel_distance
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.evaluation.statistics import frechet_distance
from pixelflow_jax.pretrained.pipeline import Pipeline

METRICS = ("fd_lite0", "kid_lite0")  # statistics, and the features of every image
SWEEPS = (
    "solver=adams2,heun;steps=10,15,20,40",
    "scale=1,1.5,2,2.5,3,4;interval=all,0.1:1",
    "shift=0.75,1,1.5",
)


def main() -> None:
    """Sweep one axis or pair after the other, each at the best point of those before.

    A point's results are kept in DIR, and found there by the next call.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--weights", default="emoji")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=500, help="images at a time")
    parser.add_argument("--sweep", action="append", help="in place of all of them")
    args = parser.parse_args()
    backend.configure()
    began = time.monotonic()
    pipeline = Pipeline.from_pretrained(args.weights)
    network = open_extractor("lite0")
    pipeline.config.sampling.batch_size = args.batch
    judge, labels = references(pipeline, network)
    for number, text in enumerate(args.sweep or SWEEPS):
        task = Sweep(
            open_pipeline=lambda name: pipeline,
            averages=("",),
            ema="",
            wanted=np.resize(labels, args.count).tolist(),
            options={"seed": 0},
            extractors={"lite0": network},
            metrics=METRICS,
            judge=judge,
            compared={"train": "emoji, training split", "heldout": "emoji, test split"},
        )
        run_sweep(task, text, args.out / str(number))
        pipeline.config.sampling = best_of(task, text, args.out / str(number))
        print(f"{time.monotonic() - began:.0f} s in all", flush=True)


def references(pipeline, network):
    """What judges a set, and the labels of the training images."""
    data, sets, labels = pipeline.config.data, {}, np.zeros(0, int)
    for split in ("train", "test"):
        images = images_of_data(data, split)
        batches = images.batches(256)
        found = set_features(batches, METRICS, {"lite0": network}, len(images))
        sets[split] = found["lite0"]
        labels = np.asarray(images.labels) if split == "train" else labels
    return functools.partial(judge, sets), labels


def judge(
    sets: dict[str, SetFeatures], seen: dict[str, SetFeatures]
) -> dict[str, float]:
    """Distances from the training images, and from those held out."""
    drawn = seen["lite0"]
    few = min(drawn.count, len(sets["test"].rows[FEATURES]))
    apart, _ = kernel_distance(
        drawn.rows[FEATURES], sets["test"].rows[FEATURES], subset_size=few, subsets=20
    )
    pair = drawn.gaussians[FEATURES], sets["train"].gaussians[FEATURES]
    return {"fd_lite0": frechet_distance(*pair), "kid_lite0_heldout": apart}


def best_of(task: Sweep, text: str, folder: pathlib.Path):
    """The sampling settings of the best point by the training images."""
    axes = sweep.parse(text, task.usual())
    (path,) = folder.glob("sweeps/*/results.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    wanted = sweep.points(axes)
    rows = [row for row in lines if row["point"] in wanted]
    best = min(rows, key=lambda row: row["results"]["fd_lite0"])
    return task.sampling(best["point"])


if __name__ == "__main__":
    main()
