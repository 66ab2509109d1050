"""The neural field's backward pass on Hopper GPUs, interpreted on the CPU by Pallas.

Copies, barriers, and who computes what are the kernel's own, and races are looked for;
the products of the matrix units, which the interpreter does not know, are formulas
here. What it computes on a GPU is compared by `pixelflow doctor`.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.doctor.kernels import deviation
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.mosaic_gpu import neural_field as hopper
from pixelflow_jax.nn.kernels.mosaic_gpu import neural_field_work
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import MOST_BYTES
from pixelflow_jax.nn.kernels.neural_field import (
    GeneratedMLP,
    neural_field,
    reference,
)

NEW = jax.__version_info__ >= backends.OLDEST
RACE = "RACE DETECTED"  # in what is printed; newer jax raises it
needs_new = pytest.mark.skipif(not NEW, reason="needs a newer jax")


@pytest.fixture
def interpreted(monkeypatch):
    """`interpreted(cores)`: kernels run on the CPU, as if on so many cores."""
    from jax.experimental.pallas import mosaic_gpu

    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)

    def lay_rows(to, part, rows) -> None:
        side_by_side = to.shape[1]
        for number, row in enumerate(rows, part * len(rows)):
            to.at[number // side_by_side, number % side_by_side][...] = row

    formulas = {
        "two_products": lambda *products: tuple(
            product(rows, block[...].T if transposed else block[...])
            for rows, block, transposed in products
        ),
        "more_of_pixels": lambda sums, rows, block: (
            sums + product(rows, block()[...].T)
        ),
        "more_of_weights": lambda sums, pairs: [
            a + product(rows[...].T, block[...])
            for a, (rows, block) in zip(sums, pairs(), strict=True)
        ],
        "lay_rows": lay_rows,
    }

    def use(cores: int) -> None:
        interpret = mosaic_gpu.InterpretGPUParams(detect_races=True)
        run = functools.partial(mosaic_gpu.kernel, interpret=interpret)
        monkeypatch.setattr(mosaic_gpu, "kernel", run)
        nothing = lambda *_, **__: None
        monkeypatch.setattr(mosaic_gpu, "set_max_registers", nothing)
        monkeypatch.setattr(neural_field_work, "multiprocessors", lambda: cores)
        for name, formula in formulas.items():
            monkeypatch.setattr(neural_field_work, name, formula)

    return use


@needs_new
@pytest.mark.parametrize(
    ("patches", "pixels", "hidden", "unit", "cores"),
    [
        (3, 256, 128, (True, True), 2),
        (2, 256, 128, (False, False), 1),
        (5, 256, 64, (True, False), 2),
        (4, 256, 128, (False, True), 132),
        (2, 384, 64, (True, True), 1),
    ],
)
def test_backward(interpreted, capfd, patches, pixels, hidden, unit, cores):
    interpreted(cores)
    rng = np.random.default_rng(0)
    shapes = (patches, pixels, 64), (patches, 2 * 64 * hidden), (patches, pixels, 64)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    z, weights, cotangent = map(draw, shapes)
    weights = weights if any(unit) else weights / 8
    gain = jnp.asarray(1 + 0.1 * rng.standard_normal(64), jnp.float32)
    found = hopper.backward.__wrapped__(unit, z, gain, weights, cotangent)

    def field(z, gain, weights):
        mlp = GeneratedMLP(weights[None], 64, unit)
        return reference(z[None], gain, mlp)[0]

    exact = (a.astype(jnp.float32) for a in (z, gain, weights))
    _, pull = jax.vjp(field, *exact)
    for one, other in zip(found, pull(cotangent.astype(jnp.float32)), strict=True):
        assert one.shape == other.shape
        assert deviation(one, other) <= 0.01
    assert RACE not in capfd.readouterr().out


def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def lowered(field: str, pixels: int, dtype: str = "bfloat16") -> str:
    """A field's gradients for a Hopper GPU."""

    def loss(z, weights):
        mlp = GeneratedMLP(weights, 64, (True, True))
        return neural_field(z, jnp.ones(64), mlp).astype(jnp.float32).sum()

    device = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    given = array(2, 9, pixels, 64, dtype=dtype), array(2, 9, 2 * 64 * 128, dtype=dtype)
    with jax.sharding.use_abstract_mesh(mesh), choose(Kernels(field=field)):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*given)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@needs_new
@pytest.mark.skipif(
    "PIXELFLOW_WITHOUT_TRITON" in os.environ, reason="wants Triton's forward pass"
)
@pytest.mark.parametrize(
    ("field", "pixels", "dtype", "taken"),
    [
        ("auto", 256, "bfloat16", True),
        ("auto", 256, "float16", False),  # not timed
        ("auto", 64, "bfloat16", False),  # no tile for each warpgroup
        ("pallas", 256, "bfloat16", False),
        ("xla", 256, "bfloat16", False),
    ],
)
def test_auto_takes_it_on_hopper_gpus(field, pixels, dtype, taken):
    assert ("custom_call @mosaic_gpu" in lowered(field, pixels, dtype)) == taken


def test_the_sizes_it_knows():
    half = jnp.dtype("bfloat16")
    known = [
        (pixels, width, hidden)
        for pixels in (64, 128, 256, 320, 384)
        for width in (32, 64, 128)
        for hidden in (32, 64, 128, 256)
        if hopper.supports(pixels, width, hidden, half)
    ]
    assert known == [(p, 64, h) for p in (256, 384) for h in (64, 128)]
    assert not hopper.supports(256, 64, 128, jnp.dtype("float32"))


def test_it_fits_into_shared_memory():
    """Tiles of two slots, weights of two patches, and what tiles leave for sums."""
    tiles = 2 * 2 * 2 * 64 * 64 * 2
    weights, left, result = 2 * 2 * 64 * 128 * 2, 2 * 3 * 64 * 64 * 2, 64 * 128 * 2
    scales, others = 2048, 2048
    assert tiles + weights + left + result + scales + others <= MOST_BYTES
