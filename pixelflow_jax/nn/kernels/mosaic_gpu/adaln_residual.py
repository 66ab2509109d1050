"""`adaln_residual` on GPUs by Mosaic: a row at a time, spread over a warpgroup.

Rows are read from and written to memory directly, and stay in registers; what the
gradients of vectors sum over tokens is summed within a program's tokens on the way.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import plgpu
from pixelflow_jax.nn.kernels.launch import (
    BACKWARD_TILE,
    EPS,
    forward_tile,
    group_of,
    take_references,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.adaln_residual import Arrays, Spec

THREADS = 128  # of a warpgroup
SIZES = (
    "widths in multiples of 128 up to 2,048, groups in multiples of 16 tokens, and "
    "groups of alike batches"
)


def supports(lengths: tuple[int, ...], width: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    whole = not width % THREADS and width <= 2048
    return whole and not any(length % BACKWARD_TILE for length in lengths)


def forward(spec: "Spec", arrays: "Arrays") -> list[Array]:
    """The sum and the modulated norm, as far as `spec` asks for them."""
    like = jax.ShapeDtypeStruct(arrays.x.shape, arrays.x.dtype)
    count = (spec.gate is not None) + (spec.shift_scale is not None)
    tile = forward_tile(sum(spec.lengths), len(arrays.x))
    return _launch(_forward_kernel, spec, arrays, (), [like] * count, tile)


def backward(
    spec: "Spec", arrays: "Arrays", cotangents: tuple, vectors: int
) -> list[Array]:
    """Gradients of x and the branch, and sums [b, tiles, vectors, width] over tiles."""
    b, n, width = arrays.x.shape
    like = jax.ShapeDtypeStruct(arrays.x.shape, arrays.x.dtype)
    count = (spec.gate is not None) + (spec.shift_scale is not None)
    shape = (b, n // BACKWARD_TILE, vectors, width)
    outs = [like] * count + [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _launch(_backward_kernel, spec, arrays, cotangents, outs, BACKWARD_TILE)


def _launch(kernel, spec, arrays, cotangents, outs, tile) -> list[Array]:
    """One program for each tile of tokens of each image; vectors float32."""
    b, n, width = arrays.x.shape
    modulation = arrays.modulation.astype(jnp.float32)
    modulation = modulation.reshape(*modulation.shape[:2], -1, width)
    single = lambda a: None if a is None else a.astype(jnp.float32)
    arrays = arrays._replace(
        modulation=modulation, bias=single(arrays.bias), gain=single(arrays.gain)
    )
    leaves, structure = jax.tree.flatten(arrays)
    run = plgpu.kernel(
        functools.partial(kernel, spec, structure, tile),
        out_type=list(outs),
        grid=(b, n // tile),
        grid_names=("image", "tile"),
        kernel_name=f"adaln_residual{kernel.__name__}",
    )
    return list(run(*leaves, *cotangents))


def _place(tile: int) -> tuple[Array, Array, Array]:
    """The program's image, its number among the tiles, and its first token."""
    image, number = jax.lax.axis_index("image"), jax.lax.axis_index("tile")
    return image, number, number * tile


def _forward_kernel(spec: "Spec", structure: Any, tile: int, *references):
    arrays, outs = take_references(structure, references)
    image, _, start = _place(tile)
    vectors = _vectors(spec, arrays, image, start)

    def row(i, nothing):
        at = (image, start + i)
        x = _row(arrays.x, at)
        if spec.gate is not None:
            x = _store(outs[0], at, x + vectors["gate"] * _branch(arrays, at, vectors))
        if spec.shift_scale is not None:
            unit, _ = _unit(x, spec.norm)
            _store(outs[-1], at, unit * vectors["factor"] + vectors["shift"])
        return nothing

    jax.lax.fori_loop(0, tile, row, None)


