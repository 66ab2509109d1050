"""An MLP as one kernel and its last product: when, what lowers, and gradients.

What the kernel computes is compared on a GPU: by `pixelflow doctor` and by `python -m
benchmarks.kernels --only 'mlp *'`.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.dropout import group_dropouts, layer_dropout_keys
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels import mlp as operation
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.mlp import Layers, gains, mlp, separate
from pixelflow_jax.nn.kernels.mosaic_gpu import activated_product
from pixelflow_jax.nn.kernels.mosaic_gpu.activated_product import Sizes
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import MOST_BYTES, PIECE
from pixelflow_jax.nn.packing import Packing

HOPPER, OTHER = "NVIDIA H200", "NVIDIA A100-SXM4-80GB"
NEW = jax.__version_info__ >= backends.OLDEST
wants_triton = pytest.mark.skipif(
    "PIXELFLOW_WITHOUT_TRITON" in os.environ, reason="wants Triton"
)
needs_new = pytest.mark.skipif(not NEW, reason="needs a newer jax")
CALL = "custom_call @mosaic_gpu"


def on(kind: str):
    """As if the program ran on a GPU of that kind."""
    device = jax.sharding.AbstractDevice(kind, 132, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def array(*shape: int, dtype: str = "bfloat16") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def layers(kind: str, width: int, hidden: int, bias: bool, together: bool = False):
    """The shapes of an MLP's matrices and biases."""
    count = 2 if kind == "swiglu" else 1
    first = (array(width, count * hidden),) if together else ()
    first = first or (array(width, hidden),) * count
    biases = (array(hidden, dtype="float32"),) * count if bias else ()
    return Layers(first, biases, array(hidden, width))


@pytest.fixture
def any_jax(monkeypatch):
    """The choice is the same with every jax, as if all could run the kernel."""
    monkeypatch.setattr(backends, "OLDEST", (0, 0))


@pytest.mark.parametrize(
    ("kind", "tokens", "sizes", "gains_there"),
    [
        ("swiglu", (64, 256), (1152, 3072), True),  # PixNerd-XL, guided
        ("swiglu", (64, 288), (1152, 3072), True),  # PixelGen-XL
        ("gelu", (2, 4096), (1152, 4608), True),  # PixelFlow-XL, the last stage
        ("gelu", (8, 4096), (1152, 4608), True),
        ("gelu", (2, 1024), (1152, 4608), False),  # a third of the GPU without work
        ("swiglu", (2, 256), (1152, 3072), False),  # one image: too few tiles
        ("swiglu", (63, 257), (1152, 3072), False),  # no whole tiles
        ("swiglu", (64, 256), (1024, 2730), False),  # nor columns
        ("swiglu", (64, 256), (128, 512), False),  # too narrow for its stages
    ],
)
def test_auto_takes_it_where_it_gains(any_jax, kind, tokens, sizes, gains_there):
    x, given = array(*tokens, sizes[0]), layers(kind, *sizes, bias=False)
    with on(HOPPER):
        assert gains(kind, x, given) == gains_there
        with choose(Kernels(blocks="mosaic")):
            assert gains(kind, x, given) == gains_there
        for word in ("xla", "pallas"):
            with choose(Kernels(blocks=word)):
                assert not gains(kind, x, given)
        exact = jax.ShapeDtypeStruct(x.shape, "float32")
        assert not gains(kind, exact, given)
    with on(OTHER):
        assert not gains(kind, x, given)


