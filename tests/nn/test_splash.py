"""JAX's splash attention, interpreted, against the plain formula; who takes it when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, JaxprEqn

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn import attention, splash
from pixelflow_jax.nn.attention import attend, attend_packed
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.stack import StackConfig, run_layers
from tests.jaxprs import names

MASK = np.arange(3)[:, None] * 40 + 7 > np.arange(70)  # 7, 47 and all of 70 keys
MASK[0] = False  # nothing is seen: the mean


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """Choices as for a TPU; what is chosen is interpreted all the same."""
    monkeypatch.setattr(backends, "platform", lambda: "tpu")
    monkeypatch.setattr(backends, "is_interpreted", lambda: True)


def arrays(n: int, m: int, width: int = 72, heads: int = 2, b: int = 3) -> list:
    draws = np.random.default_rng(0)
    shapes = [(b, length, heads, width) for length in (n, m, m)]
    return [jnp.asarray(draws.standard_normal(s), jnp.float32) for s in shapes]


def with_gradient(function, given, *rest):
    """The function's result and its gradients, float32, of a weighted sum."""

    def total(*qkv):
        out = function(*qkv, *rest).astype(jnp.float32)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

    run = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))
    (_, out), gradients = run(*given)
    return [a.astype(jnp.float32) for a in (out, *gradients)]


def assert_alike(ours, theirs, tolerance):
    for a, b in zip(ours, theirs, strict=True):
        scale = float(jnp.abs(b).max())
        np.testing.assert_allclose(a, b, atol=tolerance * scale)


plain = functools.partial(attend, implementation="xla")


@pytest.mark.parametrize(
    ("n", "m", "width", "mask"),
    [
        (128, 128, 64, None),
        (33, 70, 72, None),
        (5, 70, 128, MASK),
        (256, 384, 72, None),  # several blocks of each
        (250, 300, 72, np.arange(300) < np.full((3, 1), 291)),
    ],
)
def test_it_is_the_plain_formula(n, m, width, mask, monkeypatch):
    for name in ("QUERIES", "KEYS_BACKWARD", "AT_ONCE"):
        monkeypatch.setattr(splash, name, 128)
    qkv = arrays(n, m, width)
    mask = None if mask is None else jnp.asarray(mask)
    with jax.default_matmul_precision("highest"):
        ours = with_gradient(splash.attend, qkv, mask)
        theirs = with_gradient(plain, qkv, mask)
    assert_alike(ours, theirs, 1e-5)


def test_half_precision_stays_half_and_close():
    qkv = arrays(40, 40)
    halves = [a.astype(jnp.bfloat16) for a in qkv]
    assert splash.attend(*halves).dtype == jnp.bfloat16
    theirs = with_gradient(plain, qkv)
    assert_alike(with_gradient(splash.attend, halves), theirs, 0.02)


def test_of_padded_sequences_only_the_first_tokens_are_seen(as_on_a_tpu):
    q, k, v = (a.astype(jnp.bfloat16) for a in arrays(160, 160))
    ours = attend(q, k, v, implementation="splash", length=45)[:, :45]
    theirs = plain(*(a[:, :45] for a in (q, k, v)))
    assert_alike([ours.astype(jnp.float32)], [theirs.astype(jnp.float32)], 0.02)


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_each_group_attends_to_itself(batches, as_on_a_tpu):
    packing = Packing(batches, (20, 8))
    groups = [arrays(n, n, b=b) for b, n in zip(batches, packing.lengths, strict=True)]
    q, k, v = (packing.join(parts) for parts in zip(*groups, strict=True))
    halves = [a.astype(jnp.bfloat16) for a in (q, k, v)]
    results = []
    for asked in ("splash", "xla"):
        with choose(Kernels(attention=asked)):
            results.append(attend_packed(*halves, packing).astype(jnp.float32))
    assert_alike(results[:1], results[1:], 0.02)


@pytest.mark.parametrize(
    ("b", "heads"), [(4, 2), (4, 3), (3, 2)], ids=["all", "heads whole", "images whole"]
)
def test_a_mesh_divides_images_and_heads(b, heads):
    qkv = arrays(16, 16, heads=heads, b=b)
    mask = jnp.arange(16) < jnp.arange(9, 9 + b)[:, None]
    theirs = with_gradient(plain, qkv, mask)
    with jax.set_mesh(MeshShape(data=2, fsdp=2, tensor=2).build()):
        assert "shard_map" in names(jax.make_jaxpr(splash.attend)(*qkv))
        assert_alike(with_gradient(splash.attend, qkv, mask), theirs, 1e-5)


