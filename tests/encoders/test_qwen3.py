"""Qwen3 against plain numpy; who sees whom; the empty text; the width of features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.nn.precision import Precision
from tests.encoders.tiny_text import (
    GEOMETRIES,
    compiled,
    encoder,
    parameters,
    prompts,
    tensors,
)

TINY = GEOMETRIES["qwen3"]


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def turned(x: np.ndarray) -> np.ndarray:
    """[b, n, heads, head_width]: pair j of place p turned by p / period^(j / pairs)."""
    half = x.shape[-1] // 2
    for place in range(x.shape[1]):
        for j in range(half):
            angle = place / TINY.period ** (j / half)
            pair = x[:, place, :, j] + 1j * x[:, place, :, j + half]
            pair = pair * np.exp(1j * angle)
            x[:, place, :, j], x[:, place, :, j + half] = pair.real, pair.imag
    return x


def plain(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The network in float64; a token sees those up to itself that count."""
    p = {key: value.astype(np.float64) for key, value in tensors("qwen3").items()}
    x, n = p["embed_tokens.weight"][tokens], tokens.shape[1]
    seen = np.tril(np.ones((n, n), bool)) & mask[:, None, :]  # [b, query, key]
    for i in range(TINY.depth):
        own = {k.removeprefix(f"layers.{i}."): v for k, v in p.items()}
        linear = lambda name, z, own=own: z @ own[f"{name}.weight"].T
        z = rms(x, own["input_layernorm.weight"])
        q, k, v = (
            linear(f"self_attn.{name}_proj", z).reshape(*z.shape[:2], -1, 8)
            for name in "qkv"
        )
        q = turned(rms(q, own["self_attn.q_norm.weight"]))
        k = turned(rms(k, own["self_attn.k_norm.weight"]))
        mixed = np.empty_like(q)
        for head in range(TINY.heads):
            served = head * TINY.kv_heads // TINY.heads
            logits = np.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, served])
            weights = np.exp(logits / np.sqrt(8)) * seen
            weights /= weights.sum(-1, keepdims=True)
            mixed[:, :, head] = weights @ v[:, :, served]
        x = x + linear("self_attn.o_proj", mixed.reshape(*z.shape[:2], -1))
        z = rms(x, own["post_attention_layernorm.weight"])
        gate = linear("mlp.gate_proj", z)
        hidden = gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", z)
        x = x + linear("mlp.down_proj", hidden)
    return rms(x, p["norm.weight"])


def states(tokens, mask, **fields) -> np.ndarray:
    run = jax.jit(encoder("qwen3", **fields).states) if fields else compiled("qwen3")
    return np.asarray(run(parameters("qwen3"), tokens, mask))


def test_states_are_those_of_plain_numpy():
    tokens, mask = prompts()
    found = states(tokens, mask)
    np.testing.assert_allclose(found, plain(tokens, mask), atol=2e-5)
    whole = plain(tokens, mask | True)
    np.testing.assert_allclose(states(tokens, None), whole, atol=2e-5)
    np.testing.assert_array_equal(states(tokens, None), states(tokens, mask | True))


def test_no_token_sees_what_is_behind_it():
    tokens, mask = prompts()
    found, other = states(tokens, mask), tokens.copy()
    other[:, 6:] = 9
    changed = np.abs(states(other, mask) - found)
    assert not changed[:, :6].any() and (changed[2, 6:].max(-1) > 1e-2).all()


def test_the_empty_text_is_answered_in_two_ways():
    tokens, mask = prompts()
    empty, nothing = (part[None] for part in encoder("qwen3").empty(11))
    attend = states(empty, nothing)
    zero = states(empty, nothing, empty_text="zero")
    for found in (attend, zero):  # all places alike
        np.testing.assert_allclose(found[0, 1:], found[0, :-1], atol=1e-5)
    np.testing.assert_array_equal(attend, states(empty, None))
    assert np.abs(attend - zero).max() > 0.1
    # Without attention, a network is its MLPs.
    p = {key: value.astype(np.float64) for key, value in tensors("qwen3").items()}
    x = p["embed_tokens.weight"][empty]
    for i in range(TINY.depth):
        own = f"layers.{i}.mlp"
        z = rms(x, p[f"layers.{i}.post_attention_layernorm.weight"])
        gate, up = (z @ p[f"{own}.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ p[f"{own}.down_proj.weight"].T
    np.testing.assert_allclose(zero, rms(x, p["norm.weight"]), atol=1e-5)
    # Texts in the same batch see no difference.
    both = np.r_[tokens, empty], np.r_[mask, nothing]
    for kind, alone in (("attend", attend), ("zero", zero)):
        found = states(*both, empty_text=kind)
        np.testing.assert_allclose(found[:3], states(tokens, mask), atol=1e-5)
        np.testing.assert_allclose(found[3:], alone, atol=1e-5)


@pytest.mark.parametrize("width", [10, 24, 30])
def test_features_are_cut_off_or_filled_up(width):
    tokens, mask = prompts()
    found, own = states(tokens, mask, embed_width=width), states(tokens, mask)
    assert found.shape[-1] == encoder("qwen3", embed_width=width).width == width
    np.testing.assert_allclose(found[..., :24], own[..., :width], atol=1e-6)
    assert not found[..., 24:].any()


def test_residuals_keep_what_half_precision_would_lose():
    """Embeddings much larger than what blocks add to them do not swallow it."""
    tokens, mask = prompts()
    table = np.asarray(parameters("qwen3")["embedding"]["kernel"])
    table = np.asarray(jnp.asarray(table, jnp.bfloat16) * 4096, np.float32)
    large = {**parameters("qwen3"), "embedding": {"kernel": jnp.asarray(table)}}
    nothing = rms(table[tokens], np.asarray(large["norm"]["weight"]))
    exact, half = (
        jax.jit(encoder("qwen3", **fields).states)(large, tokens, mask) - nothing
        for fields in ({}, {"precision": Precision()})
    )
    assert 1e-3 < np.abs(exact).max() < 0.1
    assert np.linalg.norm(half - exact) < 0.05 * np.linalg.norm(exact)


def test_what_is_neither_answer_nor_width_is_named():
    for fields, part in (
        ({"empty_text": "mean"}, "empty_text='mean' is neither"),
        ({"embed_width": -1}, "embed_width=-1"),
    ):
        (found,) = encoder("qwen3", **fields).problems()
        assert part in found
