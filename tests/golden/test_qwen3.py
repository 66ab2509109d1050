"""Qwen3 against arrays recorded from transformers and the official conditioners."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from pixelflow_jax.encoders.qwen3 import Qwen3, Qwen3Geometry
from tests.golden import harness
from tests.golden.harness import EXACT, Fixture, close, take

EXACTLY = 1e-5
# transformers' names of Qwen3Geometry's fields.
FIELDS = {
    "hidden_size": "width",
    "intermediate_size": "hidden",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_width",
    "vocab_size": "vocabulary",
    "rope_theta": "period",
}
EMPTY = {"sdpa": "zero", "eager": "attend", "sdpa_mask_none": "attend"}
CONDITION = re.compile(r"(.+)/embed_dim(\d+)/condition_fp32")


def geometry(fixture: Fixture) -> Qwen3Geometry:
    """Our sizes from transformers' config."""
    known = dict.fromkeys(FIELDS)
    known |= {"rms_norm_eps": 1e-6, "attention_bias": False}
    known |= {"tie_word_embeddings": True, "max_position_embeddings": 0}
    o = take(fixture.config["model"], known)
    missing = sorted(name for name in FIELDS if o[name] is None)
    assert not missing, f"the official arguments lack {missing}"
    assert o["rms_norm_eps"] == 1e-6 and not o["attention_bias"]
    sizes = {ours: o[theirs] for theirs, ours in FIELDS.items()}
    return Qwen3Geometry(**sizes, padding=fixture.config["pad_id"])


def loaded(fixture: Fixture, folder, **fields) -> tuple[Qwen3, dict]:
    """Our network and its parameters, which come through a file of its own."""
    net = Qwen3(geometry=geometry(fixture), **{"precision": EXACT, **fields})
    assert not net.problems()
    net.weights = str(folder / "model.safetensors")
    weights = fixture.under("params")
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, net.weights)
    return net, jax.tree.map(jnp.asarray, net.load())


@functools.cache
def inputs(fixture: Fixture) -> tuple[jax.Array, jax.Array]:
    """Tokens and mask."""
    given = fixture.under("in")
    tokens = jnp.asarray(given["input_ids"], jnp.int32)
    return tokens, jnp.asarray(given["attention_mask"], bool)


@harness.parametrize("enc_qwen3", None, lambda fixture: ["sdpa", "eager"])
def test_states(fixture, case, tmp_path):
    net, params = loaded(fixture, tmp_path)
    states = jax.jit(net.states)(params, *inputs(fixture))
    out = fixture.under(f"out/{case}")
    close(states, out["last_hidden_state"], "last_hidden_state", EXACTLY)


@harness.parametrize("enc_qwen3", None, lambda fixture: ["blocks"])
def test_every_block(fixture, case, tmp_path):
    net, params = loaded(fixture, tmp_path)
    tokens, mask = inputs(fixture)
    out = fixture.under("out")
    *behind, last = out["sdpa/hidden_states"]
    assert len(behind) == net.sizes.depth  # the last one is behind the final norm
    close(jax.jit(net.states)(params, tokens, mask), last, "the last", EXACTLY)
    turns = net.turns(tokens.shape[1])
    for ours, name in zip(turns, ("rope_cos", "rope_sin"), strict=True):
        close(np.concatenate([ours, ours], -1)[None], out[name], name, 1e-6)
    x, block = net.embedded(params, tokens), jax.jit(net.block)
    for i, expected in enumerate(behind):
        close(x, expected, f"hidden_states, {i}", EXACTLY)
        part = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        x = block(part, x, turns, mask)


def backends(fixture: Fixture) -> list[str]:
    return [f"allpad-{name}" for name in fixture.under("out/allpad")]


@harness.parametrize("enc_qwen3", None, backends)
def test_the_empty_text(fixture, case, tmp_path):
    """Every recorded backend is one of our two answers, and the answers differ."""
    backend = case.removeprefix("allpad-")
    theirs = fixture.under("out/allpad")[backend]
    for empty in ("attend", "zero"):
        equal = empty == EMPTY[backend]
        net, params = loaded(fixture, tmp_path, empty_text=empty)
        tokens, mask = net.empty(theirs.shape[1])
        assert (tokens == fixture.config["pad_id"]).all() and not mask.any()
        ours = np.asarray(jax.jit(net.states)(params, tokens[None], mask[None]))
        np.testing.assert_allclose(ours[0, 1:], ours[0, :-1], atol=EXACTLY)
        if equal:
            close(ours, theirs, case, EXACTLY)
        assert (np.abs(ours - theirs).max() > 0.1) == (not equal)


def conditions(fixture: Fixture) -> list[str]:
    found = [key for key in fixture.under("out") if CONDITION.fullmatch(key)]
    assert {int(CONDITION.fullmatch(key)[2]) for key in found} == set(
        fixture.config["embed_dims"]
    )
    return found


@harness.parametrize("enc_qwen3", None, conditions)
def test_the_official_conditioners(fixture, case, tmp_path):
    repository, width = CONDITION.fullmatch(case).groups()
    net, params = loaded(fixture, tmp_path, embed_width=int(width))
    tokens, mask = inputs(fixture)
    ours = jax.jit(net.states)(params, tokens, mask)
    assert ours.shape[-1] == net.width == int(width)
    close(ours, fixture.under("out")[case], case, EXACTLY)
    lengths = fixture.under("out")[f"{repository}/embed_dim{width}/valid_length_y"]
    np.testing.assert_array_equal(mask.sum(-1), lengths)


@harness.parametrize("enc_qwen3", None, lambda fixture: ["bf16"])
def test_half_precision(fixture, case, tmp_path):
    """No further from the exact states than the official half precision, and alike."""
    net = Qwen3(geometry=geometry(fixture))
    net, params = loaded(fixture, tmp_path, precision=net.precision)
    theirs = fixture.under("out")["bf16_model_condition_as_float32"]
    exact = fixture.under("out")["sdpa/last_hidden_state"]
    ours = np.asarray(jax.jit(net.states)(params, *inputs(fixture)))
    error = np.linalg.norm(theirs - exact)
    assert 0 < np.linalg.norm(ours - exact) < 1.2 * error
    assert np.linalg.norm(ours - theirs) < 2 * error < 0.05 * np.linalg.norm(exact)
