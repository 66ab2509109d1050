"""One request of the demo: drawn in a thread, told step by step, ended on request."""

import logging
import math
import pathlib
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from pixelflow_jax.data.images import grid, save_animation
from pixelflow_jax.demo.form import Form, Limits
from pixelflow_jax.errors import UserError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.pretrained.results import Images

LOG = logging.getLogger(__name__)
BETWEEN = 0.3  # seconds between two previews: a browser has to load each
COLUMNS = 4
WIDE = 640  # pixels of a picture, about, whatever the images' size
BEGUN = "Drawing. What is new, a size or a solver, waits for its program to compile."


class Shown(NamedTuple):
    """What the page shows: None leaves a place as it is, or empty at the end.

    `picture` holds all images, `animation` is a file; `words` is Markdown. `done` is
    True once nothing follows.
    """

    picture: Image.Image | None = None
    words: str = ""
    animation: str | None = None
    stages: Image.Image | None = None
    done: bool = False


class Stopped(Exception):
    """Nobody waits for the images any more."""


def draw(pipeline: Pipeline, form: Form, limits: Limits) -> Iterator[Shown]:
    """Previews while images are drawn, then the images, or why there are none.

    Closing the iterator ends the drawing at its next step.
    """
    start = time.perf_counter()
    try:
        wanted, options = form.request(limits)
    except UserError as error:
        yield Shown(words=refusal(error), done=True)
        return
    yield Shown(words=BEGUN)
    news: queue.SimpleQueue = queue.SimpleQueue()
    ended = threading.Event()

    def tell(step: int, steps: int, images: np.ndarray) -> None:
        if ended.is_set():
            raise Stopped
        news.put((step, steps, images))

    def work() -> None:
        try:
            news.put(pipeline(wanted, **options, callback=tell))
        except BaseException as error:  # whatever it is, the page waits for it
            news.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield from _told(news, start, form.trajectory)
    finally:
        ended.set()


def _told(news: queue.SimpleQueue, start: float, recorded: bool) -> Iterator[Shown]:
    """What the thread says, in pictures and words; previews not too often."""
    last = 0.0
    while True:
        one = news.get()
        if isinstance(one, Images):
            yield _finished(one, time.perf_counter() - start, recorded)
            return
        if isinstance(one, BaseException):
            yield Shown(words=refusal(one), done=True)
            return
        if time.perf_counter() - last < BETWEEN:
            continue
        last = time.perf_counter()
        step, steps, images = one
        share = f"Step {step} of {steps}, {time.perf_counter() - start:.0f} s."
        yield Shown(_picture(images), share)


def refusal(error: BaseException) -> str:
    """An error as a visitor reads it; what is no visitor's fault goes to the log."""
    if isinstance(error, UserError):
        return f"**That cannot be drawn.** {error}"
    if isinstance(error, Stopped):
        return "Stopped."
    LOG.error("A request failed", exc_info=error)
    return f"**Something went wrong here** ({type(error).__name__}); the log has more."


def _finished(result: Images, seconds: float, recorded: bool) -> Shown:
    facts = result.facts
    seeds = ", ".join(map(str, dict.fromkeys(facts.seeds)))
    words = (
        f"{len(result)} image{'s' * (len(result) > 1)} of {result.shape[2]} x "
        f"{result.shape[1]} pixels in {seconds:.1f} s, seed {seeds}."
    )
    cascade = len(result.stages) > 1
    return Shown(
        picture=_picture(result.images),
        words=words,
        animation=_animation(result) if recorded else None,
        stages=result.stage_strip() if cascade else None,
        done=True,
    )


def _animation(result: Images) -> str:
    """The way out of the noise as a file."""
    with tempfile.NamedTemporaryFile(suffix=".gif", delete=False) as file:
        path = file.name
    columns = _columns(len(result))
    scale = _scale(result, columns, WIDE // 2)
    frames = [grid(one, columns, scale=scale) for one in result.trajectory.frames]
    save_animation(pathlib.Path(path), np.stack(frames), fps=10)
    return path


def _picture(images: np.ndarray) -> Image.Image:
    """All images in one, enlarged where they are small."""
    columns = _columns(len(images))
    return Image.fromarray(grid(images, columns, scale=_scale(images, columns)))


def _columns(count: int) -> int:
    """About a square of them, and no more side by side than a phone can show."""
    return min(math.ceil(math.sqrt(count)), COLUMNS)


def _scale(images: np.ndarray, columns: int, wide: int = WIDE) -> int:
    return max(1, wide // (columns * images.shape[2]))
