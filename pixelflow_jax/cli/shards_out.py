"""What commands that write shards share: SOURCE and OUT, flags, and the writing."""

import argparse
import os

from pixelflow_jax.cli.parser import at_least, between
from pixelflow_jax.cli.sources import emoji
from pixelflow_jax.data.prepare.shard_writer import (
    FORMATS,
    Encoding,
    ShardOptions,
    Sources,
    write_shards,
)
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path

COMMAND = "pixelflow prepare"


def source_and_out(
    arguments: argparse.Namespace, default_out: str | None = None
) -> tuple[str, str]:
    """Sorts the positional paths: emoji have no SOURCE, a preview may omit OUT."""
    paths = list(arguments.paths)
    if "" in paths:
        raise DataError("A path is empty: name SOURCE and OUT.")
    source = "" if arguments.source is emoji else paths.pop(0) if paths else None
    out = paths.pop(0) if paths else default_out
    if source is None or out is None or paths:
        raise DataError(
            f"Give SOURCE and OUT, or --emoji and OUT (see {COMMAND} --help), not "
            f"{' '.join(arguments.paths) or 'nothing'}."
        )
    return source, out


def write(
    arguments: argparse.Namespace,
    out: str,
    config: object,
    splits: Sources,
) -> None:
    """Writes splits as the flags say, and tells what was written."""
    size = arguments.size
    encoding = Encoding(
        size=size,
        keep_aspect=arguments.keep_aspect,
        format=arguments.format or ("keep" if size is None else "png"),
        quality=arguments.quality,
    )
    options = ShardOptions(
        shards=arguments.shards,
        workers=arguments.workers,
        max_corrupt=arguments.max_corrupt,
        overwrite=arguments.overwrite,
    )
    folder = local_path(out, "OUT", DataError)
    indices = write_shards(
        splits, folder, encoding, description=repr(config), options=options
    )
    for split, index in indices.items():
        print(
            f"{split}: {index['count']} images in {len(index['shards'])} shards, "
            f"{index['captions']} captions, {index['bare']} images without, "
            f"{index['unreadable']} images left out"
        )
    print(f"Ready: Shards(path={out!r})")


def add_options(
    parser: argparse.ArgumentParser, holdout: bool = True, max_corrupt: float = 0.01
) -> None:
    """Adds the flags that say how shards are written."""
    add, count = parser.add_argument, at_least(1)
    add("--size", type=count, help="ADM centre crop to this size (default: no crop)")
    add(
        "--keep-aspect",
        action="store_true",
        help="cut nothing off: --size is the short side, for aspect-ratio buckets",
    )
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
    if holdout:
        add(
            "--holdout",
            type=between(0.0, 1.0),
            default=0.0,
            help="share kept for OUT/test, by a hash of the name (%(default)s)",
        )
    add(
        "--format",
        choices=FORMATS,
        help="png with --size; without, keep: the files as they are",
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
        default=max_corrupt,
        help="fail when more than this share cannot be used (%(default)s)",
    )
    add("--overwrite", action="store_true", help="discard earlier shards in OUT")
