"""An MLP's hidden values from its first products, in one kernel, and back.

The backward kernel gives the hidden values once more, for the gradient of the last
matrix, beside the gradients of the first products and the sums over tokens that their
biases need. Written in Pallas: Triton on GPUs; in interpret mode anywhere.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pixelflow_jax.nn.dropout import KEEP_ALL, survives
from pixelflow_jax.nn.tiling import group_of

WARPS = 4
ROWS, COLUMNS = 4, 512  # what a program computes at a time
TILE = 16  # tokens a program
SIZES = "hidden widths in multiples of 64, groups in multiples of 16 tokens"


class How(NamedTuple):
    """`lengths` are the tokens of an image in every group."""

    kind: str  # "swiglu" of two products, or "gelu" (its tanh form) of one
    lengths: tuple[int, ...]
    interpret: bool = False


class Inputs(NamedTuple):
    """First products [b, n, hidden] and their biases [hidden], one or two of each.

    `seeds` [b, groups, 3], int32: two seeds of the dropout and how many of 2^24 values
    it keeps; None: all of them.
    """

    products: tuple[Array, ...]
    biases: tuple[Array, ...]
    seeds: Array | None


def fits(lengths: tuple[int, ...], hidden: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    return not hidden % 64 and not any(length % TILE for length in lengths)


def forward(how: How, given: Inputs) -> Array:
    """The hidden values [b, n, hidden]; float32 inside."""
    first = given.products[0]
    out = jax.ShapeDtypeStruct(first.shape, first.dtype)
    return _run(_forward_kernel, how, given, (), [out], [])[0]


def backward(how: How, given: Inputs, cotangent: Array) -> tuple[Array, tuple, tuple]:
    """The hidden values, and the gradients of products and biases (or ())."""
    first, count = given.products[0], len(given.products)
    b, n, hidden = first.shape
    outs = [jax.ShapeDtypeStruct(first.shape, first.dtype)] * (1 + count)
    shape = (b, n // TILE, len(given.biases), hidden)
    extra = [jax.ShapeDtypeStruct(shape, jnp.float32)] if given.biases else []
    found = _run(_backward_kernel, how, given, (cotangent,), outs, extra)
    sums = found[-1].sum((0, 1)) if given.biases else ()
    return found[0], tuple(found[1 : 1 + count]), tuple(sums)


def _run(kernel, how, given, cotangents, outs, extra):
    """Calls a kernel with one program a tile of tokens and block of columns."""
    b, n, hidden = given.products[0].shape
    columns = math.gcd(hidden, COLUMNS)
    tokens = pl.BlockSpec((None, TILE, columns), lambda i, j, k: (i, j, k))
    vector = pl.BlockSpec((columns,), lambda i, j, k: (k,))
    specs = [tokens] * len(given.products) + [vector] * len(given.biases)
    arrays = [*given.products, *given.biases]
    if given.seeds is not None:
        arrays.append(given.seeds)
        whole = given.seeds.shape[1:]
        specs.append(pl.BlockSpec((None, *whole), lambda i, j, k: (i, 0, 0)))
    arrays += cotangents
    specs += [tokens] * len(cotangents)
    sums = pl.BlockSpec(
        (None, None, len(given.biases), columns), lambda i, j, k: (i, j, 0, k)
    )
    there = (len(given.products), len(given.biases), given.seeds is not None)
    return pl.pallas_call(
        functools.partial(kernel, how, there, hidden),
        grid=(b, n // TILE, hidden // columns),
        in_specs=specs,
        out_specs=[tokens] * len(outs) + [sums] * len(extra),
        out_shape=[*outs, *extra],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=how.interpret,
        name=f"hidden_{kernel.__name__.strip('_')}",
    )(*arrays)


def _forward_kernel(how: How, there: tuple, hidden: int, *refs):
    products, biases, seeds, (out,) = _named(there, refs)
    drop = _dropped(how, seeds, out.shape[1])

    def rows(step, nothing):
        place = pl.ds(step * ROWS, ROWS)
        pre = _pre(products, biases, place)
        value, _ = ACTIVATIONS[how.kind](*pre, how.interpret)
        mask = _mask(drop, step, hidden, value.shape)
        value = value if mask is None else value * mask
        out[place, :] = value.astype(out.dtype)
        return nothing

    jax.lax.fori_loop(0, TILE // ROWS, rows, None)


def _backward_kernel(how: How, there: tuple, hidden: int, *refs):
    products, biases, seeds, (cotangent, out, *outs) = _named(there, refs)
    drop = _dropped(how, seeds, out.shape[1])

    def rows(step, sums):
        place = pl.ds(step * ROWS, ROWS)
        pre = _pre(products, biases, place)
        value, slopes = ACTIVATIONS[how.kind](*pre, how.interpret)
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
    zeros = [jnp.zeros(shape, jnp.float32)] * len(biases)
    sums = jax.lax.fori_loop(0, TILE // ROWS, rows, zeros)
    for number, total in enumerate(sums):
        outs[-1][number, :] = jnp.sum(total, 0)


def _named(there: tuple, refs: tuple) -> tuple:
    """References of products, biases and seeds (None: there are none), and the rest."""
    products, biases, has_seeds = there
    refs = list(refs)
    first = [refs.pop(0) for _ in range(products)]
    second = [refs.pop(0) for _ in range(biases)]
    return first, second, refs.pop(0) if has_seeds else None, refs


def _pre(products: list, biases: list, place) -> list[Array]:
    found = [ref[place, :].astype(jnp.float32) for ref in products]
    if not biases:
        return found
    pairs = zip(found, biases, strict=True)
    return [a + bias[...].astype(jnp.float32)[None] for a, bias in pairs]


class Dropped(NamedTuple):
    """Where a program begins in its image's group, and the group's seeds."""

    token: Array
    column: Array
    seeds: tuple[Array, Array, Array]


def _dropped(how: How, seeds, columns: int) -> Dropped | None:
    if seeds is None:
        return None
    token, column = pl.program_id(1) * TILE, pl.program_id(2) * columns
    group, start = group_of(token, how.lengths)
    return Dropped(token - start, column, tuple(seeds[group, i] for i in range(3)))


def _mask(drop: Dropped | None, step, hidden: int, shape: tuple) -> Array | None:
    """0, or 1 / the share kept, for every value: `nn.dropout.dropout` as a factor."""
    if drop is None:
        return None
    along = functools.partial(jax.lax.broadcasted_iota, jnp.int32, shape)
    number = (drop.token + step * ROWS + along(0)) * hidden + drop.column + along(1)
    one, other, keep = drop.seeds
    seeds = (seed.astype(jnp.uint32) for seed in (one, other))
    kept = survives(*seeds, number.astype(jnp.uint32), keep)
    return jnp.where(kept, KEEP_ALL / keep.astype(jnp.float32), 0.0)


def _tanh(x: Array, exact: bool) -> Array:
    """tanh; unless `exact` the GPU's own, right to 2^-11."""
    return jnp.tanh(x) if exact else triton.approx_tanh(x)


def _swiglu(gate: Array, up: Array, exact: bool) -> tuple[Array, tuple]:
    """SiLU(gate) * up, and its derivatives in both."""
    sigmoid = 0.5 * _tanh(0.5 * gate, exact) + 0.5
    silu = gate * sigmoid
    return silu * up, (up * (sigmoid + silu * (1 - sigmoid)), silu)


def _gelu(x: Array, exact: bool) -> tuple[Array, tuple]:
    """GELU in its tanh form, and its derivative."""
    root = math.sqrt(2 / math.pi)
    tanh = _tanh(root * (x + 0.044715 * x * x * x), exact)
    half = 0.5 * (1 + tanh)
    slope = half + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * 0.044715 * x * x)
    return x * half, (slope,)


ACTIVATIONS = {"swiglu": _swiglu, "gelu": _gelu}
