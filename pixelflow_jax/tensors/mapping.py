"""Declarative tables between our parameter paths and an official state dict.

A table is a list of rows; the same rows load and export. A row whose official name
holds `{i}` gathers the layers `layers` into one array with a leading layer axis; a row
with several official names holds them side by side in its last axis, and one with
several paths of ours divides its last axis among them.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.nn.precision import Precision, is_matrix
from pixelflow_jax.tensors.layouts import Layout, same, transpose
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.paths import by_path, nested

Tensor = np.ndarray | LazyTensor
Names = str | tuple[str, ...]
Shape = tuple[int, ...]
NOTHING = r"(?!)"  # the regular expression that no name matches


@dataclasses.dataclass(frozen=True)
class Row:
    """Our path ("/" between names), the official keys, the layout, the layers, a shape.

    `theirs` is one key, or a tuple of keys of equal shape whose tensors, their layout
    changed, make ours side by side. `ours` may be a tuple of paths in the same way.
    `shape` is that of each official tensor; None: it follows from the shapes of the
    model's parameters, where these are given.
    """

    ours: Names
    theirs: Names
    layout: Layout = same
    layers: range | None = None
    shape: Shape | None = None

    def keys(self) -> list[str]:
        """The official keys this row stands for, layer by layer."""
        return [key for layer in self.layer_keys() for key in layer]

    def layer_keys(self) -> list[list[str]]:
        """The official keys, those of one layer together."""
        if self.layers is None:
            return [list(self.names())]
        return [[name.format(i=i) for name in self.names()] for i in self.layers]

    def names(self) -> tuple[str, ...]:
        """The official keys, those with a layer's number before it is filled in."""
        return _several(self.theirs)

    def paths(self) -> tuple[str, ...]:
        """Our paths."""
        return _several(self.ours)

    def join(self, official: list[np.ndarray]) -> list[np.ndarray]:
        """Our arrays of one layer, in the order of `paths`, from its official ones."""
        whole = _side_by_side([self.layout.load(array) for array in official])
        return np.split(whole, len(self.paths()), axis=-1)

    def split(self, ours: list[np.ndarray]) -> list[np.ndarray]:
        """The inverse of `join`."""
        parts = np.split(_side_by_side(ours), len(self.names()), axis=-1)
        return [self.layout.export(part) for part in parts]

    def official_shapes(self, ours: dict | None) -> dict[str, Shape]:
        """The shapes of the official tensors; {} where nothing tells them.

        `ours` are the shapes of the model's parameters, as nested dicts.
        """
        if self.shape is not None:
            return dict.fromkeys(self.keys(), self.shape)
        if ours is None:
            return {}
        lead = 0 if self.layers is None else 1
        arrays = [_shape_alone(_get(ours, p).shape[lead:]) for p in self.paths()]
        shapes = [part.shape for part in self.split(arrays)]
        layers = self.layer_keys()
        return {k: s for keys in layers for k, s in zip(keys, shapes, strict=True)}

    def our_shapes(self, official: Shape) -> dict[str, Shape]:
        """The shapes of our arrays, by path, from that of each official tensor."""
        arrays = self.join([_shape_alone(official)] * len(self.names()))
        lead = () if self.layers is None else (len(self.layers),)
        shapes = [(*lead, *array.shape) for array in arrays]
        return dict(zip(self.paths(), shapes, strict=True))


def linear_rows(
    ours: Names,
    theirs: Names,
    layers: range | None = None,
    *,
    layout: Layout = transpose,
    bias: bool = True,
    shape: Shape | None = None,
) -> list[Row]:
    """Rows of a linear layer, or of several on either side that are one on the other.

    `layout` is the kernel's, `shape` that of its official tensor, which begins with the
    number of outputs; a bias keeps its layout.
    """

    def ends(names: Names, end: str) -> tuple[str, ...]:
        return tuple(name + end for name in _several(names))

    kernel, weight = ends(ours, "/kernel"), ends(theirs, ".weight")
    rows = [Row(kernel, weight, layout, layers, shape)]
    if bias:
        own = shape and shape[:1]
        rows.append(Row(ends(ours, "/bias"), ends(theirs, ".bias"), same, layers, own))
    return rows


def norm_rows(ours: str, theirs: str, width: int) -> list[Row]:
    """Rows of a layer norm with weight and bias."""
    names = ("weight", "bias")
    return [Row(f"{ours}/{n}", f"{theirs}.{n}", shape=(width,)) for n in names]


def stacked_rows(rows: Iterable[Row], ours: str, theirs: str, depth: int) -> list[Row]:
    """Rows of one block as rows of a stack of `depth` blocks.

    `ours` and `theirs` are what precedes the names of a block; `theirs` holds `{i}`.
    """
    return [
        dataclasses.replace(
            row,
            ours=tuple(ours + path for path in row.paths()),
            theirs=tuple(theirs + name for name in row.names()),
            layers=range(depth),
        )
        for row in rows
    ]


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _shape_alone(shape: Shape) -> np.ndarray:
    """An array of that shape that takes no memory: a view of one element."""
    return np.broadcast_to(False, shape)