def kernels(program: Jaxpr) -> int:
    """How many kernels a program runs: those in parts without results it does not."""
    parts = [equation for equation in program.eqns if equation.outvars]
    inner = [i for part in parts for i in inside(part)]
    return sum(map(kernels, inner)) + sum(
        part.primitive.name == "pallas_call" for part in parts
    )


def inside(equation: JaxprEqn) -> list[Jaxpr]:
    programs = [getattr(p, "jaxpr", p) for p in equation.params.values()]
    return [p for p in programs if isinstance(p, Jaxpr)]


@pytest.mark.parametrize("remat", ["none", "names", "branches"])
def test_the_backward_pass_does_not_attend_again(remat):
    """Two kernels, forward and backward; a third has no result that anyone reads."""
    block = lambda layer, x: x + splash.attend(x * layer, x, x)
    config = StackConfig(remat=remat, scan=False)
    with jax.set_mesh(MeshShape().build()):
        total = lambda x: run_layers(block, [jnp.ones(())], x, config).sum()
        program = jax.make_jaxpr(jax.grad(total))(arrays(16, 16, b=8)[0])
    assert kernels(program.jaxpr) == 2


def chosen(asked="auto", n=4096, b=1, width=72, dtype=jnp.bfloat16, **how) -> str:
    """Who attends, of shapes alone."""
    q = jax.ShapeDtypeStruct((b, n, 16, width), dtype)
    run = functools.partial(attend, implementation=asked, **how)
    found = names(jax.make_jaxpr(run)(q, q, q))
    return "splash" if "pallas_call" in found else "xla"


def test_it_is_taken_where_logits_would_leave_the_chip(as_on_a_tpu):
    assert [chosen(n=n) for n in (256, 1024, 1032, 4096)] == ["xla"] * 2 + [
        "splash"
    ] * 2
    assert [chosen(n=256, b=b) for b in (8, 16, 32)] == ["xla", "xla", "splash"]
    mask = jnp.ones((1, 4096), bool)
    assert chosen(mask=mask) == chosen(length=4090) == "splash"
    with jax.set_mesh(MeshShape(fsdp=2, tensor=2).build()):
        assert [chosen(n=256, b=b) for b in (32, 256)] == ["xla", "splash"]
        assert chosen(b=3) == "xla"  # all of it on every device


def test_it_is_not_taken_where_it_cannot_be(as_on_a_tpu, monkeypatch):
    assert chosen(dtype=jnp.float32) == chosen(width=68) == chosen(width=256) == "xla"
    assert chosen(drop=lambda p: p) == chosen("xla") == "xla"
    monkeypatch.setattr(splash, "MODULE", "jax.experimental.no_such_module")
    assert chosen() == "xla"
    with pytest.raises(ValueError, match="cannot be had: jax .* lacks Pallas' splash"):
        chosen("splash")


def test_without_a_tpu_nothing_changes():
    assert chosen() == "xla"
    with pytest.raises(ValueError, match="needs a TPU, and there is none"):
        chosen("splash")


def test_what_it_cannot_do_is_refused(as_on_a_tpu):
    assert chosen("splash", n=8) == "splash"
    with pytest.raises(ValueError, match="cannot drop probabilities"):
        chosen("splash", drop=lambda p: p)
    with pytest.raises(ValueError, match="multiple of 8 up to 128, not float32 heads"):
        chosen("splash", dtype=jnp.float32)
    with pytest.raises(ValueError, match="not bfloat16 heads of width 136"):
        chosen("splash", width=136)


def test_blocks_divide_every_padded_length():
    for n in (128, 384, 640, 1664, 2560, 4096, 4608, 16384):
        blocks = splash._blocks(n, n)
        for part in (blocks.block_q, blocks.block_kv, blocks.block_kv_dkv):
            assert n % part == 0
        assert blocks.block_kv % blocks.block_kv_compute == 0
        assert blocks.block_kv_dkv % blocks.block_kv_dkv_compute == 0
    assert splash._padded(jnp.ones((1, 300, 1, 1))).shape[1] == 384
    assert splash._padded(jnp.ones((1, 2304, 1, 1))).shape[1] == 2560


def test_attention_uses_it(monkeypatch):
    monkeypatch.setattr(attention.splash, "gains", lambda q, k: True)
    assert chosen(n=64) == "splash"
