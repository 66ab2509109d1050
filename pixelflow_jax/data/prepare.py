"""Prepares and shows image data: `python -m pixelflow_jax.data.prepare --help`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pixelflow_jax.data.emoji import Emoji
from pixelflow_jax.data.errors import DataError, UnreadableImage
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.data.shard_writer import FORMATS, Encoding, write_shards
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.transforms import center_crop

COMMAND = "python -m pixelflow_jax.data.prepare"
EXAMPLES = f"""examples:
  {COMMAND} shards ~/imagenet/train /data/imagenet256 --size 256
  {COMMAND} shards ~/photos /data/photos --size 256 --no-labels --format webp
  {COMMAND} shards --emoji /data/emoji64 --size 64
  {COMMAND} preview ~/imagenet/train look.png --rows 5
  {COMMAND} preview --shards /data/imagenet256 look.png
  {COMMAND} preview --emoji look.png --size 64

A killed `shards` continues where it stopped when the same command is run again.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (0, 1 on an error, 130 on Ctrl-C)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped: the same command continues from here.", file=sys.stderr)
        return 130
    return 0


def run_shards(arguments: argparse.Namespace) -> None:
    """Writes a folder of images, or the emoji, as shards."""
    source_path, out = _source_and_out(arguments)
    if arguments.emoji and arguments.size is None:
        raise DataError("--emoji needs --size: emoji are drawn at any size.")
    encoding = Encoding(
        size=arguments.size,
        format=arguments.format or ("keep" if arguments.size is None else "png"),
        quality=arguments.quality,
    )
    holdout = arguments.holdout
    if arguments.emoji:
        config = Emoji(holdout=holdout)
    else:
        config = ImageFolder(
            path=source_path, labels=not arguments.no_labels, holdout=holdout
        )
    splits = ("train", "test") if holdout > 0 else ("train",)
    print("Listing the images ...", flush=True)
    indices = write_shards(
        {split: config.open(split, arguments.size or 0) for split in splits},
        Path(out).expanduser(),
        encoding,
        description=repr(config),
        num_shards=arguments.shards,
        workers=arguments.workers,
        max_corrupt=arguments.max_corrupt,
        overwrite=arguments.overwrite,
    )
    for split, index in indices.items():
        print(f"{split}: {index['count']} images in {len(index['shards'])} shards")
    print(f"Ready: Shards(path={out!r})")


def run_preview(arguments: argparse.Namespace) -> None:
    """Writes a grid of examples, a row a class, and prints the count of each class."""
    source_path, out = _source_and_out(arguments, default_out="preview.png")
    if arguments.emoji:
        config = Emoji(holdout=0.0)
    elif arguments.shards:
        config = Shards(path=source_path)
    else:
        config = ImageFolder(path=source_path, labels=not arguments.no_labels)
    if min(arguments.rows, arguments.columns, arguments.size) < 1:
        raise DataError("--rows, --columns and --size must be at least 1.")
    source = config.open("train", arguments.size)
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    for name, count in zip(source.class_names, counts, strict=True):
        print(f"{count:8d}  {name}")
    print(f"{len(source):8d}  in all")
    picture = _examples(source, arguments)
    save_png(Path(out).expanduser(), picture)
    print(f"Written: {out}")


def _examples(source, arguments: argparse.Namespace) -> np.ndarray:
    """A grid of randomly chosen images, one class a row; uint8 [h, w, 3]."""
    rng = np.random.default_rng(arguments.seed)
    filled = np.unique(source.labels)
    if len(filled) == 1:  # without classes, all rows show the one there is
        chosen = np.resize(filled, arguments.rows)
    else:
        chosen = filled[: arguments.rows]
    orders = {
        int(c): rng.permutation(np.flatnonzero(source.labels == c)) for c in chosen
    }
    blank = np.full((arguments.size, arguments.size, 3), 255, np.uint8)
    cells, labels = [], []
    supplies = {label: _readable(source, order) for label, order in orders.items()}
    for label in map(int, chosen):
        labels.append(source.class_names[label])
        for _ in range(arguments.columns):
            image = next(supplies[label], None)
            cells.append(blank if image is None else center_crop(image, arguments.size))
    scale = max(1, 64 // arguments.size)
    return grid(np.stack(cells), arguments.columns, labels, scale=scale)


def _readable(source, order: np.ndarray):
    for index in order:
        try:
            yield source[int(index)]["image"]
        except UnreadableImage as error:
            print(f"skipped: {error}", file=sys.stderr)


def _source_and_out(
    arguments: argparse.Namespace, default_out: str | None = None
) -> tuple[str, str]:
    """Sorts the positional paths: emoji have no SOURCE, a preview may omit OUT."""
    paths = list(arguments.paths)
    source = "" if arguments.emoji else paths.pop(0) if paths else None
    out = paths.pop(0) if paths else default_out
    if source is None or out is None or paths:
        raise DataError(
            f"Give SOURCE and OUT, or --emoji and OUT (see {COMMAND} --help), not "
            f"{' '.join(arguments.paths) or 'nothing'}."
        )
    return source, out


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, epilog=EXAMPLES, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="{shards,preview}")
    shards = commands.add_parser(
        "shards",
        help="write a folder of images, or the emoji, as shards",
        description="Writes OUT/train (and OUT/test with --holdout) as ArrayRecord.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    shards.set_defaults(run=run_shards)
    _add_source(shards, "SOURCE_FOLDER OUT")
    _add_shard_options(shards)
    preview = commands.add_parser(
        "preview",
        help="write a grid of examples as PNG and count the classes",
        description="Writes a grid of examples, a row a class, and counts the classes.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    preview.set_defaults(run=run_preview)
    _add_source(preview, "SOURCE [OUT.png]")
    add = preview.add_argument
    add("--shards", action="store_true", help="SOURCE is a folder of shards")
    add("--rows", type=int, default=10, help="classes to show (%(default)s)")
    add("--columns", type=int, default=10, help="images of each (%(default)s)")
    add("--size", type=int, default=64, help="pixels of an image (%(default)s)")
    add("--seed", type=int, default=0, help="which examples (%(default)s)")
    return parser


def _add_source(parser: argparse.ArgumentParser, metavar: str) -> None:
    add = parser.add_argument
    add("paths", nargs="*", metavar=metavar, help="leave SOURCE out with --emoji")
    add("--emoji", action="store_true", help="the built-in emoji instead of a folder")
    add(
        "--no-labels",
        action="store_true",
        help="sub-folders are not classes: all images are of one class",
    )


def _add_shard_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", type=int, help="ADM centre crop to this size (default: no crop)")
    add("--shards", type=int, default=0, help="train shards (one per 1000 images)")
    add(
        "--workers",
        type=int,
        default=min(16, os.cpu_count() or 1),
        help="processes (%(default)s)",
    )
    add(
        "--holdout",
        type=float,
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
        type=int,
        default=95,
        help="of JPEG and WebP (%(default)s; WebP 100 is lossless)",
    )
    add(
        "--max-corrupt",
        type=float,
        default=0.01,
        help="fail when more than this share cannot be read (%(default)s)",
    )
    add("--overwrite", action="store_true", help="discard earlier shards in OUT")


if __name__ == "__main__":
    sys.exit(main())
