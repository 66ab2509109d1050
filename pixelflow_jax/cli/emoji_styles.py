"""Emoji in several styles as shards: `pixelflow prepare emoji-styles --help`."""

import argparse

from pixelflow_jax.cli import shard_flags
from pixelflow_jax.cli.parser import Parser, at_least
from pixelflow_jax.data.emoji.licences import FILE, write_licences
from pixelflow_jax.data.emoji.packages import KINDS
from pixelflow_jax.data.emoji.styles import STYLES, EmojiStyles
from pixelflow_jax.data.prepare.shard_writer import Encoding
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path

COMMAND = "pixelflow prepare emoji-styles"
FORMATS = ("png", "webp", "jpeg")
FETCHED = "\n".join(f"  {kind.to_get():<34} {kind.style}" for kind in KINDS)
EPILOG = f"""Each package is one style; noto comes in two, of which the second has
pictures of 64 pixels, flags too, and needs no renderer of SVG:
{FETCHED}

examples:
  {COMMAND} /data/styles64 --size 64 --packages *.tgz
  {COMMAND} /data/styles256 --size 256 --classes style --packages *.tgz
  {COMMAND} /data/openmoji --size 128 --styles openmoji --skin-tones
"""


def add_parser(commands: argparse._SubParsersAction) -> Parser:
    """Adds the command's own parser."""
    parser = commands.add_parser(
        "emoji-styles",
        help="write emoji in several drawing styles as shards",
        description="Writes the same emoji in several styles to OUT/train and "
        f"OUT/test, split by what they show, with a table of licences ({FILE}).",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="OUT", help="the folder of shards")
    add(
        "--size", type=at_least(1), required=True, help="pixels, such as 64, 128 or 256"
    )
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
    add("--format", choices=FORMATS, default="png", help="of the files (%(default)s)")
    shard_flags.add_shard_flags(parser, holdout=0.05)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Writes the shards and the table of licences."""
    if len(arguments.paths) != 1:
        raise DataError(f"Give one folder to write to: {COMMAND} OUT --size 64 ...")
    (out,) = arguments.paths
    folder = local_path(out, "OUT", DataError)
    config = EmojiStyles(
        packages=tuple(arguments.packages),
        styles=tuple(arguments.styles),
        classes=arguments.classes,
        skin_tones=arguments.skin_tones,
        unnamed=tuple(arguments.unnamed),
        holdout=arguments.holdout,
    )
    encoding = Encoding(
        size=arguments.size, format=arguments.format, quality=arguments.quality
    )
    shard_flags.write(config, folder, encoding, arguments)
    write_licences(folder, config.sets(arguments.size))
    print(f"Ready: Shards(path={out!r}); licences in {FILE}")
