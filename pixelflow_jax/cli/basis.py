"""The directions that a data set's patches fill most: `prepare basis`."""

import argparse
import sys
from pathlib import Path

import numpy as np

from pixelflow_jax.cli.parser import at_least
from pixelflow_jax.cli.sources import add_source
from pixelflow_jax.data.source import LabelledSource
from pixelflow_jax.data.transforms import center_crop
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.flow.basis import Gram, write_basis
from pixelflow_jax.paths import check_target

BATCH = 64  # images whose patches are added at once
SHARE = 8  # of the largest directions whose weight is told


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the sub-command's flags."""
    parser = commands.add_parser(
        "basis",
        help="the basis of an asymmetric prediction, from a data set",
        description="Writes the eigenvectors of the uncentred Gram matrix of the "
        "patches of randomly chosen images to OUT.npz, for training with "
        "--config.prediction.basis=OUT.npz. Any rank can be taken from one file.",
        epilog="examples:\n  pixelflow prepare basis ~/photos photos.npz --size 256\n"
        "  pixelflow prepare basis --emoji emoji.npz --size 64 --patch 8\n"
        "  pixelflow prepare basis --shards /data/photos photos.npz --size 256",
    )
    add_source(parser, "SOURCE OUT.npz", written=True)
    add = parser.add_argument
    count = at_least(1)
    add("--size", type=count, required=True, help="pixels of an image, as in training")
    add("--patch", type=count, default=16, help="the model's patch (%(default)s)")
    add("--images", type=count, default=10_000, help="at most so many (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="which images (%(default)s)")
    return parser


def check(arguments: argparse.Namespace, out: Path) -> None:
    """Raises DataError for sizes and files that cannot be."""
    size, patch = arguments.size, arguments.patch
    if size % patch:
        raise DataError(f"--size={size} must be a multiple of --patch={patch}.")
    if out.suffix != ".npz":
        raise DataError(
            f"A basis is a .npz file: give OUT a name that ends so, not {out}."
        )
    check_target(out, DataError)


def write(source: LabelledSource, arguments: argparse.Namespace, out: Path) -> None:
    """Write the basis of a source's images; DataError where it cannot be had."""
    size, patch = arguments.size, arguments.patch
    order = np.random.default_rng(arguments.seed).permutation(len(source))
    gram, waiting = Gram(patch), []
    for index in order:
        try:
            image = center_crop(source[int(index)]["image"], size)
        except UnreadableImage as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        waiting.append(image)
        whole = gram.images + len(waiting) == arguments.images
        if whole or len(waiting) == BATCH:
            gram.add(np.stack(waiting).astype(np.float32) / 127.5 - 1)
            waiting = []
        if whole:
            break
    if waiting:
        gram.add(np.stack(waiting).astype(np.float32) / 127.5 - 1)
    if not gram.images:
        raise DataError("None of the images can be used: there is no basis of nothing.")
    write_basis(out, gram)
    values, patches = gram.directions()[0], gram.images * (size // patch) ** 2
    if patches < len(values):
        print(
            f"note: {patches} patches fill at most so many of {len(values)} "
            "directions: take more images, or no higher rank",
            file=sys.stderr,
        )
    share = values[-SHARE:].sum() / max(values.sum(), np.finfo(float).tiny)
    print(
        f"{gram.images} images, patches of {len(values)} numbers; the first {SHARE} "
        f"directions hold {share:.1%} of their squares"
    )
    print(f"Ready: --config.prediction.basis={out} --config.prediction.patch={patch}")
