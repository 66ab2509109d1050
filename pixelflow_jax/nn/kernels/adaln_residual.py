"""What lies between two matrix products of a block: gated sum, norm, modulation.

The kernel reads and writes every token once, forward and backward, and takes the sums
over tokens that the gradients of gates, shifts, scales, gains and biases need on the
way.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import Backend
from pixelflow_jax.nn.kernels.choice import kernel_backend, versions
from pixelflow_jax.nn.kernels.mosaic_gpu import adaln_residual as mosaic_gpu
from pixelflow_jax.nn.kernels.mosaic_tpu import adaln_residual as mosaic_tpu
from pixelflow_jax.nn.kernels.triton import adaln_residual as triton
from pixelflow_jax.nn.layers import gated, layer_normalise, rms_normalise
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import by_device

NORMS = {"rms": rms_normalise, "layer": layer_normalise}
# `forward(spec, arrays)` gives the sum and the modulated norm, as far as there are
# such; `backward(spec, arrays, cotangents, vectors)` gradients of x and branch
# likewise, and sums [b, tiles, vectors, width] over tiles of tokens.
KERNELS: dict[Backend, Any] = {
    "triton": triton,
    "mosaic_gpu": mosaic_gpu,
    "mosaic_tpu": mosaic_tpu,
}


class Residual(NamedTuple):
    """What is added to the tokens, gate * (branch + bias)."""

    branch: Array  # [rows, n, width]
    bias: Array | None  # [width]; None: there is none
    gate: int  # the number of its chunk of the modulation


class AdaLN(NamedTuple):
    """How the sum is normalised and modulated, gain * norm(x) * (1 + scale) + shift."""

    gain: Array | None  # [width]; None: there is none
    shift: int  # the numbers of their chunks of the modulation
    scale: int
    norm: Literal["rms", "layer"] = "rms"


def adaln_residual(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
) -> tuple[Array, Array]:
    """x + gate * (branch + bias), and the same normalised and modulated (AdaLN).

    `x` are packed tokens [rows, n, width], `modulation` one vector an image, [b_i,
    chunks * width] a group. Returns two arrays of x's shape and type, float32 inside:
    the first is x itself without `residual`, the second the first without `adaln`.
    """
    sizes = packing.lengths, x.shape[-1]
    known = versions(KERNELS, packing.aligned, sizes, x.shape)
    backend = kernel_backend("blocks", known, x.dtype)
    if backend is None:
        return reference(x, modulation, packing, residual, adaln)
    return fused(x, modulation, packing, residual, adaln, backend)


def reference(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
) -> tuple[Array, Array]:
    """`adaln_residual` as separate operations."""
    width = x.shape[-1]

    def chunk(number: int) -> Array:
        own = [v[:, number * width : (number + 1) * width] for v in modulation]
        return packing.broadcast(own).astype(jnp.float32)

    if residual is not None:
        branch, bias, gate = residual
        branch = branch if bias is None else branch.astype(jnp.float32) + bias
        x = gated(x, chunk(gate), branch)
    if adaln is None:
        return x, x
    unit = NORMS[adaln.norm](x)
    weighted = unit if adaln.gain is None else unit * adaln.gain
    z = weighted * (1 + chunk(adaln.scale)) + chunk(adaln.shift)
    return x, z.astype(x.dtype)


def fused(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
    backend: Backend = "triton",
) -> tuple[Array, Array]:
    """`adaln_residual` as one kernel, on each device's part of the batch."""
    branch, bias, gate = residual or (None, None, None)
    gain, shift_scale, norm = None, None, "rms"
    if adaln is not None:
        gain, *chunks, norm = adaln
        shift_scale = (chunks[0], chunks[1])
    spec = Spec(gate, shift_scale, norm, packing.lengths, backend)

    def run(*arrays: Any) -> tuple[Array, Array | None]:
        return _fused(spec, Arrays(*arrays))

    split = (x, branch, jnp.stack(modulation, 1))
    x, z = by_device(run, *split, whole=(bias, gain))
    return x, x if z is None else z


