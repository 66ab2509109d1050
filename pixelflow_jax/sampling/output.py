"""Samples on disk: a PNG each, a grid, an .npz, and how they came out of the noise.

A folder holds one draw. It is written while the images are drawn, none of which stays
in memory, and `samples.json` comes last: a folder without it is not finished.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.images import grid, save_animation, save_png, to_uint8
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.spool import SPOOL, Spool, discard, only_writer

FOLDER = 1000  # images in a folder; more are spread over several
SHOWN = 400  # images that a grid may hold; more cannot be looked at
PAGE = 2048  # pixels that a grid may be wide and high, if it holds several images
SMALL = 96  # pixels below which images are enlarged in a grid
SLUG, LABEL = 40, 32  # characters of a prompt in a file's name, and beside a grid's row
RESULTS = {
    "images": "images",
    "grid": "grid.png",
    "json": "samples.json",
    "npz": "samples.npz",
    "stages": "stages.png",
    "trajectory": "trajectory.gif",
}
OURS = re.compile(r"\d{6,}(_[A-Za-z0-9-]+)?\.png")  # names of images

Batches = Callable[[int], Iterator[tuple[int, Generated]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of a set of images before it is drawn, and what of it is written.

    `shape` is that of an image (h, w, c), `digest` tells the set from all others.
    `names` says what each image is of, a class or a prompt; `labels` are its classes
    [n]; `columns` images in a row of the grid belong together. `facts` are written to
    samples.json. `png`: a file an image; `stages` and `trajectory`: pictures of the
    way out of the noise.
    """

    shape: tuple[int, int, int]
    digest: str
    names: Sequence[str]
    columns: int
    labels: np.ndarray | None = None
    first: int = 0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    png: bool = True
    stages: bool = False
    trajectory: bool = False

    def results(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
        """What will lie in the folder, by kind."""
        optional = {
            "images": self.png,
            "stages": self.stages,
            "trajectory": self.trajectory,
        }
        kinds = [kind for kind in RESULTS if optional.get(kind, True)]
        return {kind: folder / RESULTS[kind] for kind in kinds}

    def file(self, place: int) -> str:
        """The path of an image below `images`."""
        number = self.first + place
        name = file_name(number, self.names[place])
        if len(self.names) <= FOLDER:
            return name
        return f"{number // FOLDER * FOLDER:06d}/{name}"

    def shown(self) -> list[list[int]]:
        """The places of the images that a grid shows, row by row."""
        height, width = (
            side * picture_scale(self.shape) + 2 for side in self.shape[:2]
        )
        columns = min(self.columns, max(1, PAGE // width), SHOWN)
        rows = max(1, min(PAGE // height, SHOWN // columns))
        starts = range(0, len(self.names), self.columns)[:rows]
        whole = len(self.names)
        return [list(range(s, min(s + columns, whole))) for s in starts]


def write_samples(
    folder: pathlib.Path,
    batches: Batches,
    about: Described,
    *,
    progress: bool = False,
) -> dict[str, pathlib.Path]:
    """Draw a set of images into `folder`; returns the paths of the results by kind.

    `batches(start)` draws from image number `start` of the set on. The folder then
    holds `images/000012_flags.png` for image number 12 (above 1,000 images in folders
    of 1,000), `grid.png` of at most a page, `samples.json` with the file, the number
    and the whole name of every image behind `facts`, `samples.npz` ("arr_0" uint8 [n,
    h, w, 3] and "labels", as the ADM evaluation suite reads it, or "prompts" without
    labels), and where asked for, `trajectory.gif` with the clean image implied at each
    step and the strip `stages.png`: an image's state at the end of each stage, a row an
    image (PixelFlow, Figure 3).

    A draw that was cut short goes on where it was and ends in the same files; one that
    is finished is left as it is; another draw's files are removed first. With several
    processes the first one writes. Raises PipelineError for a folder that holds
    something else, that another command writes to, or that cannot be written to.
    """
    leads = jax.process_index() == 0
    with contextlib.ExitStack() as held:
        if leads:
            _check_free(folder)
            held.enter_context(only_writer(folder))
        paths = _write(folder, batches, about, progress and leads)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("samples are written")
    return paths


def _write(
    folder: pathlib.Path, batches: Batches, about: Described, progress: bool
) -> dict[str, pathlib.Path]:
    """What `write_samples` does in a folder that nobody else writes to."""
    paths = about.results(folder)
    leads = jax.process_index() == 0
    writer = None
    if leads and _finished(paths, about):
        discard(folder)
    elif leads:
        writer = _Writer(folder, about)
    start = agreed(writer.start if writer else len(about.names))
    bar = tqdm(
        total=len(about.names),
        initial=start,
        unit="image",
        disable=not progress,
    )
    with bar:
        for place, drawn in batches(start) if start < len(about.names) else ():
            if writer:
                writer.add(place, drawn)
            bar.update(len(drawn.images))
    if writer:
        writer.finish(paths)
    return paths


def agreed(start: int) -> int:
    """Where the first process, which has the files, says that drawing begins."""
    if jax.process_count() == 1:
        return start
    return int(multihost_utils.broadcast_one_to_all(np.int32(start)))


def _finished(paths: dict[str, pathlib.Path], about: Described) -> bool:
    return (
        all(path.exists() for path in paths.values())
        and _digest_in(paths["json"]) == about.digest
    )


def _digest_in(path: pathlib.Path) -> str | None:
    """Which draw a samples.json describes; None where it is none, "" by old ones."""
    try:
        written = json.loads(path.read_text("utf-8"))
        return str(written.get("digest", "")) if "images" in written else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


class _Writer:
    """Writes the images of a draw as they come, and the rest at the end."""

    def __init__(self, folder: pathlib.Path, about: Described):
        self._about, self._folder = about, folder
        self._spool = Spool(folder, about.digest, len(about.names), about.shape)
        if about.stages or about.trajectory:
            self._spool.restart()  # the way there was in the killed process' memory
        self.start = self._spool.done
        if not self.start:
            _clear(folder)
        self._rows = about.shown()
        self._places = sorted(place for row in self._rows for place in row)
        self._clean: list[np.ndarray] = []
        self._stages: list[tuple[np.ndarray, ...]] = []

    def add(self, place: int, drawn: Generated) -> None:
        """Images from `place` on."""
        images, about = to_uint8(drawn.images), self._about
        if about.png:
            with self._spool.explained():
                for offset, image in enumerate(images):
                    path = self._folder / "images" / about.file(place + offset)
                    save_png(path, image)
        self._spool.add(place, images)
        kept = [p - place for p in self._places if 0 <= p - place < len(images)]
        if about.trajectory and drawn.clean is not None:
            self._clean.append(to_uint8(drawn.clean[:, kept]))
        if about.stages:
            self._stages.append(tuple(to_uint8(one[kept]) for one in drawn.stages))

    def finish(self, paths: dict[str, pathlib.Path]) -> None:
        """Write what is made of all images, and samples.json last."""
        about, spool = self._about, self._spool
        extra: dict[str, np.ndarray] = {"prompts": np.array(about.names)}
        if about.labels is not None:
            extra = {"labels": about.labels}
        spool.write_npz(paths["npz"], extra)
        images = spool.read(self._places)
        columns = max(map(len, self._rows))
        named = [[about.names[place] for place in row] for row in self._rows]
        labels = _row_labels(named)
        with spool.explained():
            save_png(paths["grid"], _grid(images, columns, labels))
            if about.stages:
                parts = zip(*self._stages, strict=True)
                strip = stage_strip(tuple(map(np.concatenate, parts)))
                save_png(paths["stages"], strip)
            if about.trajectory:
                frames = [*np.concatenate(self._clean, 1), images]
                frames = np.stack([_grid(frame, columns, labels) for frame in frames])
                save_animation(paths["trajectory"], frames, fps=10)
            self._write_json(paths["json"])
        spool.close()
        discard(self._folder)

    def _write_json(self, path: pathlib.Path) -> None:
        about = self._about
        kind = "prompt" if about.labels is None else "class"
        listed = [
            {"file": about.file(place), "number": about.first + place, kind: name}
            if about.png
            else {"number": about.first + place, kind: name}
            for place, name in enumerate(about.names)
        ]
        whole = {"digest": about.digest, **about.facts, "images": listed}
        with atomic_write(path) as partial:
            text = json.dumps(whole, indent=1, ensure_ascii=False)
            partial.write_text(text, encoding="utf-8")


def _check_free(folder: pathlib.Path) -> None:
    """PipelineError where a folder holds something else than samples."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise PipelineError(f"{folder} is a file: name a folder for the samples.")
    names = {path.name for path in folder.iterdir()}
    ours = SPOOL in names or _digest_in(folder / RESULTS["json"]) is not None
    if names and not ours:
        some = ", ".join(sorted(names)[:3])
        raise PipelineError(
            f"{folder} holds other files ({some}) and no samples, which would be mixed "
            "with them: name a new or empty folder with --out."
        )


def _clear(folder: pathlib.Path) -> None:
    """Remove an earlier draw: what this module wrote, and nothing else."""
    kinds = ("json", *(kind for kind in RESULTS if kind not in ("json", "images")))
    for kind in kinds:  # first what says that the draw is finished
        (folder / RESULTS[kind]).unlink(missing_ok=True)
    images = folder / RESULTS["images"]
    for path in images.rglob("*.png"):
        if OURS.fullmatch(path.name):
            path.unlink()
    for path in [*images.glob("*/"), images]:
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def file_name(number: int, name: str) -> str:
    """The file of image number `number`, which is of `name`: "000012_flags.png"."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name)[:SLUG].strip("-")
    return f"{number:06d}{slug and '_'}{slug}.png"


def stage_strip(stages: tuple[np.ndarray, ...]) -> np.ndarray:
    """States uint8 [n, h_k, w_k, 3] of every stage as n rows of equally large ones."""
    height = stages[-1].shape[1]
    shown = max(1, SHOWN // len(stages))
    columns = []
    for states in stages:
        times = height // states.shape[1]
        columns.append(states[:shown].repeat(times, axis=1).repeat(times, axis=2))
    rows = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
    return _grid(rows, len(stages), None)


def _row_labels(names: list[list[str]]) -> list[str] | None:
    """What each row of a grid is of, shortened; None where a row holds several."""
    if any(len(set(row)) > 1 for row in names):
        return None
    cut = lambda name: name if len(name) <= LABEL else f"{name[: LABEL - 3]}..."
    return [cut(row[0]) for row in names]


def picture_scale(shape: tuple[int, ...]) -> int:
    """How many times images (h, w, c) are enlarged in a grid."""
    return max(1, SMALL // shape[0])


def _grid(images: np.ndarray, columns: int, names: list[str] | None) -> np.ndarray:
    return grid(
        images, columns, row_labels=names, scale=picture_scale(images.shape[1:])
    )
