"""An MLP as one kernel and its last product: when, what it computes, and gradients.

Pallas interprets the kernel on the CPU, with its barriers, copies and clusters, and
looks for races; products end at once there. On a GPU `pixelflow doctor` and `python -m
benchmarks.kernels --only 'mlp *'` compare it.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.doctor import kernels as doctor
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.dropout import group_dropouts, layer_dropout_keys
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels import mlp as operation
from pixelflow_jax.nn.kernels.activate_and_project import ACTIVATIONS
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
@pytest.mark.parametrize("rows", [256, 2048, 21760])
@pytest.mark.parametrize("cores", [2, 78, 132])
def test_all_tiles_have_their_turn_once(monkeypatch, kind, rows, cores):
    """Which tile a cluster has in which step, by the kernel's own arithmetic."""
    monkeypatch.setattr(activated_product, "multiprocessors", lambda: cores)
    places = {"cluster": 0, "warpgroup": 0}
    monkeypatch.setattr(jax.lax, "axis_index", lambda name: jnp.int32(places[name]))
    sizes = Sizes(kind, rows, 1152, 3072)
    found = []
    for program in range(sizes.clusters):
        places["program"] = program
        work = activated_product._Program(sizes, 1, (None,) * 8)
        tiles = jax.vmap(work._tile)(jnp.arange(work.steps))
        found += zip(*(a.tolist() for a in tiles), strict=True)
    columns = sizes.hidden // sizes.wide
    tiles = [(256 * i, j) for i in range(rows // 256) for j in range(columns)]
    assert sorted(found) == tiles and sizes.tiles == len(tiles)
    assert sizes.known and 0 < sizes.busy <= 1


@needs_new
@pytest.mark.parametrize("cores", [2, 4, 6])
@pytest.mark.parametrize(
    ("kind", "rows", "depth", "hidden", "together", "bias"),
    [
        ("swiglu", 512, 256, 384, False, True),
        ("swiglu", 256, 256, 128, True, True),
        ("swiglu", 256, 320, 256, True, False),
        ("gelu", 768, 320, 512, False, False),
        ("gelu", 256, 256, 768, False, True),
    ],
)
def test_it_computes_the_formula_without_races(
    monkeypatch, capfd, kind, rows, depth, hidden, together, bias, cores
):
    from jax.experimental.pallas import mosaic_gpu

    interpret = mosaic_gpu.InterpretGPUParams(detect_races=True)
    run = functools.partial(mosaic_gpu.kernel, interpret=interpret)
    monkeypatch.setattr(mosaic_gpu, "kernel", run)
    monkeypatch.setattr(activated_product, "multiprocessors", lambda: cores)
    assert Sizes(kind, rows, depth, hidden).known
    rng, count = np.random.default_rng(0), 2 if kind == "swiglu" else 1
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    x, matrices = normal(rows, depth), normal(count, depth, hidden) * depth**-0.5
    biases = normal(count, hidden).astype(jnp.float32) if bias else ()
    given = (jnp.concatenate(matrices, 1),) if together else tuple(matrices)
    kernel = activated_product.activated_product.__wrapped__
    found = kernel(kind, x, given, tuple(biases)).astype(jnp.float32)
    exact = [x.astype(jnp.float32) @ matrix.astype(jnp.float32) for matrix in matrices]
    if bias:
        exact = [a + b for a, b in zip(exact, biases, strict=True)]
    expected = ACTIVATIONS[kind](*exact)
    assert doctor.deviation(found, expected) <= 0.01
    assert "RACE DETECTED" not in capfd.readouterr().out


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
def test_what_lies_around_the_kernel(monkeypatch, kind):
    """With the formula in its place: tokens as rows, and the last product."""
    packing, rng = Packing((2,), (16,)), np.random.default_rng(0)
    normal = lambda a: jnp.asarray(rng.standard_normal(a.shape) / 4, jnp.float32)
    given = jax.tree.map(normal, layers(kind, 64, 128, bias=True))
    x, eye = normal(array(2, 16, 64)), jnp.eye(128)

    def formula(kind, x, matrices, biases):
        return separate(kind, x[None], Layers(matrices, biases, eye), packing)[0]

    monkeypatch.setattr(operation, "activated_product", formula)
    found = operation._fused((kind, packing), x, given)
    expected = separate(kind, x, given, packing)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # And gradients are there, of all layers.
    total = lambda x, given: operation._fused((kind, packing), x, given).sum()
    gradients = jax.grad(total, (0, 1))(x, given)
    assert all(jnp.abs(a).max() > 0 for a in jax.tree.leaves(gradients))


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


@pytest.mark.parametrize("cores", [78, 114, 132])
def test_the_doctor_s_sizes_are_the_kernel_s(any_jax, monkeypatch, cores):
    """Else it would compare the separate operations under the kernel's name."""
    monkeypatch.setattr(activated_product, "multiprocessors", lambda: cores)
    asked = []

    def noted(*given):
        asked.append(gains(*given))
        return False

    with on(HOPPER):
        operations = doctor.only_here(doctor.XL, "bfloat16")
        monkeypatch.setattr(operation, "gains", noted)
        for one in operations:
            if one.name.startswith("mlp"):
                run = functools.partial(one.function, Kernels(attention="hopper"))
                jax.eval_shape(run, *[array(*shape) for shape in one.shapes])
    assert asked == [True, True]
