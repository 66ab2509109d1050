"""Declarative tables between our parameter paths and an official state dict.

A table is a list of rows; the same rows load and export. A row whose official name
holds `{i}` gathers the layers `layers` into one array with a leading layer axis.
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


@dataclasses.dataclass(frozen=True)
class Row:
    """Our path ("/" between names), the official key, the layout change, the layers."""

    ours: str
    theirs: str
    transform: Transform = same
    layers: range | None = None

    def keys(self) -> list[str]:
        """The official keys this row stands for."""
        if self.layers is None:
            return [self.theirs]
        return [self.theirs.format(i=i) for i in self.layers]


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
        parts = [row.transform.load(np.asarray(tensors[key])) for key in row.keys()]
        value = parts[0] if row.layers is None else np.stack(parts)
        _set(params, row.ours, value)
    return params


def _misshapen(
    table: list[Row], tensors: Mapping[str, np.ndarray], shapes: dict
) -> list[str]:
    """Official tensors whose shape is not that of our parameter, exported."""
    problems = []
    for row in table:
        shape = _get(shapes, row.ours).shape[0 if row.layers is None else 1 :]
        expected = row.transform.export(np.empty(shape, np.bool_)).shape
        problems += [
            f"misshapen: {key}: {tensors[key].shape}, not {expected}"
            for key in row.keys()
            if key in tensors and tuple(tensors[key].shape) != expected
        ]
    return problems


def export(table: list[Row], params: dict) -> dict[str, np.ndarray]:
    """Official tensors from our parameters; the inverse of `load`."""
    tensors = {}
    for row in table:
        value = np.asarray(_get(params, row.ours))
        parts = [value] if row.layers is None else list(value)
        for key, part in zip(row.keys(), parts, strict=True):
            tensors[key] = np.ascontiguousarray(row.transform.export(part))
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
