"""Declarative tables between our parameter paths and an official state dict.

A table is a list of rows; the same rows load and export. A row whose official name
holds `{i}` gathers the layers `layers` into one array with a leading layer axis; a row
with several official names holds them side by side in its last axis, and one with
several paths of ours divides its last axis among them.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """A change of layout, official -> ours and back."""

    load: Callable[[np.ndarray], np.ndarray]
    export: Callable[[np.ndarray], np.ndarray]


same = Transform(lambda a: a, lambda a: a)
transpose = Transform(
    np.transpose, np.transpose
)  # linear layers: [out, in] <-> [in, out]

# A parameter of one more axis there, of length 1: [1, ...] <-> [...].
leading = Transform(lambda a: a[0], lambda a: a[None])


def patch_inputs(channels: int, patch: int) -> Transform:
    """Linear layer on patches: [out, (c, ph, pw)] <-> [(ph, pw, c), out]."""

    def load(a: np.ndarray) -> np.ndarray:
        a = a.reshape(-1, channels, patch, patch).transpose(2, 3, 1, 0)
        return a.reshape(-1, a.shape[-1])

    def export(a: np.ndarray) -> np.ndarray:
        a = a.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)
        return a.reshape(a.shape[0], -1)

    return Transform(load, export)


def patch_outputs(channels: int, patch: int) -> Transform:
    """Linear layer to patches, or its bias: rows (c, ph, pw) <-> columns (ph, pw, c)"""

    def load(a: np.ndarray) -> np.ndarray:
        rest = a.shape[1:]
        a = a.reshape(channels, patch, patch, *rest)
        return np.moveaxis(a, 0, 2).reshape(-1, *rest).transpose()

    def export(a: np.ndarray) -> np.ndarray:
        a = a.transpose()
        rest = a.shape[1:]
        a = a.reshape(patch, patch, channels, *rest)
        return np.moveaxis(a, 2, 0).reshape(-1, *rest)

    return Transform(load, export)


def patch_convolution(channels: int, patch: int) -> Transform:
    """Convolution with a stride of `patch`: [out, c, ph, pw] <-> [(ph, pw, c), out]."""
    flat = patch_inputs(channels, patch)

    def export(a: np.ndarray) -> np.ndarray:
        return flat.export(a).reshape(-1, channels, patch, patch)

    return Transform(flat.load, export)


@dataclasses.dataclass(frozen=True)
class Row:
    """Our path ("/" between names), the official keys, the layout change, the layers.

    `theirs` is one key, or a tuple of keys of equal shape whose tensors, their layout
    changed, make ours side by side. `ours` may be a tuple of paths in the same way.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    transform: Transform = same
    layers: range | None = None

    def keys(self) -> list[str]:
        """The official keys this row stands for, layer by layer."""
        names = _several(self.theirs)
        if self.layers is None:
            return list(names)
        return [name.format(i=i) for i in self.layers for name in names]

    def join(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Our array from the official tensors, in the order of `keys`."""
        parts = [self.transform.load(tensor) for tensor in tensors]
        n = len(_several(self.theirs))
        if n > 1:
            starts = range(0, len(parts), n)
            parts = [np.concatenate(parts[i : i + n], axis=-1) for i in starts]
        return parts[0] if self.layers is None else np.stack(parts)

    def split(self, value: np.ndarray) -> list[np.ndarray]:
        """The inverse of `join`."""
        layers = [value] if self.layers is None else list(value)
        n = len(_several(self.theirs))
        parts = [part for a in layers for part in np.split(a, n, axis=-1)]
        return [self.transform.export(part) for part in parts]

    def get(self, params: dict) -> np.ndarray:
        """Our array: that of the path, or those of all paths side by side."""
        parts = [np.asarray(_get(params, path)) for path in _several(self.ours)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def put(self, params: dict, value: np.ndarray) -> None:
        """The inverse of `get`."""
        paths = _several(self.ours)
        for path, part in zip(paths, np.split(value, len(paths), -1), strict=True):
            _set(params, path, np.ascontiguousarray(part))

    def shape(self, shapes: dict) -> tuple[int, ...]:
        """The shape of our array, from those of the model's parameters."""
        paths = _several(self.ours)
        *lead, last = _get(shapes, paths[0]).shape
        return (*lead, len(paths) * last)


def linear_rows(
    ours: str | tuple[str, ...],
    theirs: str | tuple[str, ...],
    layers: range | None = None,
    *,
    layout: Transform = transpose,
    bias: bool = True,
) -> list[Row]:
    """Rows of a linear layer, or of several on either side that are one on the other.

    `layout` is the kernel's; a bias keeps its own.
    """

    def ends(names: str | tuple[str, ...], end: str) -> tuple[str, ...]:
        return tuple(name + end for name in _several(names))

    rows = [Row(ends(ours, "/kernel"), ends(theirs, ".weight"), layout, layers)]
    if bias:
        rows.append(Row(ends(ours, "/bias"), ends(theirs, ".bias"), same, layers))
    return rows


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def load(
    table: list[Row], tensors: Mapping[str, np.ndarray], shapes: dict | None = None
) -> dict:
    """Our nested dict of parameters from official tensors.

    Raises ValueError with every missing, unexpected and (given the model's `shapes`)
    misshapen key.
    """
    wanted = {key for row in table for key in row.keys()}
    problems = [f"missing: {key}" for key in sorted(wanted - set(tensors))]
    problems += [f"unexpected: {key}" for key in sorted(set(tensors) - wanted)]
    problems += _misshapen(table, tensors, shapes) if shapes else []
    if problems:
        raise ValueError("The official weights do not fit:\n  " + "\n  ".join(problems))
    params: dict = {}
    for row in table:
        row.put(params, row.join([np.asarray(tensors[key]) for key in row.keys()]))
    return params


def _misshapen(
    table: list[Row], tensors: Mapping[str, np.ndarray], shapes: dict
) -> list[str]:
    """Official tensors whose shape is not that of our parameter, exported."""
    problems = []
    for row in table:
        # A view of one element stands for our array: only shapes matter here.
        ours = row.split(np.broadcast_to(False, row.shape(shapes)))
        problems += [
            f"misshapen: {key}: {tensors[key].shape}, not {part.shape}"
            for key, part in zip(row.keys(), ours, strict=True)
            if key in tensors and tuple(tensors[key].shape) != part.shape
        ]
    return problems


def export(table: list[Row], params: dict) -> dict[str, np.ndarray]:
    """Official tensors from our parameters; the inverse of `load`."""
    tensors = {}
    for row in table:
        parts = row.split(row.get(params))
        for key, part in zip(row.keys(), parts, strict=True):
            tensors[key] = np.ascontiguousarray(part)
    return tensors


def _get(tree: dict, path: str) -> object:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _set(tree: dict, path: str, value: np.ndarray) -> None:
    *parents, last = path.split("/")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
