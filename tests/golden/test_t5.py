"""The T5 encoder against arrays recorded from transformers and PixelFlow's pipeline."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from pixelflow_jax.encoders.t5 import T5, T5Geometry, buckets
from tests.golden import harness
from tests.golden.harness import EXACT, Fixture, close, take

EXACTLY = 1e-5
# transformers' names of T5Geometry's fields.
FIELDS = {
    "d_model": "width",
    "d_ff": "hidden",
    "num_layers": "depth",
    "num_heads": "heads",
    "d_kv": "head_width",
    "vocab_size": "vocabulary",
    "relative_attention_num_buckets": "buckets",
    "relative_attention_max_distance": "max_distance",
}


def geometry(kwargs: dict) -> T5Geometry:
    """Our sizes from transformers' config."""
    known = dict.fromkeys(FIELDS)
    known |= {"relative_attention_num_buckets": 32}
    known |= {"relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6}
    known |= {"feed_forward_proj": "relu", "dropout_rate": 0.1}
    known |= {"tie_word_embeddings": True}  # of a decoder's output
    o = take(kwargs, known)
    missing = sorted(name for name in FIELDS if o[name] is None)
    assert not missing, f"the official arguments lack {missing}"
    assert o["feed_forward_proj"] == "gated-gelu" and o["layer_norm_epsilon"] == 1e-6
    return T5Geometry(**{ours: o[theirs] for theirs, ours in FIELDS.items()})


def loaded(fixture: Fixture, kwargs: dict, group: str, folder) -> tuple[T5, dict]:
    """Our network and its parameters, which come through a file of its own."""
    net = T5(geometry=geometry(kwargs), precision=EXACT)
    assert not net.problems()
    net.weights = str(folder / "model.safetensors")
    weights = {k: np.ascontiguousarray(v) for k, v in fixture.under(group).items()}
    save_file(weights, net.weights)
    return net, jax.tree.map(jnp.asarray, net.load())


def inputs(fixture: Fixture, prefix: str = "") -> tuple[jax.Array, jax.Array]:
    """Tokens and mask."""
    given = fixture.under("in")
    tokens = jnp.asarray(given[f"{prefix}input_ids"], jnp.int32)
    return tokens, jnp.asarray(given[f"{prefix}attention_mask"], bool)


@harness.parametrize("enc_t5", None, lambda fixture: ["masked", "nomask"])
def test_t5(fixture, case, tmp_path):
    net, params = loaded(fixture, fixture.config["model"], "params", tmp_path)
    tokens, mask = inputs(fixture)
    if case == "nomask":
        mask = None
    out = fixture.under(f"out/{case}")
    states = jax.jit(net.states)(params, tokens, mask)
    close(states, out["last_hidden_state"], "last_hidden_state", EXACTLY)
    if case == "nomask":
        return
    theirs = out["pixelflow_encode_index0"]
    close(states, theirs, "pixelflow_encode_index0", EXACTLY)
    *behind, last = out["hidden_states"]
    assert len(behind) == net.sizes.depth  # the last one is the encoder's output
    close(states, last, "hidden_states, last", EXACTLY)
    x, bias = net.embedded(params, tokens), net.bias(params, tokens.shape[1])
    block = jax.jit(net.block)
    for i, expected in enumerate(behind):
        close(x, expected, f"hidden_states, {i}", EXACTLY)
        part = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
        x = block(part, x, bias, mask)


@harness.parametrize("enc_t5", None, lambda fixture: ["bias"])
def test_relative_positions(fixture, case, tmp_path):
    net, params = loaded(fixture, fixture.config["model"], "params", tmp_path)
    out, sizes = fixture.under("out"), net.sizes
    theirs = out["relative_position_bias"]
    close(net.bias(params, theirs.shape[-1]), theirs, "bias", 0)
    pattern = r"relative_position_bucket_of_minus(\d+)_to_(\d+)"
    named = [found for key in out if (found := re.fullmatch(pattern, key))]
    assert named
    for name in named:
        offsets = np.arange(-int(name[1]), int(name[2]) + 1)
        ours = buckets(offsets, sizes.buckets, sizes.max_distance)
        np.testing.assert_array_equal(ours, out[name[0]])


def with_text(fixture: Fixture) -> list[str]:
    return ["text"] if fixture.config.get("text_encoder") else []


@harness.parametrize("pixelflow_euler", None, with_text)
def test_prompts_of_the_pipeline(fixture, case, tmp_path):
    """Negative prompts first, then prompts, each with its own padding."""
    kwargs = fixture.config["text_encoder"]
    net, params = loaded(fixture, kwargs, "params_text", tmp_path)
    encode = jax.jit(net.states)
    both = [inputs(fixture, prefix) for prefix in ("uncond_", "cond_")]
    assert both[0][0].shape[1] == fixture.config["max_token_length"]
    out = fixture.under("out")
    ours = np.concatenate([encode(params, *one) for one in both])
    close(ours, out["prompt_embeds"], "prompt_embeds")
    masks = np.concatenate([mask for _, mask in both])
    np.testing.assert_array_equal(masks, out["prompt_attention_mask"])
    together = encode(params, *map(jnp.concatenate, zip(*both, strict=True)))
    close(together, out["prompt_embeds"], "prompt_embeds, one batch")
