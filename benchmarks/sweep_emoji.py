"""Which sampling settings are best for the shipped emoji model, by FD-lite0.

Against the images it was trained on, and apart from them those that were held out: the
kernel distance, which is unbiased for the few that these are. Classes are drawn in the
proportions of the training images.

python -m benchmarks.sweep_emoji --out=DIR [--count=2000] [--sweep=... --sweep=...]

What they are compared with is kept in DIR/references, or --references: drawing all
glyphs and looking at them takes a minute, which need not be one of an accelerator's.
--references_only ends there.
"""

import argparse
import functools
import json
import pathlib
import time

import numpy as np

from pixelflow_jax import backend
from pixelflow_jax.cli.reference import Wanted, images_of_data, write
from pixelflow_jax.cli.sweep import Sweep, run_sweep
from pixelflow_jax.data.loader import Data
from pixelflow_jax.evaluation import sweep
from pixelflow_jax.evaluation.accumulator import SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.evaluation.kernel_distance import kernel_distance
from pixelflow_jax.evaluation.references import Reference, load_reference
from pixelflow_jax.evaluation.statistics import frechet_distance
from pixelflow_jax.pretrained.pipeline import Pipeline

METRICS = ("fd_lite0", "kid_lite0")  # statistics, and the features of every image
HELD = {"train": METRICS[:1], "test": METRICS[1:]}  # what is asked of each split
LABELS = "labels.npy"
SWEEPS = (
    "solver=adams2,heun;steps=10,15,20,30",
    "interval=all,0.1:1;scale=1,1.5,2,2.5,3,4,5",
    "shift=0.75,1,1.5",
)


def main() -> None:
    """Sweep one axis or pair after the other, each at the best point of those before.

    A point's results are kept in DIR, and found there by the next call.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--weights", default="emoji")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=500, help="images at a time")
    parser.add_argument("--sweep", action="append", help="in place of all of them")
    parser.add_argument("--references", type=pathlib.Path, help="a folder to keep")
    parser.add_argument("--references_only", action="store_true")
    args = parser.parse_args()
    backend.configure()
    began = time.monotonic()
    pipeline = Pipeline.from_pretrained(args.weights)
    folder = args.references or args.out / "references"
    references, labels = compared(pipeline.config.data, folder)
    if args.references_only:
        return
    network = open_extractor("lite0", batch=min(args.count, 256))
    for reference in references.values():
        reference.check_extractor(network)
    pipeline.config.sampling.batch_size = args.batch
    for number, text in enumerate(args.sweep or SWEEPS):
        task = Sweep(
            open_pipeline=lambda name: pipeline,
            averages=("",),
            ema="",
            wanted=np.resize(labels, args.count).tolist(),
            options={"seed": 0},
            extractors={"lite0": network},
            metrics=METRICS,
            judge=functools.partial(judge, references),
            compared={"train": "emoji, training split", "heldout": "emoji, test split"},
        )
        run_sweep(task, text, args.out / str(number))
        pipeline.config.sampling = best_of(task, text, args.out / str(number))
        print(f"{time.monotonic() - began:.0f} s in all", flush=True)


def compared(
    data: Data, folder: pathlib.Path
) -> tuple[dict[str, Reference], np.ndarray]:
    """References of both splits, and the labels of the training images.

    Those in `folder` are read, and made there where there is none.
    """
    for split, names in HELD.items():
        if not (folder / f"{split}.npz").exists():
            images = images_of_data(data, split)
            write(folder / f"{split}.npz", Wanted(images, names, {}))
            if split == "train":
                np.save(folder / LABELS, np.asarray(images.labels))
    references = {split: load_reference(folder / f"{split}.npz") for split in HELD}
    return references, np.load(folder / LABELS)


def judge(
    references: dict[str, Reference], seen: dict[str, SetFeatures]
) -> dict[str, float]:
    """Distances from the training images, and from those held out."""
    drawn, sets = seen["lite0"], {k: one.sets["lite0"] for k, one in references.items()}
    heldout = sets["test"].rows[FEATURES]
    few = min(drawn.count, len(heldout))
    apart, _ = kernel_distance(
        drawn.rows[FEATURES], heldout, subset_size=few, subsets=20
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