class Spec(NamedTuple):
    """The chunks of the modulation that are used (None: not), the norm, the lengths.

    `lengths` are the tokens of an image in every group; `backend` runs the kernels.
    """

    gate: int | None
    shift_scale: tuple[int, int] | None
    norm: str
    lengths: tuple[int, ...]
    backend: Backend


class Arrays(NamedTuple):
    """Tokens `x`, `branch` [b, n, width]; `modulation` [b, groups, chunks * width].

    `bias` [width] of the branch, `gain` [width] of the norm; None: there is none.
    """

    x: Array
    branch: Array | None
    modulation: Array
    bias: Array | None
    gain: Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, arrays: Arrays) -> tuple[Array, Array | None]:
    results = KERNELS[spec.backend].forward(spec, arrays)
    x = results[0] if spec.gate is not None else arrays.x
    return x, (results[-1] if spec.shift_scale is not None else None)


def _forward(spec: Spec, arrays: Arrays) -> tuple:
    return _fused(spec, arrays), arrays


def _backward(spec: Spec, arrays: Arrays, cotangents: tuple) -> tuple[Arrays]:
    names, kernel = _sums(spec, arrays), KERNELS[spec.backend]
    modulated = spec.shift_scale is not None
    given = tuple(cotangents[: 1 + modulated])
    *tokens, parts = kernel.backward(spec, arrays, given, len(names))
    if not modulated:  # the sum hands its gradient on to x as it is
        tokens = [cotangents[0], *tokens]
    by_group = jnp.moveaxis(_by_group(spec, parts), 2, 0)
    sums = dict(zip(names, by_group, strict=True))
    return (_gradients(spec, arrays, tokens, sums),)


_fused.defvjp(_forward, _backward)


def _gradients(spec: Spec, arrays: Arrays, tokens: list, sums: dict) -> Arrays:
    """The gradients of all arrays; `sums` are [b, groups, width] each."""
    b, groups, total = arrays.modulation.shape
    width = arrays.x.shape[-1]
    chunks = [jnp.zeros((b, groups, width), jnp.float32)] * (total // width)
    dgain = dbias = None
    if spec.gate is not None:
        chunks[spec.gate] = sums["gate"]
        if arrays.bias is not None:
            dbias = sums["bias"].sum((0, 1)).astype(arrays.bias.dtype)
    if spec.shift_scale is not None:
        at_shift, at_scale = spec.shift_scale
        along = sums["scale"]
        chunks[at_shift], chunks[at_scale] = sums["shift"], along
        if arrays.gain is not None:
            start = at_scale * width
            scale = arrays.modulation[..., start : start + width].astype(jnp.float32)
            chunks[at_scale] = along * arrays.gain
            dgain = (along * (1 + scale)).sum((0, 1)).astype(arrays.gain.dtype)
    dmodulation = jnp.concatenate(chunks, -1).astype(arrays.modulation.dtype)
    dbranch = tokens[1] if spec.gate is not None else None
    return Arrays(tokens[0], dbranch, dmodulation, dbias, dgain)


def _sums(spec: Spec, arrays: Arrays) -> list[str]:
    """What the backward kernel adds up over the tokens of a tile."""
    gated = ["gate"] + ["bias"] * (arrays.bias is not None)
    modulated = ["shift", "scale"]
    return gated * (spec.gate is not None) + modulated * (spec.shift_scale is not None)


def _by_group(spec: Spec, parts: Array) -> Array:
    """Sums of tiles [b, tiles, k, width] to those of groups [b, groups, k, width]."""
    tile = sum(spec.lengths) // parts.shape[1]
    ends = [sum(spec.lengths[: i + 1]) // tile for i in range(len(spec.lengths))]
    starts = [0, *ends[:-1]]
    pairs = zip(starts, ends, strict=True)
    return jnp.stack([parts[:, s:e].sum(1) for s, e in pairs], 1)