def problems(
    table: list[Row],
    tensors: Mapping[str, Tensor],
    shapes: dict | None = None,
    ignored: str = NOTHING,
) -> list[str]:
    """Every missing, unexpected, misshapen and mistyped key, a line each.

    Shapes are checked where the rows or the model's `shapes` tell them. Names that
    match the regular expression `ignored` are known and not used. A key is mistyped
    where the tensors that become one array of ours differ in type, or are no
    floating-point numbers.
    """
    wanted = {key for row in table for key in row.keys()}
    given = {key for key in tensors if not re.fullmatch(ignored, key)}
    lines = [f"missing: {key}" for key in sorted(wanted - given)]
    lines += [f"unexpected: {key}" for key in sorted(given - wanted)]
    for row in table:
        own = {key: tensors[key] for key in row.keys() if key in given}
        official = row.official_shapes(shapes)
        misshapen = [
            f"misshapen: {key}: {tuple(tensor.shape)}, not {official[key]}"
            for key, tensor in own.items()
            if official and tuple(tensor.shape) != official[key]
        ]
        lines += misshapen or _mistyped(own)
    return lines


def _mistyped(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors of one row that are no floating-point numbers, or of several types."""
    types = sorted({str(tensor.dtype) for tensor in tensors.values()})
    if len(types) < 2 and all(re.fullmatch(r"b?float\d+", name) for name in types):
        return []
    return [f"mistyped: {', '.join(tensors)}: {', '.join(types)}, not one float type"]


def imported(table: list[Row], tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Our parameters, flat, from official tensors that fit (see `problems`).

    Nothing is read before it is asked for, and then layer by layer.
    """
    params = {}
    for row in table:
        sources = [
            [LazyTensor.of(tensors[key]) for key in keys] for keys in row.layer_keys()
        ]
        shapes = row.our_shapes(sources[0][0].shape)
        for index, (path, shape) in enumerate(shapes.items()):
            params[path] = _imported(row, index, shape, sources)
    return params


def _imported(
    row: Row, index: int, shape: Shape, sources: list[list[LazyTensor]]
) -> LazyTensor:
    """Our array number `index` of a row."""

    def layer(i: int) -> np.ndarray:
        parts = row.join([source.read() for source in sources[i]])
        return np.ascontiguousarray(parts[index])

    def fetch(i: int | None) -> np.ndarray:
        if row.layers is None:
            return layer(0) if i is None else layer(0)[i]
        return np.stack([*map(layer, range(len(sources)))]) if i is None else layer(i)

    dtype = sources[0][0].dtype
    return LazyTensor(shape, dtype, fetch, stacked=row.layers is not None)


def exported(table: list[Row], params: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Official tensors from our parameters, flat; the inverse of `imported`."""
    tensors = {}
    for row in table:
        ours = [LazyTensor.of(params[path]) for path in row.paths()]
        lead = 0 if row.layers is None else 1
        alone = [_shape_alone(stored.shape[lead:]) for stored in ours]
        shapes = [part.shape for part in row.split(alone)]
        for i, keys in enumerate(row.layer_keys()):
            layer = None if row.layers is None else i
            for index, key in enumerate(keys):
                fetch = _exporting(row, ours, layer, index)
                tensors[key] = LazyTensor(shapes[index], ours[0].dtype, fetch)
    return tensors


def _exporting(
    row: Row, ours: list[LazyTensor], layer: int | None, index: int
) -> Callable[[int | None], np.ndarray]:
    def fetch(i: int | None) -> np.ndarray:
        part = row.split([stored.fetch(layer) for stored in ours])[index]
        return np.ascontiguousarray(part if i is None else part[i])

    return fetch


def load(
    table: list[Row],
    tensors: Mapping[str, Tensor],
    shapes: dict | None = None,
    *,
    name: str = "The official state dict",
    ignored: str = NOTHING,
    precision: Precision | None = None,
) -> dict:
    """Our nested dict of parameters from official tensors.

    Without a `precision` they keep their types; with one, matrices are cast to its type
    and the rest to float32 as they are read, one layer's tensors at a time. Raises
    WeightsError, which begins with `name`, with all that `problems` lists.
    """
    if listed := problems(table, tensors, shapes, ignored):
        raise WeightsError(
            f"{name} holds other weights than expected:\n  " + "\n  ".join(listed)
        )
    flat = {
        path: _read(stored, _dtype(path, precision) or stored.dtype)
        for path, stored in imported(table, tensors).items()
    }
    return nested(flat)


def _dtype(path: str, precision: Precision | None) -> np.dtype | None:
    """The type that a precision has a parameter cast to."""
    if precision is None:
        return None
    is_cast = is_matrix(path.split("/")[-1])
    return np.dtype(precision.dtype if is_cast else np.float32)


def _read(stored: LazyTensor, dtype: np.dtype) -> np.ndarray:
    if not stored.stacked:
        return np.asarray(stored.read(), dtype)
    whole = np.empty(stored.shape, dtype)
    for i, part in enumerate(stored.parts()):
        whole[i] = part
    return whole


def shapes(table: list[Row], precision: Precision | None = None) -> dict:
    """What `load` returns for a table whose rows tell their shapes, as shapes.

    Without a `precision`, as float32.
    """
    flat = {}
    for row in table:
        assert row.shape is not None, f"the row of {row.ours} tells no shape"
        for path, shape in row.our_shapes(row.shape).items():
            dtype = _dtype(path, precision) or np.dtype(np.float32)
            flat[path] = jax.ShapeDtypeStruct(shape, dtype)
    return nested(flat)


def export(table: list[Row], params: dict) -> dict[str, np.ndarray]:
    """Official tensors from our nested dict of parameters; the inverse of `load`."""
    flat = by_path(params)
    return {key: stored.read() for key, stored in exported(table, flat).items()}


def _get(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