def _backward_kernel(spec: "Spec", structure: Any, tile: int, *references):
    arrays, rest = take_references(structure, references)
    modulated = spec.shift_scale is not None
    dnew_ref, outs = rest[0], rest[1 + modulated :]
    image, number, start = _place(tile)
    vectors = _vectors(spec, arrays, image, start)

    def row(i, sums):
        at = (image, start + i)
        dx, added, branch = _row(dnew_ref, at), (), None
        if spec.gate is not None:
            branch = _branch(arrays, at, vectors)
        if modulated:
            dz = _row(rest[1], at)
            x = _row(arrays.x, at)
            if branch is not None:  # as the forward pass has rounded it
                x = (x + vectors["gate"] * branch).astype(arrays.x.dtype)
                x = x.astype(jnp.float32)
            unit, inverse = _unit(x, spec.norm)
            added, dunit = (dz, dz * unit), dz * vectors["factor"]
            along = _mean(dunit * unit)
            mean = _mean(dunit) if spec.norm == "layer" else 0.0
            dx = dx + inverse * (dunit - mean - unit * along)
            _store(outs[0], at, dx)
        if branch is not None:
            dbranch = dx * vectors["gate"]
            _store(outs[int(modulated)], at, dbranch)
            of_bias = () if arrays.bias is None else (dbranch,)
            added = (dx * branch, *of_bias, *added)
        return tuple(s + a for s, a in zip(sums, added, strict=True))

    width = arrays.x.shape[-1]
    layout = _layout(width)
    zero = plgpu.layout_cast(jnp.zeros((width,), jnp.float32), layout)
    sums = jax.lax.fori_loop(0, tile, row, (zero,) * outs[-1].shape[2])
    for index, value in enumerate(sums):
        outs[-1][image, number, index] = value


def _layout(width: int) -> Any:
    """A row over all threads, in as wide pieces as bfloat16 is read in."""
    return plgpu.Layout.WG_STRIDED((width,), vec_size=math.gcd(width // THREADS, 8))


def _load(ref: Any, at: tuple) -> Array:
    layout = _layout(ref.shape[-1])
    if jax.__version_info__ < (0, 11):  # wants the place apart, which others warn of
        return plgpu.load(ref, at, layout=layout, optimized=False)
    place = ref.at[at] if at else ref
    return plgpu.load(place, layout=layout, optimized=False)


def _row(ref: Any, at: tuple) -> Array:
    return _load(ref, at).astype(jnp.float32)


def _store(ref: Any, at: tuple, value: Array) -> Array:
    """Writes a row; returns it as it was rounded, float32."""
    rounded = value.astype(ref.dtype)
    ref[at] = rounded
    return rounded.astype(jnp.float32)


def _vectors(spec: "Spec", arrays: Any, image: Array, start: Array) -> dict[str, Array]:
    """The vectors that a program's rows need, each read once."""
    group, _ = group_of(start, spec.lengths)
    chunk = lambda number: _load(arrays.modulation, (image, group, number))
    found = {}
    if spec.gate is not None:
        found["gate"] = chunk(spec.gate)
        if arrays.bias is not None:
            found["bias"] = _load(arrays.bias, ())
    if spec.shift_scale is not None:
        shift, scale = spec.shift_scale
        found["shift"], found["factor"] = chunk(shift), 1.0 + chunk(scale)
        if arrays.gain is not None:
            found["factor"] *= _load(arrays.gain, ())
    return found


def _branch(arrays: Any, at: tuple, vectors: dict[str, Array]) -> Array:
    branch = _row(arrays.branch, at)
    return branch if arrays.bias is None else branch + vectors["bias"]


def _mean(row: Array) -> Array:
    return jnp.sum(row) / row.shape[0]


def _unit(row: Array, norm: str) -> tuple[Array, Array]:
    """The row without its mean ("layer") and over its deviation; 1 / deviation."""
    row = row - _mean(row) if norm == "layer" else row
    inverse = jax.lax.rsqrt(_mean(row * row) + EPS)
    return row * inverse, inverse
