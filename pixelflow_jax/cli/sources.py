"""The flags that name a data set, and the config that each makes of it."""

import argparse
import functools

from pixelflow_jax.data.captions import MAX_CAPTION
from pixelflow_jax.data.decoding import MAX_PIXELS
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.prepare.parquet import Parquet
from pixelflow_jax.data.prepare.tars import Tars
from pixelflow_jax.data.shards import Shards


def add_source(parser: argparse.ArgumentParser, metavar: str, *, written: bool) -> None:
    """Adds the flags that name a source; `written`: shards are one as well.

    Each sets `arguments.source` to a function that makes the source's config of
    (arguments, path, holdout).
    """
    parser.set_defaults(source=_folder)
    add = parser.add_argument
    add("paths", nargs="*", metavar=metavar, help="leave SOURCE out with --emoji")
    kinds = parser.add_mutually_exclusive_group()
    kind = functools.partial(kinds.add_argument, dest="source", action="store_const")
    kind("--emoji", const=emoji, help="the built-in emoji instead of a folder")
    kind(
        "--captions",
        const=functools.partial(_folder, labels=False, captions=True),
        help="a folder in which each image has a .txt of its name, a caption a line",
    )
    kind(
        "--tars",
        const=_tars,
        help="WebDataset tars (.jpg, .png or .webp with .txt or .json): a file, a "
        "folder, or a pattern such as 'x/{000..012}.tar'",
    )
    kind("--parquet", const=_parquet, help="parquet files, named in the same way")
    kind(
        "--no-labels",
        const=functools.partial(_folder, labels=False),
        help="sub-folders are not classes: all images are of one class",
    )
    if written:
        kind("--shards", const=_shards, help="SOURCE is a folder of shards")
    add("--caption-key", default="", help="of the .json files in tars (default: usual)")
    add("--image-column", default="", help="of parquet files (default: guessed)")
    add("--caption-column", default="", help="of parquet files (default: guessed)")
    add(
        "--rich-captions",
        action="store_true",
        help="emoji: other names and the colours of the drawings, too",
    )
    add(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="of an image; larger ones cannot be used (%(default)s)",
    )
    add(
        "--max-caption",
        type=int,
        default=MAX_CAPTION,
        help="characters of a caption; longer ones cannot be used (%(default)s)",
    )
    add(
        "--allow-missing-captions",
        action="store_true",
        help="keep images without a readable caption, with an empty one",
    )


def emoji(arguments: argparse.Namespace, path: str, holdout: float) -> Emoji:
    """The built-in emoji; `path` is not read."""
    captions = "rich" if arguments.rich_captions else "names"
    return Emoji(holdout=holdout, captions=captions)


def _tars(arguments: argparse.Namespace, path: str, holdout: float) -> Tars:
    return Tars(
        path=path,
        caption_key=arguments.caption_key,
        allow_missing=arguments.allow_missing_captions,
        holdout=holdout,
        max_pixels=arguments.max_pixels,
        max_caption=arguments.max_caption,
    )


def _parquet(arguments: argparse.Namespace, path: str, holdout: float) -> Parquet:
    config = Parquet(
        path=path,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        allow_missing=arguments.allow_missing_captions,
        holdout=holdout,
        max_pixels=arguments.max_pixels,
        max_caption=arguments.max_caption,
    )
    print("Columns: {} (images), {} (captions)".format(*config.columns()))
    return config


def _folder(
    arguments: argparse.Namespace,
    path: str,
    holdout: float,
    *,
    labels: bool = True,
    captions: bool = False,
) -> ImageFolder:
    return ImageFolder(
        path=path,
        labels=labels,
        captions=captions,
        allow_missing=arguments.allow_missing_captions,
        holdout=holdout,
        max_pixels=arguments.max_pixels,
        max_caption=arguments.max_caption,
    )


def _shards(arguments: argparse.Namespace, path: str, holdout: float) -> Shards:
    return Shards(path=path, max_pixels=arguments.max_pixels)
