"""Prepares and shows data: `pixelflow prepare --help`."""

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from pixelflow_jax import config_overrides
from pixelflow_jax.cli import (
    basis,
    emoji_styles,
    imagenet,
    process_flags,
    shards_out,
)
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.preview import Layout, examples
from pixelflow_jax.cli.sources import add_source, emoji
from pixelflow_jax.cli.terminal import accept_every_text, complain, told
from pixelflow_jax.data.images import save_png
from pixelflow_jax.data.source import SPLITS
from pixelflow_jax.errors import WRONG, ConfigError, DataError, UserError
from pixelflow_jax.paths import check_target, local_path, printable

COMMAND = "pixelflow prepare"
EXAMPLES = f"""examples:
  {COMMAND} preview ~/photos look.png
  {COMMAND} shards ~/photos /data/photos --size 256
  {COMMAND} imagenet ~/imagenet /data/imagenet256 --size 256
  {COMMAND} emoji-styles /data/styles64 --size 64 --packages *.tgz
  {COMMAND} text-features /data/blip3o --config=pixelflow_t2i:256

A killed `shards` or `text-features` continues where it stopped when the same command is
run again. `{COMMAND} shards --help` lists the flags of `shards`, and so on.
"""
NOT_FLAGS = ("run", "parser", "overrides")  # beside what was read from the line
OF_SHARDS = f"""examples:
  {COMMAND} shards ~/imagenet/train /data/imagenet256 --size 256
  {COMMAND} shards --captions ~/captioned /data/captioned --size 256 --keep-aspect
  {COMMAND} shards --tars '~/blip3o/{{00000..00099}}.tar' /data/blip3o --size 512
"""
OF_PREVIEW = f"""examples:
  {COMMAND} preview ~/imagenet/train look.png --rows 5
  {COMMAND} preview --shards /data/blip3o look.png
  {COMMAND} preview --emoji look.png --size 64
"""
OF_FEATURES = f"""examples:
  {COMMAND} text-features /data/blip3o --config=pixelflow_t2i:256
  {COMMAND} text-features /data/emoji --config=emoji_t2i:cpu --batch-size 16
  {COMMAND} text-features /data/blip3o --config=pixelflow_t2i:256 \\
      --config.conditioner.encoder.weights=/data/flan-t5-xl
  srun {COMMAND} text-features /data/blip3o --config=pixelflow_t2i:256

Several processes, started as those of a training are, share the shards out.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (0, 130 on Ctrl-C, or an error's)."""
    accept_every_text()
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    takes_fields = arguments.run is run_text_features
    changes, unknown = config_overrides.split(rest) if takes_fields else ([], rest)
    arguments.overrides = changes
    arguments.parser.refuse_unknown(unknown)
    try:
        arguments.run(arguments)
    except (UserError, OSError) as error:
        complain(told(error))
        return error.code if isinstance(error, UserError) else WRONG
    except KeyboardInterrupt:
        print("Stopped: the same command continues from here.", file=sys.stderr)
        return 130
    return 0


def run_shards(arguments: argparse.Namespace) -> None:
    """Writes images, with their classes or captions, as shards."""
    path, out = shards_out.source_and_out(arguments)
    size = arguments.size
    if arguments.source is emoji and size is None:
        raise DataError("--emoji needs --size: emoji are drawn at any size.")
    config = arguments.source(arguments, path, arguments.holdout)
    print("Listing the images ...", flush=True)
    splits = SPLITS if arguments.holdout > 0 else SPLITS[:1]
    shards_out.write(
        arguments, out, config, {s: config.open(s, size or 0) for s in splits}
    )


def run_preview(arguments: argparse.Namespace) -> None:
    """Writes a grid of examples, a row a class, and prints the count of each class.

    Where there is one class only, each image stands above its caption instead.
    """
    path, out = shards_out.source_and_out(arguments, default_out="preview.png")
    layout = Layout(
        arguments.rows, arguments.columns, arguments.size, seed=arguments.seed
    )
    layout.check()
    picture = local_path(out, "OUT", DataError)
    if picture.suffix.lower() != ".png":
        raise DataError(
            f"A preview is a picture in the format PNG, and {printable(out)!r} is "
            "called otherwise: give OUT a name that ends in .png."
        )
    check_target(picture, DataError)
    config = arguments.source(arguments, path, 0.0)
    source = config.open("train", arguments.size)
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    for name, count in zip(source.class_names, counts, strict=True):
        print(f"{count:8d}  {printable(name)}")
    print(f"{len(source):8d}  in all")
    save_png(picture, examples(source, layout))
    print(f"Written: {out}")


