"""From an MLP's first products through its activation to its last product.

The forward kernel gives the hidden values; the backward kernel gives them once more,
for the gradient of the last matrix, beside the gradients of the first products and the
sums over tokens that their biases need.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.dropout import (
    KEEP_ALL,
    Dropout,
    drop_packed,
    stacked_seeds,
    survives,
)
from pixelflow_jax.nn.kernels.backends import is_interpreted, pl, triton
from pixelflow_jax.nn.kernels.choice import Version, kernel_backend
from pixelflow_jax.nn.kernels.launch import (
    Launch,
    block,
    group_of,
    launch,
    take_references,
)
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.products import kernel_gradient, matmul
from pixelflow_jax.sharding import by_device, tensor_shards

Kind = Literal["swiglu", "gelu"]
ACTIVATIONS = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}
WARPS = 4
ROWS, COLUMNS = 4, 512  # what a program computes at a time
TILE = 16  # tokens a program
SIZES = (
    "hidden widths in multiples of 64, groups in multiples of 16 tokens, and groups of "
    "alike batches"
)


def activate_and_project(
    kind: Kind,
    products: tuple[Array, ...],
    biases: tuple[Array, ...],
    matrix: Array,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """drop(activation(products + biases)) @ matrix, without the last bias.

    `products` are one ("gelu", in its tanh form) or two ("swiglu": gate and up) of
    packed tokens [rows, n, hidden], without their `biases` [hidden], of which there
    may be none; gate and up may also lie side by side in one [rows, n, 2 * hidden].
    `matrix` [hidden, width] is one that `nn.products` takes; `dropouts` one function a
    group. Returns [rows, n, width].
    """
    first = products[0]
    supported = packing.aligned and supports(packing.lengths, len(matrix))
    versions: dict = {"triton": Version(supported, f"{SIZES}, not {first.shape}")}
    fuse = kernel_backend("blocks", versions, first.dtype)
    # Of matrices that are split over devices, hidden values lie here and there.
    compute = fused if fuse and tensor_shards() == 1 else reference
    return compute(kind, products, biases, matrix, packing, dropouts)


def reference(
    kind: Kind,
    products: tuple[Array, ...],
    biases: tuple[Array, ...],
    matrix: Array,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """`activate_and_project` as separate operations."""
    products = _apart(kind, products)
    if biases:
        pairs = zip(products, biases, strict=True)
        products = tuple(a + bias.astype(a.dtype) for a, bias in pairs)
    hidden = ACTIVATIONS[kind](*products)
    return matmul(drop_packed(hidden, packing, dropouts), matrix)


def _apart(kind: Kind, products: tuple[Array, ...]) -> tuple[Array, ...]:
    """Gate and up as two products, also where they lie side by side."""
    together = kind == "swiglu" and len(products) == 1
    return tuple(jnp.split(products[0], 2, -1)) if together else products


def supports(lengths: tuple[int, ...], hidden: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    return not hidden % 64 and not any(length % TILE for length in lengths)


def fused(
    kind: Kind,
    products: tuple[Array, ...],
    biases: tuple[Array, ...],
    matrix: Array,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """`activate_and_project` as a kernel on each device, and a product behind it."""
    seeds = None if dropouts is None else stacked_seeds(dropouts)
    spec = Spec(kind, packing.lengths)
    if len(products) < len(_apart(kind, products)):
        return _fused_together(spec, products[0], seeds, biases, matrix)
    return _fused(spec, Arrays(products, seeds, biases), matrix)


class Spec(NamedTuple):
    """The activation, and the tokens of an image in every group."""

    kind: Kind
    lengths: tuple[int, ...]


class Arrays(NamedTuple):
    """First products [b, n, hidden] and their biases [hidden], one or two of each.

    `seeds` [b, groups, 3], int32: two seeds of the dropout and how many of 2^24 values
    it keeps; None: all of them.
    """

    products: tuple[Array, ...]
    seeds: Array | None
    biases: tuple[Array, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, arrays: Arrays, matrix: Array) -> Array:
    structure, width = jax.tree.structure(arrays), len(matrix)

    def hidden(*leaves: Array) -> Array:
        arrays = jax.tree.unflatten(structure, leaves)
        first = arrays.products[0]
        out = jax.ShapeDtypeStruct((*first.shape[:-1], width), first.dtype)
        return _launch(_forward_kernel, spec, arrays, (), [out], [])[0]

    split = jax.tree.leaves(arrays[:-1])
    return matmul(by_device(hidden, *split, whole=arrays.biases), matrix)


def _forward(spec: Spec, arrays: Arrays, matrix: Array) -> tuple:
    return _fused(spec, arrays, matrix), (arrays, matrix)


def _backward(spec: Spec, kept: tuple[Arrays, Array], cotangent: Array) -> tuple:
    arrays, matrix = kept
    structure = jax.tree.structure(arrays)

    def gradients(dhidden: Array, *leaves: Array) -> tuple:
        return _gradients(spec, jax.tree.unflatten(structure, leaves), dhidden)

    dhidden = cotangent @ matrix.astype(cotangent.dtype).T
    split = (dhidden, *jax.tree.leaves(arrays[:-1]))
    hidden, products, sums = by_device(gradients, *split, whole=arrays.biases)
    dmatrix = kernel_gradient(hidden, cotangent, matrix.dtype)
    pairs = zip(sums, arrays.biases, strict=True)
    biases = tuple(d.sum(0).astype(bias.dtype) for d, bias in pairs)
    return Arrays(products, None, biases), dmatrix


_fused.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused_together(
    spec: Spec, both: Array, seeds: Array | None, biases: tuple, matrix: Array
) -> Array:
    """`_fused` of gate and up [b, n, 2 * hidden], which the kernel reads in place."""
    return _fused(spec, Arrays((both, both), seeds, biases), matrix)


def _forward_together(
    spec: Spec, both: Array, seeds: Array | None, biases: tuple, matrix: Array
) -> tuple:
    arrays = Arrays(_apart(spec.kind, (both,)), seeds, biases)
    return _forward(spec, arrays, matrix)


def _backward_together(spec: Spec, kept: tuple, cotangent: Array) -> tuple:
    arrays, dmatrix = _backward(spec, kept, cotangent)
    return jnp.concatenate(arrays.products, -1), None, arrays.biases, dmatrix


_fused_together.defvjp(_forward_together, _backward_together)


def _gradients(spec: Spec, arrays: Arrays, dhidden: Array) -> tuple:
    """The hidden values, and gradients of products and of biases, [1, hidden] each."""
    first, count = arrays.products[0], len(arrays.products)
    b, n, hidden = first.shape
    outs = [jax.ShapeDtypeStruct(first.shape, first.dtype)] * (1 + count)
    shape = (b, n // TILE, len(arrays.biases), hidden)
    sums = [jax.ShapeDtypeStruct(shape, jnp.float32)] if arrays.biases else []
    results = _launch(_backward_kernel, spec, arrays, (dhidden,), outs, sums)
    biases = tuple(results[-1].sum((0, 1))) if arrays.biases else ()
    products = tuple(results[1 : 1 + count])
    return results[0], products, tuple(bias[None] for bias in biases)


def _launch(kernel, spec, arrays, cotangents, outs, sums):
    """One program for each tile of tokens and block of columns.

    Of products that are wider than the first output, each is a part of the same array.
    """
    b, n, hidden = outs[0].shape
    columns, count = math.gcd(hidden, COLUMNS), len(arrays.biases)
    tile = (None, TILE, columns)
    tokens, vector = block(tile, 0, 1, 2), block((columns,), 2)
    inputs = []
    for number, a in enumerate(arrays.products):
        start = number * hidden // columns if a.shape[-1] > hidden else 0
        inputs.append((a, block(tile, 0, 1, 2, start=(0, 0, start))))
    if arrays.seeds is not None:
        inputs.append((arrays.seeds, block((None, *arrays.seeds.shape[1:]), 0)))
    inputs += [(a, vector) for a in arrays.biases]
    inputs += [(a, tokens) for a in cotangents]
    outputs = [(out, tokens) for out in outs]
    by_tile = block((None, None, count, columns), 0, 1, None, 2)
    outputs += [(out, by_tile) for out in sums]
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays), hidden),
        (b, n // TILE, hidden // columns),
        inputs,
        outputs,
        Launch(f"activate_and_project{kernel.__name__}", warps=WARPS),
    )


def _forward_kernel(spec: Spec, structure: Any, hidden: int, *references):
    arrays, (out,) = take_references(structure, references)
    drop = _program_drop(spec, arrays.seeds, out.shape[1])

    def rows(step, nothing):
        place = pl.ds(step * ROWS, ROWS)
        value, _ = WITH_SLOPES[spec.kind](*_pre_activation(arrays, place))
        mask = _mask(drop, step, hidden, value.shape)
        value = value if mask is None else value * mask
        out[place, :] = value.astype(out.dtype)
        return nothing

    jax.lax.fori_loop(0, TILE // ROWS, rows, None)


def _backward_kernel(spec: Spec, structure: Any, hidden: int, *references):
    arrays, (cotangent, out, *outs) = take_references(structure, references)
    drop = _program_drop(spec, arrays.seeds, out.shape[1])

    def rows(step, sums):
        place = pl.ds(step * ROWS, ROWS)
        value, slopes = WITH_SLOPES[spec.kind](*_pre_activation(arrays, place))
        d = cotangent[place, :].astype(jnp.float32)
        mask = _mask(drop, step, hidden, value.shape)
        if mask is not None:
            value, d = value * mask, d * mask
        out[place, :] = value.astype(out.dtype)
        gradients = [d * slope for slope in slopes]
        for ref, gradient in zip(outs, gradients, strict=False):
            ref[place, :] = gradient.astype(ref.dtype)
        return [s + g for s, g in zip(sums, gradients, strict=False)]

    shape = (ROWS, out.shape[1])
    zeros = [jnp.zeros(shape, jnp.float32)] * len(arrays.biases)
    sums = jax.lax.fori_loop(0, TILE // ROWS, rows, zeros)
    for number, total in enumerate(sums):
        outs[-1][number, :] = jnp.sum(total, 0)


def _pre_activation(arrays: Arrays, place) -> list[Array]:
    """What the activation is of: products with their biases, float32."""
    products = [ref[place, :].astype(jnp.float32) for ref in arrays.products]
    if not arrays.biases:
        return products
    pairs = zip(products, arrays.biases, strict=True)
    return [a + bias[...].astype(jnp.float32)[None] for a, bias in pairs]


class ProgramDrop(NamedTuple):
    """Where a program begins in its image's group, and the group's seeds."""

    token: Array
    column: Array
    seeds: tuple[Array, Array, Array]


def _program_drop(spec: Spec, seeds, columns: int) -> ProgramDrop | None:
    if seeds is None:
        return None
    token, column = pl.program_id(1) * TILE, pl.program_id(2) * columns
    group, start = group_of(token, spec.lengths)
    return ProgramDrop(token - start, column, tuple(seeds[group, i] for i in range(3)))


def _mask(drop: ProgramDrop | None, step, hidden: int, shape: tuple) -> Array | None:
    """0, or 1 / the share kept, for every value: `nn.dropout.dropout` as a factor."""
    if drop is None:
        return None
    along = functools.partial(jax.lax.broadcasted_iota, jnp.int32, shape)
    number = (drop.token + step * ROWS + along(0)) * hidden + drop.column + along(1)
    seed1, seed2, keep = drop.seeds
    seed1, seed2 = seed1.astype(jnp.uint32), seed2.astype(jnp.uint32)
    kept = survives(seed1, seed2, number.astype(jnp.uint32), keep)
    return jnp.where(kept, KEEP_ALL / keep.astype(jnp.float32), 0.0)


def _tanh(x: Array) -> Array:
    """tanh; on GPUs their own, right to 2^-11."""
    return jnp.tanh(x) if is_interpreted() else triton.approx_tanh(x)


def _swiglu(gate: Array, up: Array, tanh: Callable = _tanh) -> tuple[Array, tuple]:
    """SiLU(gate) * up, and its derivatives in both."""
    half = 0.5 * gate
    bent = tanh(half)
    silu, sigmoid = half * bent + half, 0.5 * bent + 0.5
    return silu * up, (up * (sigmoid + silu * (1 - sigmoid)), silu)


def _gelu(x: Array, tanh: Callable = _tanh) -> tuple[Array, tuple]:
    """GELU in its tanh form, and its derivative."""
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    half, square = 0.5 * x, x * x
    bent = tanh(x * (root * cubic * square + root))
    steep = 3 * root * cubic * square + root
    slope = 0.5 * (1 + bent) + half * (1 - bent * bent) * steep
    return half * bent + half, (slope,)


WITH_SLOPES = {"swiglu": _swiglu, "gelu": _gelu}
