"""Declarative tables between our parameter paths and an official state dict.

A table is a list of rows; the same rows load and export. A row whose official name
holds `{i}` gathers the layers `layers` into one array with a leading layer axis; a row
with several official names holds them side by side in its last axis, and one with
several paths of ours divides its last axis among them.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import traverse_util

from pixelflow_jax.tensors.lazy import LazyTensor

Tensor = np.ndarray | LazyTensor


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
        return [key for layer in self.layer_keys() for key in layer]

    def layer_keys(self) -> list[list[str]]:
        """The official keys, those of one layer together."""
        names = _several(self.theirs)
        if self.layers is None:
            return [list(names)]
        return [[name.format(i=i) for name in names] for i in self.layers]

    def paths(self) -> tuple[str, ...]:
        """Our paths."""
        return _several(self.ours)

    def join(self, official: list[np.ndarray]) -> list[np.ndarray]:
        """Our arrays of one layer, in the order of `paths`, from its official ones."""
        whole = _side_by_side([self.transform.load(array) for array in official])
        return np.split(whole, len(self.paths()), axis=-1)

    def split(self, ours: list[np.ndarray]) -> list[np.ndarray]:
        """The inverse of `join`."""
        parts = np.split(_side_by_side(ours), len(_several(self.theirs)), axis=-1)
        return [self.transform.export(part) for part in parts]


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


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def problems(
    table: list[Row], tensors: Mapping[str, Tensor], shapes: dict | None = None
) -> list[str]:
    """Every missing, unexpected and (given the model's `shapes`) misshapen key.

    A key is type_errors where the tensors that become one array of ours differ in type, or
    are no floating-point numbers.
    """
    wanted = {key for row in table for key in row.keys()}
    found = [f"missing: {key}" for key in sorted(wanted - set(tensors))]
    found += [f"unexpected: {key}" for key in sorted(set(tensors) - wanted)]
    for row in table:
        given = {key: tensors[key] for key in row.keys() if key in tensors}
        official = official_shapes(row, shapes) if shapes else {}
        misshapen = [
            f"misshapen: {key}: {tuple(tensor.shape)}, not {official[key]}"
            for key, tensor in given.items()
            if shapes and tuple(tensor.shape) != official[key]
        ]
        found += misshapen or _mistyped(given)
    return found


def _mistyped(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors of one row that are no floating-point numbers, or of several types."""
    types = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(types) < 2 and all(re.fullmatch(r"b?float\d+", name) for name in types):
        return []
    return [
        f"type_errors: {', '.join(tensors)}: {', '.join(types)}, not one float type"
    ]


def official_shapes(row: Row, shapes: dict) -> dict[str, tuple[int, ...]]:
    """The shapes of a row's official tensors, from those of the model's parameters."""
    lead = 0 if row.layers is None else 1
    # A view of one element stands for our array: only shapes matter here.
    ours = [np.broadcast_to(False, _get(shapes, p).shape[lead:]) for p in row.paths()]
    parts = [part.shape for part in row.split(ours)]
    return {k: s for keys in row.layer_keys() for k, s in zip(keys, parts, strict=True)}


def imported(table: list[Row], tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Our parameters, flat, from official tensors that fit (see `problems`).

    Nothing is read before it is asked for, and then layer by layer.
    """
    found = {}
    for row in table:
        sources = [
            [LazyTensor.of(tensors[key]) for key in keys] for keys in row.layer_keys()
        ]
        empty = [np.broadcast_to(False, source.shape) for source in sources[0]]
        for index, (path, part) in enumerate(
            zip(row.paths(), row.join(empty), strict=True)
        ):
            found[path] = _imported(row, index, part.shape, sources)
    return found


def _imported(
    row: Row, index: int, shape: tuple[int, ...], sources: list[list[LazyTensor]]
) -> LazyTensor:
    """Our array number `index` of a row; `shape` is that of one layer."""

    def layer(i: int) -> np.ndarray:
        parts = row.join([source.read() for source in sources[i]])
        return np.ascontiguousarray(parts[index])

    dtype = sources[0][0].dtype
    if row.layers is None:
        return LazyTensor(
            shape, dtype, lambda i: layer(0) if i is None else layer(0)[i]
        )

    def fetch(i: int | None) -> np.ndarray:
        return np.stack([*map(layer, range(len(sources)))]) if i is None else layer(i)

    return LazyTensor((len(sources), *shape), dtype, fetch, stacked=True)


def exported(table: list[Row], params: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Official tensors from our parameters, flat; the inverse of `imported`."""
    found = {}
    for row in table:
        ours = [LazyTensor.of(params[path]) for path in row.paths()]
        lead = 0 if row.layers is None else 1
        empty = [np.broadcast_to(False, stored.shape[lead:]) for stored in ours]
        shapes = [part.shape for part in row.split(empty)]
        for i, keys in enumerate(row.layer_keys()):
            layer = None if row.layers is None else i
            for index, key in enumerate(keys):
                fetch = _exporting(row, ours, layer, index)
                found[key] = LazyTensor(shapes[index], ours[0].dtype, fetch)
    return found


def _exporting(
    row: Row, ours: list[LazyTensor], layer: int | None, index: int
) -> Callable[[int | None], np.ndarray]:
    def fetch(i: int | None) -> np.ndarray:
        part = row.split([stored.fetch(layer) for stored in ours])[index]
        return np.ascontiguousarray(part if i is None else part[i])

    return fetch


def load(
    table: list[Row], tensors: Mapping[str, Tensor], shapes: dict | None = None
) -> dict:
    """Our nested dict of parameters from official tensors.

    Raises ValueError with all that `problems` finds.
    """
    if found := problems(table, tensors, shapes):
        raise ValueError("The official weights do not fit:\n  " + "\n  ".join(found))
    flat = {path: stored.read() for path, stored in imported(table, tensors).items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def export(table: list[Row], params: dict) -> dict[str, np.ndarray]:
    """Official tensors from our nested dict of parameters; the inverse of `load`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return {key: stored.read() for key, stored in exported(table, flat).items()}


def _get(tree: dict, path: str) -> jax.ShapeDtypeStruct:
    for name in path.split("/"):
        tree = tree[name]
    return tree
