"""`adaln_residual` on TPUs: a tile of whole rows a program, in vector memory.

Each program reads its tokens once and writes their results once; what the gradients of
vectors sum over tokens is summed within its tile on the way.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl
from pixelflow_jax.nn.kernels.launch import (
    EPS,
    Launch,
    block,
    group_of,
    launch,
    take_references,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.adaln_residual import Arrays, Spec

TILES = (256, 128, 64, 32, 16)  # tokens a program; sixteen fill a tile of bfloat16
LARGEST = 128 * 1152  # numbers of a tile: twice its blocks and sums fit into the memory
SIZES = (
    "widths in multiples of 128 of at most 9,216, groups in multiples of 16 tokens, "
    "and groups of alike batches"
)


def supports(lengths: tuple[int, ...], width: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    whole = not width % 128 and not any(length % TILES[-1] for length in lengths)
    return whole and TILES[-1] * width <= LARGEST


def tile_of(lengths: tuple[int, ...], width: int) -> int:
    """The tokens of a program: of one group, and of no more than fit."""
    fits = (t for t in TILES if t * width <= LARGEST)
    return next(t for t in fits if not any(length % t for length in lengths))


def forward(spec: "Spec", arrays: "Arrays") -> list[Array]:
    """The sum and the modulated norm, as far as `spec` asks for them."""
    count = (spec.gate is not None) + (spec.shift_scale is not None)
    return _launch(_forward_kernel, spec, arrays, (), [_like(arrays)] * count)


def backward(
    spec: "Spec", arrays: "Arrays", cotangents: tuple, vectors: int
) -> list[Array]:
    """Gradients of x and the branch, and sums [b, tiles, vectors, width] over tiles."""
    count = (spec.gate is not None) + (spec.shift_scale is not None)
    b, n, width = arrays.x.shape
    tiles = n // tile_of(spec.lengths, width)
    sums = jax.ShapeDtypeStruct((b, tiles, vectors, width), jnp.float32)
    outs = [*[_like(arrays)] * count, sums]
    return _launch(_backward_kernel, spec, arrays, cotangents, outs)


def _like(arrays: "Arrays") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(arrays.x.shape, arrays.x.dtype)


def _launch(kernel, spec, arrays, cotangents, outs):
    """One program for each tile of tokens of each image; vectors as rows, float32."""
    b, n, width = arrays.x.shape
    tile = tile_of(spec.lengths, width)
    row = lambda a: None if a is None else a.astype(jnp.float32)[None]
    modulation = arrays.modulation.astype(jnp.float32)
    modulation = modulation.reshape(*modulation.shape[:2], -1, width)
    arrays = arrays._replace(
        modulation=modulation, bias=row(arrays.bias), gain=row(arrays.gain)
    )
    tokens, vector = block((None, tile, width), 0, 1), block((1, width))
    own = lambda i, j: (i, group_of(j * tile, spec.lengths)[0], 0, 0)
    chunks = pl.BlockSpec((None, None, *modulation.shape[2:]), own)
    blocks = (tokens, tokens, chunks, vector, vector)
    inputs = [(a, at) for a, at in zip(arrays, blocks, strict=True) if a is not None]
    sums = lambda out: block((None, None, *out.shape[2:]), 0, 1)
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays)),
        (b, n // tile),
        [*inputs, *((a, tokens) for a in cotangents)],
        [(out, sums(out) if out.ndim == 4 else tokens) for out in outs],
        Launch(f"adaln_residual{kernel.__name__}", "mosaic_tpu"),
    )


def _forward_kernel(spec: "Spec", structure: Any, *references):
    arrays, outs = take_references(structure, references)
    x = arrays.x[...].astype(jnp.float32)
    if spec.gate is not None:
        outs[0][...] = _added(spec.gate, arrays, x).astype(outs[0].dtype)
        x = outs[0][...].astype(jnp.float32)
    if spec.shift_scale is not None:
        shift, scale = (_chunk(arrays, number) for number in spec.shift_scale)
        unit, _ = _unit(x, spec.norm)
        weighted = unit if arrays.gain is None else unit * arrays.gain[...]
        outs[-1][...] = (weighted * (1 + scale) + shift).astype(outs[-1].dtype)


def _backward_kernel(spec: "Spec", structure: Any, *references):
    arrays, rest = take_references(structure, references)
    modulated = spec.shift_scale is not None
    dnew, outs = rest[0], rest[1 + modulated :]
    dx, added = dnew[...].astype(jnp.float32), []
    if spec.shift_scale is not None:
        dz = rest[1][...].astype(jnp.float32)
        scale = _chunk(arrays, spec.shift_scale[1])
        through, added = _through_norm(spec, arrays, dz, scale)
        dx += through
        outs[0][...] = dx.astype(outs[0].dtype)
    if spec.gate is not None:
        dbranch = dx * _chunk(arrays, spec.gate)
        outs[int(modulated)][...] = dbranch.astype(outs[int(modulated)].dtype)
        product = _sum(dx * _branch(arrays))
        added = [product, *[_sum(dbranch)] * (arrays.bias is not None), *added]
    for number, value in enumerate(added):
        outs[-1][number : number + 1, :] = value


def _through_norm(spec: "Spec", arrays, dz: Array, scale: Array) -> tuple:
    """The gradient of the sum, and what those of shift and scale add up."""
    x = arrays.x[...].astype(jnp.float32)
    if spec.gate is not None:  # as the forward pass has rounded it
        x = _added(spec.gate, arrays, x).astype(arrays.x.dtype).astype(jnp.float32)
    unit, inverse = _unit(x, spec.norm)
    sums = [_sum(dz), _sum(dz * unit)]
    factor = 1 + scale if arrays.gain is None else (1 + scale) * arrays.gain[...]
    dunit = dz * factor
    along = _mean(dunit * unit)
    mean = _mean(dunit) if spec.norm == "layer" else 0.0
    return inverse * (dunit - mean - unit * along), sums


def _chunk(arrays, number: int) -> Array:
    return arrays.modulation[number : number + 1, :]


def _branch(arrays) -> Array:
    branch = arrays.branch[...].astype(jnp.float32)
    return branch if arrays.bias is None else branch + arrays.bias[...]


def _added(gate: int, arrays, x: Array) -> Array:
    return x + _chunk(arrays, gate) * _branch(arrays)


def _sum(rows: Array) -> Array:
    return jnp.sum(rows, 0, keepdims=True)


def _mean(rows: Array) -> Array:
    return jnp.mean(rows, -1, keepdims=True)


def _unit(x: Array, norm: str) -> tuple[Array, Array]:
    """Rows without their mean ("layer") and over their deviation; 1 / deviation."""
    x = x - _mean(x) if norm == "layer" else x
    inverse = jax.lax.rsqrt(_mean(x * x) + EPS)
    return x * inverse, inverse