def test_what_it_keeps_fits_into_shared_memory():
    a = activated_product
    stage = a.TILE * a.DEPTH + a.DEPTH * a.COLUMNS
    results = a.WARPGROUPS * a.SLOTS * 64 * a.WRITTEN
    assert 2 * (a.STAGES * stage + results) + 2 * PIECE <= MOST_BYTES


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
@pytest.mark.parametrize("rows", [256, 512, 2048, 16384, 18432, 21760])
def test_all_tiles_have_their_turn_once(kind, rows):
    """Which tile a program has in which step, by the kernel's own arithmetic."""
    sizes = Sizes(kind, rows, 1152, 3072)
    assert sizes.known and 0 < sizes.busy <= 1
    columns = sizes.hidden // sizes.wide
    program = object.__new__(activated_product._Program)
    program.sizes, program.program = sizes, jnp.int32(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "axis_index", lambda name: jnp.int32(0))
        numbers = jnp.arange(sizes.tiles)
        patch.setattr(Sizes, "clusters", 1)
        row, column = jax.vmap(program._tile)(numbers)
    found = set(zip(row.tolist(), column.tolist(), strict=True))
    tiles = {(256 * i, j) for i in range(rows // 256) for j in range(columns)}
    assert found == tiles and sizes.tiles == len(tiles)


def lowered(function, *arrays) -> str:
    traced = jax.jit(function).trace(*arrays)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@needs_new
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "none"])
@pytest.mark.parametrize(
    ("kind", "together"), [("swiglu", False), ("swiglu", True), ("gelu", False)]
)
def test_it_lowers_and_hands_hidden_values_alone_over(kind, together, bias):
    packing = Packing((32,), (256,))
    given = layers(kind, 768, 3072, bias, together)
    run = functools.partial(mlp, kind, packing=packing)
    with on(HOPPER):
        text = lowered(run, array(32, 256, 768), given)
    assert text.count(CALL) == 1
    assert text.count("dot_general") == 1  # the last product
    # A type that the caller's matrices need not have.
    with on(HOPPER):
        exact = jax.tree.map(lambda a: array(*a.shape, dtype="float32"), given)
        assert CALL in lowered(run, array(32, 256, 768), exact)


@wants_triton
@needs_new
def test_gradients_come_from_products_that_are_kept():
    packing, x = Packing((32,), (256,)), array(32, 256, 768)
    given = layers("swiglu", 768, 3072, bias=True)

    def gradients(run, x, given):
        total = lambda *all: run("swiglu", *all, packing).astype(jnp.float32).sum()
        return jax.grad(total, (0, 1))(x, given)

    with on(HOPPER):
        texts = [
            lowered(functools.partial(gradients, run), x, given)
            for run in (mlp, separate)
        ]
    assert CALL not in texts[0]
    counts = [text.count("dot_general") for text in texts]
    assert counts[0] == counts[1] > 0
    assert texts[0].count("__gpu$xla.gpu.triton") == texts[1].count(
        "__gpu$xla.gpu.triton"
    )


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_results_and_gradients_are_the_separate_ones(monkeypatch, kind):
    """With the formula in the kernel's place: what lies around it."""
    packing = Packing((2,), (16,))

    def formula(kind, x, matrices, biases):
        apart = separate(kind, x[None], Layers(matrices, biases, eye), packing)
        return apart[0]

    rng = np.random.default_rng(0)
    normal = lambda a: jnp.asarray(rng.standard_normal(a.shape) / 4, jnp.float32)
    given = jax.tree.map(normal, layers(kind, 64, 128, bias=True))
    x, eye = normal(array(2, 16, 64)), jnp.eye(128)
    monkeypatch.setattr(operation, "activated_product", formula)
    spec = kind, packing

    def total(run, x, given):
        out = run(x, given)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

    runs = (
        functools.partial(operation._fused, spec),
        lambda x, given: separate(kind, x, given, packing),
    )
    (found, gradients), (expected, exact) = (
        jax.value_and_grad(functools.partial(total, run), (0, 1), has_aux=True)(
            x, given
        )
        for run in runs
    )
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    np.testing.assert_allclose(runs[0](x, given), expected[1], atol=1e-4)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_is_dropped_is_left_to_the_other_kernels(any_jax, monkeypatch):
    asked = []
    monkeypatch.setattr(operation, "gains", lambda *_: asked.append(1) or True)
    rng = np.random.default_rng(0)
    normal = lambda a: jnp.asarray(rng.standard_normal(a.shape), jnp.float32)
    given = jax.tree.map(normal, layers("gelu", 16, 64, bias=False))
    (drop,) = layer_dropout_keys(jax.random.key(1), (2,), 1, range(1))
    dropouts = group_dropouts(drop, 0.5, 2)
    x, packing = normal(array(2, 16, 16)), Packing((2,), (16,))
    found = mlp("gelu", x, given, packing, dropouts)
    assert not asked
    expected = separate("gelu", x, given, packing, dropouts)
    np.testing.assert_array_equal(found, expected)


@needs_new
def test_each_device_computes_its_own_images(monkeypatch):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    monkeypatch.setattr(backends, "is_hopper", lambda: True)
    run = functools.partial(mlp, "swiglu", packing=Packing((128,), (256,)))
    given = layers("swiglu", 768, 3072, bias=False)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        text = lowered(run, array(128, 256, 768), given)
    calls = [line for line in text.splitlines() if CALL in line]
    assert calls and all("tensor<8192x3072xbf16>" in call for call in calls)
