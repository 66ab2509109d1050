"""What tells the data of one run from those of another, wherever they lie.

A run that goes on must go on with the records that it began with, in their order: its
batches name them by number, and its labels classes. Names of records say which they
are, without a look at each file.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.data.source import (
    Identified,
    Source,
    class_changes,
    spread,
    spread_captions,
)
from pixelflow_jax.errors import UnreadableImage

CLASSES = "class_names"  # in a fingerprint: what the labels of a run mean
RECORDS = "records"  # there, too: a digest of which they are, in which order


def of_source(source: Source) -> dict[str, Any]:
    """What a source adds to a fingerprint: its classes, and which records it has."""
    return {CLASSES: list(source.class_names), RECORDS: _digest(source)}


def of_captions(source: Source, encoder: CaptionEncoder) -> str:
    """What tells this encoder and these captions from others: shapes and a digest."""
    entries = encoder(spread_captions(source, 1))
    shapes = [f"{name} {a.dtype}{list(a.shape[1:])}" for name, a in entries.items()]
    content = b"".join(np.ascontiguousarray(a).tobytes() for a in entries.values())
    return f"{', '.join(shapes)}, {hashlib.sha256(content).hexdigest()[:12]}"


def saved_class_names(state: dict[str, Any]) -> tuple[str, ...] | None:
    """The class names of the run that a loader's state belongs to, in label order.

    None for the state of an earlier version, which did not keep them.
    """
    names = state["fingerprint"].get(CLASSES)
    return None if names is None else tuple(names)


def changes(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, str]:
    """How a fingerprint differs from that of a checkpoint, by the part that does.

    One of an earlier version may hold less.
    """
    found = {
        name: f"{name} was {value!r} and is {own.get(name)!r}"
        for name, value in sorted(saved.items())
        if value != own.get(name)
    }
    if CLASSES in found:
        changed = class_changes(saved[CLASSES], own[CLASSES])
        found[CLASSES] = f"the classes are not those of then ({changed})"
    if RECORDS in found:
        found[RECORDS] = (
            "images were renamed, added, removed or replaced since then, so their "
            "numbers would mean others"
        )
    return found


def _digest(source: Source) -> str:
    """A digest of which records a split has, in which order.

    Of sources that are not `Identified` a few records are read instead.
    """
    lines = source.identity() if isinstance(source, Identified) else _probed(source)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _probed(source: Source) -> Iterator[str]:
    """A few records: not their pixels, which another decoder may make different."""
    for index in spread(len(source)):
        try:
            record = source[index]
        except UnreadableImage as error:
            yield f"{index} {error}"
        else:
            shape = record["image"].shape
            yield f"{record['name']} {record['label']} {record['captions']} {shape}"
