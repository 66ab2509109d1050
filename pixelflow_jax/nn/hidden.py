"""From an MLP's first products through its activation to its last product."""

import functools

import jax
from jax import Array

from pixelflow_jax.nn import hidden_kernel
from pixelflow_jax.nn.dropout import Dropout, packed, stacked_seeds
from pixelflow_jax.nn.hidden_kernel import How, Inputs
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.residual import chosen
from pixelflow_jax.sharding import by_device, tensor_shards

ACTIVATIONS = {
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "gelu": functools.partial(jax.nn.gelu, approximate=True),
}


def down(
    kind: str,
    products: tuple[Array, ...],
    biases: tuple[Array, ...],
    matrix: Array,
    packing: Packing,
    *,
    dropouts: tuple[Dropout, ...] | None = None,
    kernels: str = "auto",
) -> Array:
    """drop(activation(products + biases)) @ matrix, without the last bias.

    `products` are one ("gelu") or two ("swiglu": gate and up) of packed tokens [rows,
    n, hidden], without their `biases` [hidden], of which there may be none; `matrix`
    [hidden, width]; `dropouts` one function a group. Returns [rows, n, width]. `kernels`:
    as in `nn.residual.between`.
    """
    first = products[0]
    known = packing.aligned and hidden_kernel.fits(packing.lengths, first.shape[-1])
    fused = chosen(kernels, known, hidden_kernel.SIZES, first)
    if not fused or tensor_shards() > 1:  # hidden values may lie on several devices
        return plainly(kind, products, biases, matrix, packing, dropouts)
    how = How(kind, packing.lengths, jax.default_backend() != "gpu")
    seeds = None if dropouts is None else stacked_seeds(dropouts)
    return _fused(how, Inputs(products, biases, seeds), matrix)


def plainly(
    kind: str,
    products: tuple[Array, ...],
    biases: tuple[Array, ...],
    matrix: Array,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None,
) -> Array:
    """`down` as separate operations."""
    if biases:
        pairs = zip(products, biases, strict=True)
        products = [a + bias.astype(a.dtype) for a, bias in pairs]
    hidden = ACTIVATIONS[kind](*products)
    if dropouts is not None:
        hidden = packed(dropouts, packing)(hidden)
    return hidden @ matrix


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(how: How, given: Inputs, matrix: Array) -> Array:
    split, whole = (*given.products, given.seeds), given.biases

    def run(*arrays: Array) -> Array:
        return hidden_kernel.forward(how, _inputs(given, arrays))

    return by_device(run, *split, whole=whole) @ matrix


def _keep(how: How, given: Inputs, matrix: Array) -> tuple:
    return _fused(how, given, matrix), (given, matrix)


def _backward(how: How, kept: tuple, cotangent: Array) -> tuple:
    given, matrix = kept
    split = (*given.products, given.seeds, cotangent @ matrix.T)

    def run(*arrays: Array) -> tuple:
        count = len(given.products)
        d, rest = arrays[count + 1], (*arrays[: count + 1], *arrays[count + 2 :])
        hidden, products, biases = hidden_kernel.backward(how, _inputs(given, rest), d)
        return hidden, products, tuple(bias[None] for bias in biases)

    hidden, products, biases = by_device(run, *split, whole=given.biases)
    flat = lambda a: a.reshape(-1, a.shape[-1])
    dmatrix = flat(hidden).T @ flat(cotangent)
    pairs = zip(biases, given.biases, strict=True)
    dbiases = tuple(d.sum(0).astype(bias.dtype) for d, bias in pairs)
    return Inputs(products, dbiases, None), dmatrix.astype(matrix.dtype)


_fused.defvjp(_keep, _backward)


def _inputs(given: Inputs, arrays: tuple) -> Inputs:
    """`given` with these arrays: its products, its seeds, its biases."""
    count = len(given.products)
    return Inputs(arrays[:count], arrays[count + 1 :], arrays[count])
