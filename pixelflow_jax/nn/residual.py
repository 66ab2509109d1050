"""What lies between two matrix products of a block: gated sum, norm, modulation."""

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn import residual_kernel
from pixelflow_jax.nn.layers import gated, layer_normalise, rms_normalise
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.residual_kernel import Between, Inputs
from pixelflow_jax.sharding import by_device

KERNELS = ("auto", "pallas", "xla")
NORMS = {"rms": rms_normalise, "layer": layer_normalise}


def between(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    *,
    branch: Array | None = None,
    bias: Array | None = None,
    gate: int | None = None,
    norm: str = "rms",
    gain: Array | None = None,
    shift: int | None = None,
    scale: int | None = None,
    kernels: str = "auto",
) -> tuple[Array, Array | None]:
    """x + gate * (branch + bias), and the same normalised and modulated (AdaLN).

    Packed tokens `x` and `branch` [rows, n, width]; `modulation` one modulation an image,
    [b_i, chunks * width] a group, of which `gate`, `shift` and `scale` name chunks by
    number: None leaves the sum, or the norm, out. `norm` is "rms" or "layer", `gain`
    its weights. Returns two arrays of x's shape and type, the second None without
    `scale`; float32 inside.

    `kernels`: "pallas" insists on one pass over the tokens for everything, "xla" leaves
    it to the compiler; "auto" takes the kernel on GPUs in half precision, for the sizes
    it knows. Raises ValueError where "pallas" is asked for and the sizes do not fit.
    """
    how = Between(gate, shift, scale, norm, packing.lengths)
    known = packing.aligned and residual_kernel.fits(packing.lengths, x.shape[-1])
    if not chosen(kernels, known, residual_kernel.SIZES, x):
        return plainly(how, packing, x, branch, modulation, bias, gain)
    interpret = jax.default_backend() != "gpu"
    stacked = jnp.stack(modulation, 1)  # [b, groups, chunks * width]

    def run(x: Array, branch: Array | None, modulation: Array, *whole: Array) -> tuple:
        given = Inputs(x, branch, modulation, *whole)
        return residual_kernel.between(how._replace(interpret=interpret), given)

    return by_device(run, x, branch, stacked, whole=(bias, gain))


def plainly(
    how: Between,
    packing: Packing,
    x: Array,
    branch: Array | None,
    modulation: tuple[Array, ...],
    bias: Array | None,
    gain: Array | None,
) -> tuple[Array, Array | None]:
    """`between` as separate operations."""
    width = x.shape[-1]

    def spread(chunk: int) -> Array:
        own = [v[:, chunk * width : (chunk + 1) * width] for v in modulation]
        return packing.spread(own).astype(jnp.float32)

    if how.gate is not None:
        branch = branch if bias is None else branch.astype(jnp.float32) + bias
        x = gated(x, spread(how.gate), branch)
    if how.scale is None:
        return x, None
    unit = NORMS[how.norm](x)
    weighted = unit if gain is None else unit * gain
    z = weighted * (1 + spread(how.scale)) + spread(how.shift)
    return x, z.astype(x.dtype)


def chosen(kernels: str, known: bool, sizes: str, x: Array) -> bool:
    """Whether `kernels` means the kernel for x, whose sizes are `known` to it or not.

    Raises ValueError for another word, and where "pallas" insists on other `sizes`.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {KERNELS}, not {kernels!r}.")
    if kernels == "pallas" and not known:
        raise ValueError(
            f'stack.kernels="pallas" needs {sizes}, and groups of alike batches, not '
            f'{x.shape}: set stack.kernels="auto".'
        )
    half = x.dtype in (jnp.bfloat16, jnp.float16)
    suits = known and half and jax.default_backend() == "gpu"
    return kernels == "pallas" or (kernels == "auto" and suits)
