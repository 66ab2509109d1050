"""`pixelflow prepare imagenet`: ImageNet as shards, from what is published."""

import argparse
import typing

from pixelflow_jax.cli import shards_out
from pixelflow_jax.cli.shards_out import COMMAND
from pixelflow_jax.data.decoding import MAX_PIXELS
from pixelflow_jax.data.prepare.imagenet import SPLITS, Check, ImageNet

EXAMPLES = f"""examples:
  {COMMAND} imagenet ~/imagenet /data/imagenet256 --size 256
  {COMMAND} imagenet ~/imagenet /data/imagenet512 --size 512 --format jpeg --check md5
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command and its flags."""
    parser = commands.add_parser(
        "imagenet",
        help="write ImageNet as shards, from its official tars or from folders",
        description="Writes OUT/train and OUT/test as ArrayRecord. SOURCE holds "
        f"{' and '.join(official.tar for official in SPLITS.values())}, and the "
        "development kit (ILSVRC2012_devkit_t12.tar.gz) for the validation classes "
        "and the names of classes; or the folders train and val that are made of "
        "them, also as Kaggle has them.",
        epilog=EXAMPLES,
    )
    parser.set_defaults(run=run, parser=parser, source=None, holdout=0.0)
    add = parser.add_argument
    add("paths", nargs="*", metavar="SOURCE OUT", help="folders")
    add(
        "--check",
        choices=typing.get_args(Check),
        default="counts",
        help="numbers of classes and images, or also the MD5 of the tars; none: take "
        "what is there (%(default)s)",
    )
    add("--max-pixels", type=int, default=MAX_PIXELS, help="of an image (%(default)s)")
    shards_out.add_options(parser, holdout=False, max_corrupt=0.0)


def run(arguments: argparse.Namespace) -> None:
    """Writes ImageNet's train and validation images as shards."""
    source, out = shards_out.source_and_out(arguments)
    config = ImageNet(
        path=source,
        check=arguments.check,
        max_pixels=arguments.max_pixels,
        workers=arguments.workers,
    )
    print("Listing the images ...", flush=True)
    splits = {split: config.open(split) for split in config.splits()}
    if "train" not in splits:
        config.open("train")  # says what is missing
    if "test" not in splits:
        print("No validation images are there: only the train split is written.")
    shards_out.write(arguments, out, config, splits)
