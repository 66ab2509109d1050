"""Images a second through Inception, against torch-fidelity; precision and recall.

pip install torch torchvision && pip install --no-deps torch-fidelity==0.4.0
python -m benchmarks.evaluator --json benchmarks/results/evaluator.jsonl

End to end: images of 256 x 256 lie in memory as uint8 and end as features in memory.
Torch-fidelity's network is measured without TF32, which moves its features by 1e-3, and
with it, its default. Each row is measured in a process of its own. EfficientNet-Lite0
has its package's weights; on one core of a CPU:

taskset -c 1 python -m benchmarks.evaluator --measured EfficientNet-Lite0 --images 256
"""

import argparse
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks import against_torch_fidelity as theirs
from benchmarks import harness  # before jax: it sets the compiler's flags

from pixelflow_jax.evaluation import extractors, manifold  # isort: skip
from pixelflow_jax.teachers.inception_table import WIDTH

SIZE = 256  # pixels of a side
FEATURES_OF = ["2048", "logits_unbiased"]
PARTS = (
    "ours, float16x3",
    "ours, float32",
    "torch-fidelity, float32",
    "torch-fidelity, tf32",
    "EfficientNet-Lite0",
    "precision and recall",
)


def median_rate(run: Callable[[], object], args: argparse.Namespace) -> float:
    """Images a second, by the median of several runs after one that warms up."""
    run()
    times = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return args.images / float(np.median(times))


def some_images(count: int) -> np.ndarray:
    """So many images uint8, which are a few over and over."""
    few = theirs.images(min(count, 256), SIZE, SIZE, seed=0)
    return np.tile(few, (-(-count // len(few)), 1, 1, 1))[:count]


def our_features(args: argparse.Namespace, products: str) -> dict:
    """Our extractor's rate; `products` is how it multiplies.

    And how far its features are from those of float32 products, at most.
    """
    images = some_images(args.images)
    with weights() as path:
        extractor = our_extractor(path, products, args.batch)
        start = time.perf_counter()
        seen = extractor.extract(images[: args.batch])
        compiled = time.perf_counter() - start
        rate = median_rate(lambda: extractor.extract(images), args)
        row = {
            "products": products,
            "images/s": rate,
            "compile s": compiled,
            "peak GB": harness.peak_gb(),
        }
        plain = our_extractor(path, "float32", args.batch).extract(images[: args.batch])
    for key, array in plain.items():
        row[f"{key} differ"] = float(np.abs(array - seen[key]).max())
    return row


def our_extractor(path: str, products: str, batch: int) -> extractors.NetworkExtractor:
    """Inception, which multiplies as `products` say."""
    extractors.arithmetic_on = lambda devices: products
    return extractors.open_extractor("inception", path, batch=batch)


def their_features(args: argparse.Namespace, products: str) -> dict:
    """Torch-fidelity's network on the same images."""
    import torch
    from torch_fidelity.utils import create_feature_extractor

    tf32 = products == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    cuda = torch.cuda.is_available()
    with weights() as path:
        network = create_feature_extractor(
            theirs.NAME, FEATURES_OF, cuda=cuda, feature_extractor_weights_path=path
        )
    images = np.ascontiguousarray(some_images(args.images).transpose(0, 3, 1, 2))

    def run() -> None:
        with torch.no_grad():
            for first in range(0, len(images), args.batch):
                batch = torch.from_numpy(images[first : first + args.batch])
                batch = batch.cuda(non_blocking=True) if cuda else batch
                _ = [part.cpu() for part in network(batch)]

    rate = median_rate(run, args)
    return {"products": products, "images/s": rate}


def lite0_features(args: argparse.Namespace) -> dict:
    """EfficientNet-Lite0 with its default batch, the resize by Pillow included."""
    images = some_images(args.images)
    extractor = extractors.open_extractor("lite0")
    rate = median_rate(lambda: extractor.extract(images), args)
    return {"cores": len(os.sched_getaffinity(0)), "images/s": rate}


def precision_recall(args: argparse.Namespace) -> dict:
    """Time and memory of precision and recall of random features."""
    draw = np.random.default_rng(0)
    sample, real = (
        draw.gamma(1, 0.4, (count, WIDTH)).astype(np.float32)
        for count in (args.sample, args.reference)
    )
    few = [rows[: 2 * max(manifold.DEFAULT)] for rows in (sample, real)]
    manifold.precision_recall(*few)
    start = time.perf_counter()
    precision, recall = manifold.precision_recall(sample, real)
    return {
        "features": f"{args.sample} x {args.reference}",
        "seconds": time.perf_counter() - start,
        "peak GB": harness.peak_gb(),
        "precision": precision,
        "recall": recall,
    }


class weights:
    """A weight file of torch-fidelity's format, removed at the end."""

    def __enter__(self) -> str:
        self._folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self._folder.name, "weights.pth")
        theirs.random_weights(path)
        return str(path)

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """The row of one part, by its name."""
    program, _, how = variant["measured"].partition(", ")
    if program == "ours":
        return our_features(args, how)
    if program == "torch-fidelity":
        return their_features(args, how)
    if program == "EfficientNet-Lite0":
        return lite0_features(args)
    return precision_recall(args)


def main() -> None:
    """Measure every part in a process of its own."""
    parser = harness.parser(__doc__)
    parser.add_argument("--measured", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sample", type=int, default=50_000, help="drawn features")
    parser.add_argument("--reference", type=int, default=10_000, help="real features")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    # Memory is measured: none is taken before it is needed.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    args = parser.parse_args()
    passed = ("repeats", "images", "batch", "sample", "reference")
    harness.run_variants("benchmarks.evaluator", args, ("measured",), measure, passed)


if __name__ == "__main__":
    main()
