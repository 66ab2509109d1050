"""A block of the neural field: in every patch an MLP whose weights are generated.

The kernel reads the generated weights once, and writes neither the normalised weights
nor the hidden values to memory; a patch a program, forward and backward.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import Backend, missing_hopper
from pixelflow_jax.nn.kernels.choice import chosen, kernel_backend, versions
from pixelflow_jax.nn.kernels.launch import SHORTEST
from pixelflow_jax.nn.kernels.mosaic_gpu import neural_field as mosaic_gpu
from pixelflow_jax.nn.kernels.mosaic_tpu import neural_field as mosaic_tpu
from pixelflow_jax.nn.kernels.triton import neural_field as triton
from pixelflow_jax.nn.layers import rms_norm
from pixelflow_jax.sharding import by_device

# `forward(unit, z, gain, weights)` of patches z [patches, pixels, width] and weights
# [patches, 2 * width * hidden] gives z's shape; `backward(unit, z, gain, weights,
# cotangent)` the gradients of all three.
KERNELS: dict[Backend, Any] = {"triton": triton, "mosaic_tpu": mosaic_tpu}


class GeneratedMLP(NamedTuple):
    """The weights of every patch's MLP, and which of them get columns of length one.

    `weights` [b, n, 2 * width * hidden] are both matrices row by row, one behind the
    other, as they are generated: to cut them apart would copy them.
    """

    weights: Array
    width: int
    unit: tuple[bool, bool] = (False, False)

    @property
    def hidden(self) -> int:
        """The hidden width."""
        return self.weights.shape[-1] // 2 // self.width

    @property
    def matrices(self) -> tuple[Array, Array]:
        """[b, n, width, hidden] and [b, n, hidden, width]."""
        first, second = jnp.split(self.weights, 2, -1)
        shape = self.weights.shape[:-1]
        return (
            first.reshape(*shape, self.width, self.hidden),
            second.reshape(*shape, self.hidden, self.width),
        )


def neural_field(z: Array, gain: Array, mlp: GeneratedMLP) -> Array:
    """z + SiLU(RMS(z) W1) W2 in every patch, z [b, n, pixels, width]; z's shape.

    `gain` [width] are the weights of the RMS norm; sums in float32.
    """
    pixels, width, hidden = z.shape[-2], mlp.width, mlp.hidden
    given = f"{pixels} pixels, width {width} and hidden width {hidden}"
    known = versions(KERNELS, True, (pixels, width, hidden), given)
    backend = kernel_backend("field", known, z.dtype)
    if backend is None:
        return reference(z, gain, mlp)
    return fused(z, gain, mlp, backend)


def _hopper_gains(z: Array, mlp: GeneratedMLP) -> bool:
    """Whether there is a Hopper GPU, whose kernel is faster than Triton's.

    In bfloat16, while nobody insists on another one.
    """
    if chosen().field != "auto" or z.dtype != jnp.bfloat16 or missing_hopper():
        return False
    return mosaic_gpu.supports(z.shape[-2], mlp.width, mlp.hidden, z.dtype)


def reference(z: Array, gain: Array, mlp: GeneratedMLP) -> Array:
    """`neural_field` as separate products."""
    first, second = mlp.matrices
    first = unit_columns(first) if mlp.unit[0] else first
    second = unit_columns(second) if mlp.unit[1] else second
    hidden = jnp.einsum("bnpd,bndh->bnph", rms_norm(z, gain), first)
    return z + jnp.einsum("bnph,bnhd->bnpd", jax.nn.silu(hidden), second)


def unit_columns(weight: Array) -> Array:
    """Columns (axis -2) scaled to length one; computed in float32."""
    weight32 = weight.astype(jnp.float32)
    squared = jnp.sum(weight32 * weight32, -2, keepdims=True)
    # 1 / max(norm, 1e-12); taking the root last keeps a zero column free of NaN.
    inverse = jax.lax.rsqrt(jnp.maximum(squared, SHORTEST))
    return (weight32 * inverse).astype(weight.dtype)


def fused(
    z: Array, gain: Array, mlp: GeneratedMLP, backend: Backend = "triton"
) -> Array:
    """`neural_field` as one kernel, on each device's part of the batch."""
    spec = Spec(mlp.unit, backend, backend == "triton" and _hopper_gains(z, mlp))

    def run(z: Array, weights: Array, gain: Array) -> Array:
        # All patches one after the other.
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        out: Array = _fused(spec, flat(z), gain, flat(weights))
        return out.reshape(z.shape)

    return by_device(run, z, mlp.weights, whole=(gain,))


class Spec(NamedTuple):
    """Which matrices get columns of length one, and who runs the kernels.

    `hopper`: of gradients, Mosaic's for Hopper GPUs.
    """

    unit: tuple[bool, bool]
    backend: Backend
    hopper: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, z: Array, gain: Array, weights: Array) -> Array:
    out: Array = KERNELS[spec.backend].forward(spec.unit, z, gain, weights)
    return out


def _forward(spec: Spec, *arrays: Array) -> tuple:
    return _fused(spec, *arrays), arrays


def _backward(spec: Spec, arrays: tuple, cotangent: Array) -> tuple:
    kernels = mosaic_gpu if spec.hopper else KERNELS[spec.backend]
    gradients: tuple = kernels.backward(spec.unit, *arrays, cotangent)
    return gradients


_fused.defvjp(_forward, _backward)
