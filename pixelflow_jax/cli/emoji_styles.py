"""Emoji in several styles as shards: `pixelflow prepare emoji-styles --help`."""

import argparse

from pixelflow_jax.cli import shards_out
from pixelflow_jax.cli.parser import between
from pixelflow_jax.data.emoji.licences import FILE, write_licences
from pixelflow_jax.data.emoji.packages import KINDS
from pixelflow_jax.data.emoji.styles import STYLES, EmojiStyles
from pixelflow_jax.data.source import SPLITS
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path

COMMAND = "pixelflow prepare emoji-styles"
FETCHED = "\n".join(f"  {kind.to_get():<34} {kind.style}" for kind in KINDS)
EPILOG = f"""Each package is one style; noto comes in two, of which the second has
pictures of 64 pixels, flags too, and needs no renderer of SVG:
{FETCHED}

examples:
  {COMMAND} /data/styles64 --size 64 --packages *.tgz
  {COMMAND} /data/styles256 --size 256 --classes style --packages *.tgz
  {COMMAND} /data/openmoji --size 128 --styles openmoji --skin-tones
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command's own parser."""
    parser = commands.add_parser(
        "emoji-styles",
        help="write emoji in several drawing styles as shards",
        description="Writes the same emoji in several styles to OUT/train and "
        f"OUT/test, split by what they show, with a table of licences ({FILE}).",
        epilog=EPILOG,
    )
    parser.set_defaults(run=run, parser=parser)
    add = parser.add_argument
    add("paths", nargs="*", metavar="OUT", help="the folder of shards")
    add(
        "--packages",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files that `npm pack` wrote, or folders they were unpacked to; openmoji "
        "needs none",
    )
    add(
        "--styles",
        nargs="+",
        default=[],
        choices=STYLES,
        help="the ones to write (default: openmoji and those of the packages)",
    )
    add(
        "--classes",
        choices=("category", "style"),
        default="category",
        help="a class a category, or a category in a style (%(default)s)",
    )
    add(
        "--unnamed",
        nargs="+",
        default=[],
        choices=STYLES,
        help="styles that captions do not name",
    )
    add("--skin-tones", action="store_true", help="the variants of hands and people")
    add(
        "--holdout",
        type=between(0.0, 1.0),
        default=0.05,
        help="share of the subjects kept for OUT/test (%(default)s)",
    )
    shards_out.add_options(parser, holdout=False)


def run(arguments: argparse.Namespace) -> None:
    """Writes the shards and the table of licences."""
    if len(arguments.paths) != 1 or arguments.size is None:
        raise DataError(
            f"Give one folder to write to, and a size: {COMMAND} OUT --size 64 ..."
        )
    (out,) = arguments.paths
    config = EmojiStyles(
        packages=tuple(arguments.packages),
        styles=tuple(arguments.styles),
        classes=arguments.classes,
        skin_tones=arguments.skin_tones,
        unnamed=tuple(arguments.unnamed),
        holdout=arguments.holdout,
    )
    sets = config.sets(arguments.size)
    splits = SPLITS if arguments.holdout > 0 else SPLITS[:1]
    opened = {split: config.open(split, arguments.size) for split in splits}
    shards_out.write(arguments, out, config, opened)
    write_licences(local_path(out, "OUT", DataError), sets)
    print(f"Licences: {FILE}")
