"""The web demo: `python -m pixelflow_jax.demo`, or `pixelflow demo`."""

import argparse
import sys

from pixelflow_jax import resources
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.terminal import accept_every_text, give_up, refusing
from pixelflow_jax.demo.form import Limits
from pixelflow_jax.demo.models import SHIPPED, Models

PORT = 7860
EXAMPLES = """examples:
  pixelflow demo
  pixelflow demo --weights emoji --weights mine=runs/mine
  pixelflow demo --host 0.0.0.0 --port 8000 --most-images 4
"""


def parser() -> Parser:
    """The command line."""
    limits = Limits()
    found = Parser(
        prog="pixelflow demo",
        description="A page to draw images on: classes or prompts, all of sampling.",
        epilog=EXAMPLES,
    )
    add = found.add_argument
    add(
        "--weights",
        action="append",
        type=nonempty,
        metavar="[NAME=]WEIGHTS",
        help="a model to offer: a run, a folder, a file or a name on the Hub, as of "
        "Pipeline.from_pretrained; may be given again (default: those that come with "
        "the package)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at: 0.0.0.0 lets other machines in (%(default)s)",
    )
    add("--port", type=at_least(1), default=PORT, help="the port (%(default)s)")
    most = (
        ("--most-images", limits.images, "images of one request"),
        ("--most-steps", limits.steps, "steps of one request"),
        ("--most-pixels", limits.side, "pixels of an image's side"),
        ("--most-waiting", limits.waiting, "requests that wait for their turn"),
    )
    for flag, default, what in most:
        text = f"the most {what} (%(default)s)"
        add(flag, type=at_least(1), default=default, metavar="N", help=text)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Serve the page until it is interrupted; returns an exit code."""
    accept_every_text()
    args, unknown = (reader := parser()).parse_known_args(arguments)
    reader.refuse_unknown(unknown)
    try:
        import gradio  # noqa: F401
    except ImportError:
        give_up("The demo needs Gradio: pip install 'pixelflow_jax[demo]'.")
    with refusing("the page's temporary folder"):
        _serve(args)
    return 0


def _serve(args: argparse.Namespace) -> None:
    # Only now, as Gradio may be absent.
    from pixelflow_jax.demo import page

    shipped = [name for name in SHIPPED if resources.asset(name) is not None]
    limits = Limits(
        images=args.most_images,
        steps=args.most_steps,
        side=args.most_pixels,
        waiting=args.most_waiting,
    )
    built = page.build(Models(args.weights or shipped), limits)
    place = f"{args.host}:{args.port}"
    try:
        page.launch(built, args.host, args.port)
    except OSError as error:
        give_up(
            f"Nothing can listen at {place} ({error}): choose another --port, or end "
            "what is there."
        )
    print(f"The demo is at http://{place} (Ctrl+C ends it).", flush=True)
    built.block_thread()


if __name__ == "__main__":
    sys.exit(main())
