"""Converts weights: `pixelflow convert --help`."""

import argparse
import ast
import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.terminal import accept_every_text, complain, told
from pixelflow_jax.config_files import load_config
from pixelflow_jax.convert import actions, inspect
from pixelflow_jax.convert.checkpoints import LAYOUTS, PREFERENCE
from pixelflow_jax.convert.families import EXECUTION, FAMILIES, fields
from pixelflow_jax.convert.sizes import Fields
from pixelflow_jax.errors import ConvertError, UserError
from pixelflow_jax.experiment import Experiment

COMMAND = "pixelflow convert"
DESCRIPTION = """Converts the official weights of PixelFlow, PixNerd, PixelGen and JiT
to the format of pixelflow_jax and back, bit for bit. Writing PyTorch's files needs
torch: pip install 'pixelflow_jax[teachers]'."""
EXAMPLES = f"""examples:
  {COMMAND} inspect model.ckpt
  {COMMAND} from-torch pixnerd.ckpt weights/pixnerd --family=pixnerd --ema
  {COMMAND} to-torch weights/pixnerd pixnerd.ckpt

Official files: a bare state dict, {{model, ema, opt, args}}, Lightning's .ckpt, JiT's
{{model, model_ema1, model_ema2}}, as .pt, .pth, .ckpt, .bin or .safetensors, or a
folder of safetensors with an index. Nothing in a pickle is executed. What does not fit
is listed, and nothing is written. `{COMMAND} from-torch --help` lists the flags of
`from-torch`, and so on.
"""
OF_COMMAND = {
    "from-torch": (
        "pixelflow/model.pt weights/pixelflow --set heads=16",
        "checkpoint-last.pth weights/jit --weights=ema2",
        "pixelgen.ckpt weights/large --image-size=512",
    ),
    "to-torch": (
        "weights/pixnerd pixnerd.ckpt",
        "runs/xl model.pt --ema=0.9999",
        "weights/jit jit.pth --layout=jit",
    ),
    "to-safetensors": (
        "pixelgen.ckpt pixelgen.safetensors",
        "pixnerd.ckpt pixnerd.safetensors --ema",
        "checkpoint-last.pth jit.safetensors --weights=ema2",
    ),
    "inspect": ("model.ckpt", "weights/pixnerd --all", "pixelgen.safetensors"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (0, 1 on an error, 130 on Ctrl-C)."""
    accept_every_text()
    arguments, unknown = _parser().parse_known_args(argv)
    arguments.parser.refuse_unknown(unknown)
    try:
        arguments.run(arguments)
    except (UserError, OSError) as error:
        complain(told(error))
        return 1
    except KeyboardInterrupt:
        print("Stopped: nothing was written.", file=sys.stderr)
        return 130
    return 0


def run_from_torch(arguments: argparse.Namespace) -> None:
    """Official weights to a folder of ours."""
    config = load_config(arguments.config) if arguments.config else None
    given = dict(map(_assignment, arguments.set))
    size = arguments.image_size
    if config is not None:
        given = _known(config) | given
        own = given.pop("image_size", 0)
        size = size or own
    weights = _understood(
        arguments, given=given, given_by=arguments.config or "--set", image_size=size
    )
    out = pathlib.Path(arguments.out).expanduser()
    with _progress(weights) as advance:
        actions.from_torch(
            weights,
            out,
            config=config,
            image_size=size,
            overwrite=arguments.overwrite,
            advance=advance,
        )
    print(f"Written: {out}")


def run_to_torch(arguments: argparse.Namespace) -> None:
    """Weights of ours to an official file."""
    paths = (arguments.source, arguments.out)
    source, out = (pathlib.Path(path).expanduser() for path in paths)
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        notes = actions.to_torch(
            source,
            out,
            layout=arguments.layout,
            ema=arguments.ema,
            overwrite=arguments.overwrite,
            advance=bar.update,
        )
    print(*notes, f"Written: {out}", sep="\n")


def run_to_safetensors(arguments: argparse.Namespace) -> None:
    """An official file to safetensors with the official names."""
    weights = _understood(arguments)
    out = pathlib.Path(arguments.out).expanduser()
    with _progress(weights) as advance:
        actions.to_safetensors(
            weights, out, overwrite=arguments.overwrite, advance=advance
        )
    print(f"Written: {out}")


def run_inspect(arguments: argparse.Namespace) -> None:
    """What a file holds, as a table."""
    path = pathlib.Path(arguments.source).expanduser()
    for line in inspect.report(path, every=arguments.all):
        print(line)


def _understood(
    arguments: argparse.Namespace,
    given: Fields | None = None,
    given_by: str = "",
    image_size: int = 0,
) -> actions.Understood:
    """The model in SOURCE; prints what there is to know of it."""
    weights = actions.understood(
        pathlib.Path(arguments.source).expanduser(),
        family=arguments.family,
        weights=arguments.weights,
        given=given,
        given_by=given_by,
        image_size=image_size,
        allow_nonfinite=arguments.allow_nonfinite,
    )
    print(*weights.notes, sep="\n")
    return weights


@contextlib.contextmanager
def _progress(weights: actions.Understood) -> Iterator[actions.Progress]:
    total = sum(tensor.nbytes for tensor in weights.tensors.values())
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


def _assignment(text: str) -> tuple[str, Any]:
    """A field and its value from NAME=VALUE."""
    name, sign, word = text.partition("=")
    if not sign:
        raise ConvertError(f"--set {text} must be NAME=VALUE, such as --set heads=16.")
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):  # a word, such as dct
        value = word
    return name.removeprefix("model."), value


def _known(config: Experiment) -> Fields:
    """The fields of a config's model that weights may contradict."""
    known = fields(config.model)
    return {name: known[name] for name in known if name not in EXECUTION}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=DESCRIPTION, epilog=EXAMPLES)
    commands = parser.add_subparsers(
        required=True, metavar="{from-torch,to-torch,to-safetensors,inspect}"
    )

    def command(name: str, run, text: str, source: str, out: str = ""):
        examples = [f"  {COMMAND} {name} {words}" for words in OF_COMMAND[name]]
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text}.",
            epilog="\n".join(["examples:", *examples]),
        )
        made.set_defaults(run=run, parser=made)
        made.add_argument("source", metavar=source, type=nonempty)
        if out:
            made.add_argument("out", metavar=out, type=nonempty)
            replace = "replace what is at the output"
            made.add_argument("--overwrite", action="store_true", help=replace)
        return made.add_argument

    text = "official weights to a published folder: config, weights and model card"
    add = command("from-torch", run_from_torch, text, "FILE_OR_FOLDER", "OUT_FOLDER")
    _add_choice(add)
    add("--config", default="", help="config FILE[:VARIANT] the weights must fit")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the model that tensors cannot tell, such as heads=16",
    )
    add(
        "--image-size",
        type=at_least(0),
        default=0,
        help="size of the images to draw; stored positions of another are recomputed",
    )
    text = "weights of ours to an official file: .pt, .pth, .ckpt or .safetensors"
    add = command("to-torch", run_to_torch, text, "FOLDER_FILE_OR_RUN", "OUT_FILE")
    layouts = sorted(LAYOUTS)
    add("--layout", choices=layouts, default="", help="default: lightning for .ckpt")
    add("--ema", default="", help="of a run: the average's decay, or raw")
    text = "an official file to safetensors with the official names"
    add = command("to-safetensors", run_to_safetensors, text, "FILE", "OUT.safetensors")
    _add_choice(add)
    text = "names, shapes and types of a file's tensors, and the model they make"
    add = command("inspect", run_inspect, text, "FILE_OR_FOLDER")
    add("--all", action="store_true", help="a line for each tensor, not each layer")
    return parser


def _add_choice(add) -> None:
    """The flags that choose among a file's models."""
    add("--family", choices=FAMILIES, default="", help="default: by the tensors")
    add(
        "--weights",
        default="",
        metavar="NAME",
        help=f"which of a checkpoint's weights: {', '.join(PREFERENCE)}, or the name "
        "of their dictionary (default: its first average, if any)",
    )
    add(
        "--allow-nonfinite",
        action="store_true",
        help="take weights that hold NaN or infinities, too",
    )
    add("--ema", dest="weights", action="store_const", const="ema", help="the average")


if __name__ == "__main__":
    sys.exit(main())