def run_basis(arguments: argparse.Namespace) -> None:
    """Writes the basis of an asymmetric prediction."""
    path, out = shards_out.source_and_out(arguments)
    file = local_path(out, "OUT", DataError)
    basis.check(arguments, file)
    source = arguments.source(arguments, path, 0.0).open("train", arguments.size)
    basis.write(source, arguments, file)


def run_text_features(arguments: argparse.Namespace) -> None:
    """Encodes the captions of shards once, for training without the encoder."""
    # Here, because the processes that write shards import this file and need no jax.
    from pixelflow_jax import backend, distributed, peers
    from pixelflow_jax.cli import processes
    from pixelflow_jax.cli.text_features import write_features
    from pixelflow_jax.config_files import load_config

    if len(arguments.paths) != 1:
        raise DataError(
            f"Give one folder of shards (see {COMMAND} text-features --help)."
        )
    backend.configure()
    given = {k: v for k, v in vars(arguments).items() if k not in NOT_FLAGS}
    with distributed.leaving(), peers.telling():
        processes.meet("prepare text-features", given)
        backend.keep_programs()  # asks for devices: not before processes have met
        config = load_config(arguments.config, arguments.overrides)
        processes.agree(config)
        try:
            mesh = config.mesh.of_process()
        except ValueError as error:
            raise ConfigError(str(error)) from error
        out = write_features(
            config.conditioner,
            config.model,
            local_path(arguments.paths[0], "SHARDS", DataError),
            mesh=mesh,
            batch_size=arguments.batch_size,
            overwrite=arguments.overwrite,
        )
    if distributed.is_main():
        print(f"Ready: --config.conditioner.features={out}")


def _parser() -> Parser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    names = "{shards,imagenet,emoji-styles,preview,basis,text-features}"
    commands = parser.add_subparsers(required=True, metavar=names)
    shards = commands.add_parser(
        "shards",
        help="write images with their classes or captions as shards",
        description="Writes OUT/train (and OUT/test with --holdout) as ArrayRecord.",
        epilog=OF_SHARDS,
    )
    shards.set_defaults(run=run_shards, parser=shards)
    add_source(shards, "SOURCE_FOLDER OUT", written=False)
    shards_out.add_options(shards)
    imagenet.add_parser(commands)
    emoji_styles.add_parser(commands)
    preview = commands.add_parser(
        "preview",
        help="write a grid of examples as PNG and count the classes",
        description="Writes a grid of examples, a row a class, or each image above its "
        "caption where there are no classes, and counts the classes.",
        epilog=OF_PREVIEW,
    )
    preview.set_defaults(run=run_preview, parser=preview)
    add_source(preview, "SOURCE [OUT.png]", written=True)
    add, count = preview.add_argument, at_least(1)
    add("--rows", type=count, default=10, help="classes to show (%(default)s)")
    add("--columns", type=count, default=10, help="images of each (%(default)s)")
    add("--size", type=count, default=64, help="pixels of an image (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="which examples (%(default)s)")
    bases = basis.add_parser(commands)
    bases.set_defaults(run=run_basis, parser=bases)
    _add_text_features(commands)
    return parser


def _add_text_features(commands: argparse._SubParsersAction) -> None:
    features = commands.add_parser(
        "text-features",
        help="encode the captions of shards once, ahead of training",
        description="Encodes all captions of SHARDS with the text encoder of a config "
        "and writes the states to SHARDS/features. Fields of the config are set as in "
        "training: --config.conditioner.encoder.weights=...",
        epilog=OF_FEATURES,
    )
    features.set_defaults(run=run_text_features, parser=features)
    add = features.add_argument
    add("paths", nargs="*", metavar="SHARDS", help="a folder that `shards` wrote")
    add(
        "--config",
        required=True,
        type=nonempty,
        help="config file, or the name of one, with ':variant' behind it",
    )
    add(
        "--batch-size",
        type=at_least(1),
        default=64,
        help="captions at once (%(default)s)",
    )
    add("--overwrite", action="store_true", help="discard earlier features")
    process_flags.add_flags(features)
