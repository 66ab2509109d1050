"""The flags of commands that write shards, and the writing itself."""

import argparse
import os
from pathlib import Path
from typing import Protocol

from pixelflow_jax.cli.parser import at_least, between
from pixelflow_jax.data.prepare.shard_writer import (
    Encoding,
    ShardOptions,
    write_shards,
)
from pixelflow_jax.data.source import SPLITS, ListedSource, Split


class Listed(Protocol):
    """The config of a source that can be written as shards."""

    def open(self, split: Split, image_size: int) -> ListedSource:
        """Opens one split."""
        ...


def add_shard_flags(parser: argparse.ArgumentParser, *, holdout: float) -> None:
    """Adds how shards are written, but for --size; `holdout` is the default share."""
    add, count = parser.add_argument, at_least(1)
    add(
        "--shards",
        type=at_least(0),
        default=0,
        help="train shards (default, 0: one per 1000 images)",
    )
    add(
        "--workers",
        type=count,
        default=min(16, os.cpu_count() or 1),
        help="processes (%(default)s)",
    )
    add(
        "--holdout",
        type=between(0.0, 1.0),
        default=holdout,
        help="share kept for OUT/test, by a hash of the name (%(default)s)",
    )
    add(
        "--quality",
        type=at_least(1),
        default=95,
        help="of JPEG and WebP (%(default)s; WebP 100 is lossless)",
    )
    add(
        "--max-corrupt",
        type=between(0.0, 1.0),
        default=0.01,
        help="fail when more than this share cannot be used (%(default)s)",
    )
    add("--overwrite", action="store_true", help="discard earlier shards in OUT")


def write(
    config: Listed, out: Path, encoding: Encoding, arguments: argparse.Namespace
) -> None:
    """Writes the splits of a source's config to `out`, and says what is in them."""
    print("Listing the images ...", flush=True)
    indices = write_shards(
        {
            split: config.open(split, encoding.size or 0)
            for split in (SPLITS if arguments.holdout > 0 else SPLITS[:1])
        },
        out,
        encoding,
        description=repr(config),
        options=ShardOptions(
            shards=arguments.shards,
            workers=arguments.workers,
            max_corrupt=arguments.max_corrupt,
            overwrite=arguments.overwrite,
        ),
    )
    for split, index in indices.items():
        print(
            f"{split}: {index['count']} images in {len(index['shards'])} shards, "
            f"{index['captions']} captions, {index['bare']} images without, "
            f"{index['unreadable']} images left out"
        )
