"""Convolutions of float32 arrays on units that multiply float16 or TF32 alone.

Matrix units are many times as fast as those of float32, but they cut off, towards
zero, what does not fit their sums, so that long sums shrink. Here each factor is a
whole number of units, the same for all that one sum adds up, and a fraction of a unit.
Sums of products of whole numbers are exact as long as they need no more than the 24
bits of a float32, and what is cut off of the others, a thousandth as large, counts for
nothing.

Source: the error-free splitting of Ozaki et al. 2012, "Error-free transformations of
matrix multiplication by using fast routines of matrix multiplication"; for matrix units
Mukunoki et al. 2020.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Whole numbers of this many bits: float16 holds 11. Two that are multiplied take 21 of
# the 24 bits of a sum, which may be 8 times its largest term; signs differ, so that few
# are larger, and those only lose their last bits.
PIXEL_BITS, KERNEL_BITS = 11, 10
LARGEST = 65504.0  # float16
EXPONENT = np.uint32(0x7F800000)
SMALLEST = np.float32(2.0**-60)  # arrays of zeros have a unit, too
# Of the second sum, whose result is a float16 as well: no sum of up to 2^13 terms
# overflows, as each is at most 2^10 units.
REST = np.float32(2.0**-7)


class Product(Protocol):
    """A convolution of images and a kernel of float16, added up in float32."""

    def __call__(self, x: Array, kernel: Array, result: type) -> Array:
        """The result is rounded to the type `result`."""
        ...


class Split(NamedTuple):
    """An array as `unit * (whole + fraction)`: to 23 bits of the unit's 2^bits."""

    whole: Array  # float16
    fraction: Array  # float16, from -0.5 to 0.5; more where it is beyond its bound
    unit: Array  # float32, a power of two


def split(x: Array, bound: Array, bits: int) -> Split:
    """A float32 array in units of which `bound` (that broadcasts to it) is 2^bits.

    Numbers beyond it are as exact, up to 2^(17 - bits) times the bound, but take more
    bits of a sum.
    """
    # Powers of two by their bits: exp2 and division are rounded on some devices.
    largest = jnp.maximum(bound.astype(jnp.float32), SMALLEST)
    power = jax.lax.bitcast_convert_type(largest, jnp.uint32) & EXPONENT
    inverse = np.uint32((253 + bits) << 23) - power
    unit = power - np.uint32((bits - 1) << 23)
    as_float = lambda bits: jax.lax.bitcast_convert_type(bits, jnp.float32)
    y = x * as_float(inverse)
    # A cast there and back is one that compilers leave out.
    whole = jax.lax.reduce_precision(
        jnp.clip(jnp.round(y), -LARGEST, LARGEST), exponent_bits=5, mantissa_bits=10
    )
    fraction = jnp.clip(y - whole, -LARGEST, LARGEST)
    return Split(
        whole.astype(jnp.float16), fraction.astype(jnp.float16), as_float(unit)
    )


def convolve(product: Product, x: Array, bound: Array, kernel: Array) -> Array:
    """The product of images [b, h, w, c] and a kernel HWIO, float32.

    `bound` is what the images hardly exceed, a number.
    """
    # The two parts of a number are computed in two kernels, which compilers like to let
    # compute the number, too: were it rounded otherwise there, they might not fit.
    x, kernel = jax.lax.optimization_barrier((x, kernel))
    pixels = split(x, bound, PIXEL_BITS)
    largest = jnp.abs(kernel).max((0, 1, 2))
    weights = split(kernel, largest, KERNEL_BITS)
    whole = product(pixels.whole, weights.whole, jnp.float32)
    # A thousandth of the sum: of the kernel's two parts together 11 bits are enough.
    fraction = weights.fraction.astype(jnp.float32)
    both = weights.whole + fraction
    rest = product(
        jnp.concatenate([pixels.whole, pixels.fraction], -1),
        (jnp.concatenate([fraction, both], 2) * REST).astype(jnp.float16),
        jnp.float16,
    )
    return (whole + rest.astype(jnp.float32) / REST) * (pixels.unit * weights.unit)
