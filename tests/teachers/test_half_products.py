"""Float32 convolutions on matrix units: splitting, sums, and the whole network."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pixelflow_jax.teachers import half_products, inception, inception_table
from tests.teachers.inception_weights import Recording, parameters
from tests.xla_flags import OPTIMISED


def convolution(x, kernel, result=jnp.float32):
    out = jax.lax.conv_general_dilated(
        *(array.astype(jnp.float32) for array in (x, kernel)),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    return out.astype(result)


@pytest.fixture(scope="module")
def images():
    """Behind a ReLU, [3, 9, 9, 64]."""
    x = np.random.default_rng(0).standard_normal((3, 9, 9, 64))
    return np.maximum(x, 0).astype(np.float32)


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(1).standard_normal((3, 3, 64, 8)).astype(np.float32)


@pytest.mark.parametrize("bits", [half_products.PIXEL_BITS, half_products.KERNEL_BITS])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 3e7])
def test_a_split_holds_nearly_all_of_a_float32(images, bits, scale):
    x = images * np.float32(scale)
    parts = jax.jit(half_products.split, static_argnums=2)(x, x.max(), bits)
    whole, fraction = (np.asarray(part, np.float64) for part in parts[:2])
    unit = float(parts.unit)
    assert np.log2(unit) % 1 == 0 and x.max() / unit < 2**bits <= 2 * x.max() / unit
    assert (whole % 1 == 0).all() and np.abs(fraction).max() <= 0.5
    # float16 halves of a unit are right to 2^-13 of it.
    np.testing.assert_allclose((whole + fraction) * unit, x, rtol=0, atol=unit / 2**13)


@pytest.mark.parametrize("beyond", [1, 3.9, 60])
def test_numbers_beyond_their_bound_are_split_as_well(images, beyond):
    bound = np.float32(images.max() / beyond)
    parts = jax.jit(half_products.split, static_argnums=2)(images, bound, 11)
    whole, fraction = (np.asarray(part, np.float64) for part in parts[:2])
    found = (whole + fraction) * float(parts.unit)
    np.testing.assert_allclose(found, images, rtol=2.0**-20, atol=bound * 2.0**-23)


def test_sums_are_those_of_float32(images, kernel):
    exact = np.zeros((3, 9, 9, 8))
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(3, 3):
        exact += padded[:, i : i + 9, j : j + 9] @ kernel[i, j].astype(np.float64)
    run = jax.jit(lambda *arrays: half_products.convolve(convolution, *arrays))
    found = run(images, images.max(), kernel)
    plain = jax.jit(convolution)(images, kernel)
    error = lambda out: np.abs(np.asarray(out) - exact).max() / np.abs(exact).max()
    assert error(found) < 1e-6 and error(plain) < 1e-6
    zeros = run(0 * images, np.float32(0), kernel)
    assert (np.asarray(zeros) == 0).all()


def test_sums_of_whole_numbers_need_no_more_than_24_bits(images, kernel):
    """What matrix units add up without loss, whatever the order."""
    pixels = half_products.split(images, images.max(), half_products.PIXEL_BITS)
    largest = np.abs(kernel).max((0, 1, 2))
    weights = half_products.split(kernel, largest, half_products.KERNEL_BITS)
    total = np.abs(convolution(pixels.whole, weights.whole))
    assert total.max() < 2**24


def test_gpus_are_given_float16_and_a_barrier(images, kernel):
    """A number is not computed twice where its two parts are."""
    conv = inception_table.Conv("", 8, (3, 3))
    product = functools.partial(inception._product, conv)
    run = jax.jit(lambda *arrays: half_products.convolve(product, *arrays))
    arrays = (images, np.float32(4), kernel)
    text = export.export(run, platforms=["cuda"])(*arrays).mlir_module()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    kinds = [re.findall(r"x(f16|f32)>", line) for line in products]
    assert kinds == [["f16", "f16", "f32"], ["f16", "f16", "f16"]]
    assert "stablehlo.optimization_barrier" in text


@pytest.mark.slow
def test_the_network_is_that_of_the_recording(golden):
    recording = Recording(golden("eval_inception.safetensors"))
    sizes = sorted(recording.config["sizes"], key=lambda size: size[0] * size[1])
    name = "{}x{}".format(*sizes[0])
    images = recording[f"in/{name}/images_uint8"].transpose(0, 2, 3, 1)[:1]
    params = parameters(recording.config["weights_salt"])
    # CPUs drop the barrier, and only optimised programs do without it.
    network = jax.jit(inception.outputs, static_argnums=2, compiler_options=OPTIMISED)
    out = network(params, images, "float16x3")
    for ours, key in (
        (out.pool3, "pool3"),
        (out.logits, "logits"),
        (out.logits_unbiased, "logits_unbiased"),
        (out.spatial, "spatial_nhwc"),
    ):
        expected = recording[f"out/{name}/{key}"][:1]
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=key)
