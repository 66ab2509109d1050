"""Images for text suites, laid out as the official scorers read them.

The folder of images holds nothing else; what decides them stands in a manifest beside
it, which comes last: without it the images are not complete.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from pixelflow_jax.atomic import PARTIAL, atomic_write
from pixelflow_jax.data.images import save_png
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation.suite_prompts import TILES, Item
from pixelflow_jax.sampling.output import agreed
from pixelflow_jax.sampling.spool import only_writer
from pixelflow_jax.sampling.stream import Stream


def draw_suite(
    name: str,
    items: Sequence[Item],
    stream: Stream,
    out: pathlib.Path,
    facts: Mapping[str, Any],
) -> dict[str, pathlib.Path]:
    """Draw the images of a suite's items to OUT/NAME; returns the paths by kind.

    `stream` draws each item's images, one item after the other. What was cut short goes
    on with the first item that lacks one. OUT/NAME.json, the manifest, lists every
    image's prompt and number behind `facts` and all that decides the draw. Raises
    EvaluationError where OUT/NAME holds other images.
    """
    wanted = sum(item.images for item in items)
    if wanted != stream.draw.count:
        raise ValueError(f"{wanted} images are wanted, {stream.draw.count} drawn.")
    folder, manifest = out / name, out / f"{name}.json"
    paths = {"images": folder, "manifest": manifest}
    leads = jax.process_index() == 0
    with contextlib.ExitStack() as held:
        if leads:
            held.enter_context(only_writer(folder))
        _draw_items(folder, manifest, items, stream)
        if leads and not manifest.exists():
            _write_json(manifest, _manifest(name, items, stream, facts))
            _state(manifest).unlink(missing_ok=True)
    return paths


def _draw_items(
    folder: pathlib.Path, manifest: pathlib.Path, items: Sequence[Item], stream: Stream
) -> None:
    """The images that are not there yet; the first process writes."""
    leads = jax.process_index() == 0
    first = _begin(folder, manifest, stream.draw.digest, items) if leads else 0
    start, wanted = (
        agreed(sum(item.images for item in items[:first])),
        stream.draw.count,
    )
    with tqdm(total=wanted, initial=start, unit="image", disable=not leads) as bar:
        images = _one_by_one(stream, start, bar)
        for item in items[first:] if leads else ():
            _write(folder, item, [next(images) for _ in range(item.images)])
        for _ in images:  # where another process writes
            pass


def _begin(
    folder: pathlib.Path, manifest: pathlib.Path, digest: str, items: Sequence[Item]
) -> int:
    """Make the folder this draw's; returns the number of the first item to draw."""
    state = _state(manifest)
    known = _digest(state) or _digest(manifest)
    filled = folder.is_dir() and any(folder.iterdir())
    if filled and known != digest:
        theirs = f"of the draw {known[:12]}" if known else "not of this command"
        raise EvaluationError(
            f"{folder} holds images {theirs}; this one is {digest[:12]} (other "
            "weights, settings, seed or prompts), and they would be mixed: name "
            "another --out, or remove the folder."
        )
    missing = _missing(folder, items)
    if missing is None and _digest(manifest) == digest:
        return len(items)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(state, {"draw": {"digest": digest}})
    manifest.unlink(missing_ok=True)
    for partial in folder.rglob(f".*{PARTIAL}"):  # of a killed process
        partial.unlink()
    return len(items) if missing is None else missing


def _state(manifest: pathlib.Path) -> pathlib.Path:
    """Says whose images there are while the manifest is not written."""
    return manifest.with_name(f".{manifest.stem}.drawing.json")


def _missing(folder: pathlib.Path, items: Sequence[Item]) -> int | None:
    """The number of the first item that lacks a file, of those that are written."""
    for number, item in enumerate(items):
        files = [*item.files, *(item.metadata[:1] if item.metadata else ())]
        if not all((folder / file).is_file() for file in files):
            return number
    return None


def _one_by_one(stream: Stream, start: int, bar: tqdm) -> Iterator[np.ndarray]:
    if start == stream.draw.count:
        return
    for _, images in stream(start):
        for image in images:
            bar.update()
            yield image


def _write(folder: pathlib.Path, item: Item, images: list[np.ndarray]) -> None:
    """The files of an item, each whole or not at all."""
    if item.metadata:
        file, text = item.metadata
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / file) as partial:
            partial.write_text(text, "utf-8")
    if item.tiles:
        rows = [images[i : i + TILES] for i in range(0, len(images), TILES)]
        images = [np.concatenate([np.concatenate(row, 1) for row in rows], 0)]
    for file, image in zip(item.files, images, strict=True):
        save_png(folder / file, image)


def _manifest(
    name: str, items: Sequence[Item], stream: Stream, facts: Mapping[str, Any]
) -> dict[str, Any]:
    number, listed = stream.draw.request.first, []
    seeds = stream.draw.request.seeds
    for item in items:
        step = item.images // len(item.files)  # images in a file
        for file in item.files:
            numbers = list(range(number, number + step))
            entry = {"file": file, "numbers": numbers, "prompt": item.prompt}
            if seeds is not None:
                entry["seeds"] = [int(seeds[place]) for place in numbers]
            listed.append(entry)
            number += step
    draw = {"digest": stream.draw.digest, **stream.draw.facts()}
    return {"suite": name, **facts, "draw": draw, "images": listed}


def _digest(path: pathlib.Path) -> str:
    """Which draw a manifest or a state is of; "" where there is none."""
    try:
        return str(json.loads(path.read_text("utf-8"))["draw"]["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as partial:
        text = json.dumps(content, indent=1, ensure_ascii=False)
        partial.write_text(text + "\n", "utf-8")
