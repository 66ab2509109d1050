"""Attention against the plain formula, and packed groups against separate ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn import attention
from pixelflow_jax.nn.attention import SelfAttention, attend, attend_packed
from pixelflow_jax.nn.embed import rotary_table
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.layers import TORCH, BlockConfig
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision

EXACT = Precision(compute="float32", matmul="highest")
MASK = jnp.array([[True] * 7, [True, True, True, False, True, False, False]])


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def self_attention(**fields) -> SelfAttention:
    config = BlockConfig(width=16, heads=2, hidden=0, **fields)
    return SelfAttention(config, EXACT, nnx.Rngs(0))


@jax.jit
def plain(q, k, v, mask=None):
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, -jnp.inf)
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)


@pytest.fixture(scope="module")
def qkv():
    return [2 * normal(seed, 2, n, 3, 8) for seed, n in enumerate((5, 7, 7))]


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_attention_and_its_gradient_are_the_plain_formula(qkv, mask, implementation):
    ours = lambda q, k, v: attend(q, k, v, mask, implementation)
    theirs = lambda q, k, v: plain(q, k, v, mask)
    probe = jnp.cos(jnp.arange(2 * 5 * 3 * 8.0)).reshape(2, 5, 3, 8)
    results = []
    for function in (ours, theirs):
        total = lambda *qkv, function=function: jnp.sum(function(*qkv) * probe)
        gradients = jax.jit(jax.grad(total, (0, 1, 2)))(*qkv)
        results.append((jax.jit(function)(*qkv), gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_dropping_no_probabilities_is_the_plain_formula(qkv, mask):
    ours = jax.jit(lambda *qkv: attend(*qkv, mask, drop=lambda p: p))(*qkv)
    np.testing.assert_allclose(ours, plain(*qkv, mask), atol=2e-5)
    low = attend(*(a.astype(jnp.bfloat16) for a in qkv), mask, drop=lambda p: p)
    assert low.dtype == jnp.bfloat16


def test_dropout_acts_on_the_normalised_probabilities(qkv):
    """Rows no longer sum to one: each value has a factor of its own."""
    q, k, v = qkv
    ones, seen = jnp.ones_like(v), []

    def drop(probabilities):
        seen.append(probabilities)
        return 2 * probabilities.at[..., 3:].set(0.0)

    out = attend(q, k, ones, drop=drop)
    assert seen[0].shape == (2, 3, 5, 7) and seen[0].dtype == jnp.float32
    np.testing.assert_allclose(seen[0].sum(-1), 1, atol=1e-5)
    kept = jnp.moveaxis(2 * seen[0][..., :3].sum(-1), 1, 2)  # [b, n, heads]
    np.testing.assert_allclose(out, jnp.broadcast_to(kept[..., None], out.shape), 1e-5)


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_each_group_drops_its_own_probabilities(batches):
    packing, layer = Packing(batches, (4, 3)), self_attention()
    groups = [normal(b, b, n, 16) for b, n in zip(batches, (4, 3), strict=True)]
    identity_rope = tuple(
        packing.tile([jnp.full((n, 4), a) for n in (4, 3)]) for a in (1.0, 0.0)
    )
    dropouts = (lambda p: p, lambda p: jnp.zeros_like(p))
    run = lambda dropouts: jax.jit(lambda x: layer(x, packing, identity_rope, dropouts))
    whole, dropped = (
        packing.split(run(d)(packing.join(groups))) for d in (None, dropouts)
    )
    np.testing.assert_allclose(dropped[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(dropped[1], 0, atol=1e-6)  # the block adds the bias


def test_biases_and_initialisers_are_as_asked():
    none = self_attention()
    assert none.qkv.bias is None and none.out.bias is not None
    ones, zeros = nnx.initializers.ones, nnx.initializers.zeros
    initial = TORCH._replace(kernel=ones, bias=zeros)
    layer = self_attention(bias=True, initial=initial)
    assert layer.qkv.bias.shape == (48,)
    for part in (layer.qkv, layer.out):
        assert (part.kernel[...] == 1).all() and (part.bias[...] == 0).all()


def test_masked_keys_have_no_influence(qkv):
    q, k, v = qkv
    hidden = ~MASK[:, :, None, None]
    changed = attend(q, jnp.where(hidden, 9.0, k), jnp.where(hidden, 9.0, v), MASK)
    np.testing.assert_allclose(changed, attend(q, k, v, MASK), atol=1e-6)


def test_half_precision_stays_half_and_close(qkv):
    low = [a.astype(jnp.bfloat16) for a in qkv]
    out = attend(*low)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), plain(*qkv), atol=0.1)


def test_an_unknown_implementation_is_refused(qkv):
    with pytest.raises(ValueError, match="one of auto, xla, .*, not 'flash'"):
        attend(*qkv, implementation="flash")


def test_what_cudnn_cannot_do_is_refused(qkv):
    with pytest.raises(ValueError, match='kernels.attention="cudnn".*under masks'):
        attend(*qkv, MASK, "cudnn")
    with pytest.raises(ValueError, match='kernels.attention="cudnn" cannot drop'):
        attend(*qkv, None, "cudnn", drop=lambda p: p)
    with pytest.raises(ValueError, match='attention="cudnn" needs a GPU'):
        attend(*qkv, None, "cudnn")


@pytest.mark.parametrize("implementation", ["auto", "xla", "cudnn", "splash"])
def test_packed_attention_is_computed_as_was_chosen(qkv, implementation, monkeypatch):
    asked = []

    def noted(q, k, v, mask, implementation, drop):
        asked.append(implementation)
        return q

    monkeypatch.setattr(attention, "attend", noted)
    packing, sources = Packing((2,), (5,)), Packing((2,), (7,))
    with choose(Kernels(attention=implementation)):
        attend_packed(*qkv, packing, sources)
    attend_packed(*qkv, packing, sources)
    assert asked == [implementation, "auto"]


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_each_image_attends_to_itself_alone(batches):
    layer = self_attention()
    grids = ((2, 3), (1, 4))
    tables = [rotary_table(*grid, 8, 16.0) for grid in grids]
    groups = [
        normal(b + r, b, r * c, 16) for b, (r, c) in zip(batches, grids, strict=True)
    ]
    packing = Packing(batches, (6, 4))
    rope = tuple(packing.tile([jnp.asarray(t[i]) for t in tables]) for i in (0, 1))
    run = jax.jit(lambda x, packing, rope: layer(x, packing, rope), static_argnums=1)
    packed = packing.split(run(packing.join(groups), packing, rope))
    for out, group, table in zip(packed, groups, tables, strict=True):
        alone = Packing((len(group),), (group.shape[1],))
        np.testing.assert_allclose(out, run(group, alone, table), atol=1e-6)


@pytest.mark.parametrize("batches", [(2,), (2, 2, 2), (1, 3, 2)])
def test_packing_round_trips(batches):
    lengths = (6, 4, 1)[: len(batches)]
    packing = Packing(batches, lengths)
    groups = [
        normal(i, b, n, 5)
        for i, (b, n) in enumerate(zip(batches, lengths, strict=True))
    ]
    joined = packing.join(groups)
    rows = batches[0] if len(set(batches)) == 1 else 1
    assert joined.shape[0] == rows and joined.size == sum(g.size for g in groups)
    for out, group in zip(packing.split(joined), groups, strict=True):
        np.testing.assert_array_equal(out, group)


@pytest.mark.parametrize("batches", [(2,), (2, 2), (1, 3)])
def test_every_token_meets_its_images_vector_and_its_groups_table(batches):
    lengths = (3, 2)[: len(batches)]
    packing = Packing(batches, lengths)
    vectors = [10.0 * i + jnp.arange(b)[:, None] for i, b in enumerate(batches)]
    tables = [100.0 * i + jnp.arange(n)[:, None] for i, n in enumerate(lengths)]
    groups = [jnp.zeros((b, n, 1)) for b, n in zip(batches, lengths, strict=True)]
    tokens = packing.join(groups)
    spread = packing.split(tokens + packing.broadcast(vectors))
    tiled = packing.split(tokens + packing.tile(tables))
    for group, vector in zip(spread, vectors, strict=True):
        expected = jnp.broadcast_to(vector[:, None], group.shape)
        np.testing.assert_array_equal(group, expected)
    for group, table in zip(tiled, tables, strict=True):
        np.testing.assert_array_equal(group, jnp.broadcast_to(table, group.shape))


def test_only_the_first_tokens_are_looked_at():
    draws = np.random.default_rng(5).standard_normal((3, 2, 8, 2, 4))
    q, k, v = jnp.asarray(draws, jnp.float32)
    alone = attend(*(a[:, :5] for a in (q, k, v)))
    np.testing.assert_allclose(attend(q, k, v, length=5)[:, :5], alone, atol=1e-6)
    mask = jnp.arange(8) != 2
    seen = jnp.broadcast_to(mask, (2, 8))
    masked = attend(q[:, :5], k[:, :5], v[:, :5], seen[:, :5])
    both = attend(q, k, v, seen, length=5)[:, :5]
    np.testing.assert_allclose(both, masked, atol=1e-6)
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"There are 8 tokens, not {wrong}"):
            attend(q, k, v, length=wrong)
