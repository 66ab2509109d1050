"""The text-to-image models against the official code: outputs, intermediates, export"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.text_trunk import TextTrunk, text_rope
from pixelflow_jax.models.trunk import Tokens
from pixelflow_jax.nn.block import Block
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.nn.layers import gated, modulate
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness
from tests.golden.test_forward import channels_first, field

TABLE = 5e-6  # of tables, whose angles are float32 on one side or both


def branches(block: Block, x: Array, cond: Array, *attended) -> dict:
    """A joint block's two branches, before their gates."""
    modulation = block.modulation(cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, _ = jnp.split(modulation, 6, -1)
    packing, rope, drop, text = attended
    z = modulate(block.norm1(x), shift1, scale1)
    attn = block.attention(z, packing, rope, drop, text)
    attn = harness.biased(block.attention.out, attn)
    z = modulate(block.norm2(gated(x, gate1, attn)), shift2, scale2)
    mlp = harness.biased(block.mlp.down, block.mlp(z, packing))
    return {"attn": attn, "mlp": mlp}


def trunk(model: TextTrunk, x: Tokens, image: Array, t: Array, states: Array):
    """The trunk's intermediates under the reference's names, and its tokens."""
    conds = (Condition(text=states),)
    pre = model.precompute((Inputs(image, t, *conds),))
    (time,), (cond,) = pre.time, pre.cond
    out = {"t_embedder": time, "conditioning": cond[:, None]}
    out["y_embedder"] = model.text_embed.normal(states)
    text = model.embed_text(conds)
    for i, block in enumerate(harness.blocks(model.refine)):
        after = block(text.tokens, (cond,), text.packing, None)
        out[f"text_refine{i}"] = after
        text = text._replace(tokens=after)
    tokens, packing, rope = x
    for i, block in enumerate(harness.blocks(model.early) + harness.blocks(model.late)):
        out[f"block{i}_input"] = tokens
        found = branches(block, tokens, cond, packing, rope, None, text)
        out |= {f"block{i}_{key}": value for key, value in found.items()}
        tokens = block(tokens, (cond,), packing, rope, None, text)
        out[f"block{i}"] = tokens
    return out, tokens


def pixelgen(loaded, params, image, t, states) -> dict:
    model = loaded.module(params)
    patches = patchify(image, model.patch)
    first = model.patch_embed(patches.reshape(*patches.shape[:2], -1))
    out, tokens = trunk(model.trunk, model.embed((image,)), image, t, states)
    # This decoder is not modulated: the condition is any of the right shape.
    final = model.decoder.patches(tokens, tokens[:, 0])
    out |= {"x_embedder_proj1": first, "x_embedder": model.patch_expand(first)}
    return out | {"final_layer": channels_first(final, loaded.config.channels)}


def pixnerd(loaded, params, image, t, states) -> dict:
    model = loaded.module(params)
    x = model.embed((image,))
    out, last = trunk(model.trunk, x, image, t, states)
    condition = jax.nn.silu(out["t_embedder"][:, None] + last)
    patch = model.field_patch(image)
    found = field(model.decoder, loaded.config.depth, image, condition, patch)
    found["nerf_condition_s"] = condition
    found = {k: v.reshape(-1, *v.shape[2:]) for k, v in found.items()}
    return out | found | {"s_embedder": x.array}


def given(fixture, case: str) -> tuple:
    arrays = fixture.under(f"in/{case}")
    return harness.nhwc(arrays["x"]), arrays["t"], arrays["y"]


def named_cases(fixture) -> list[str]:
    return list(fixture.config["cases"])


def check_forward(fixture, case: str, intermediates) -> None:
    loaded = harness.text_model(fixture, canvas=harness.canvas_of(fixture, case))

    @jax.jit
    def run(params, image, t, states):
        batch = (Inputs(image, t, Condition(text=states)),)
        out = loaded.network.apply(params, batch)
        return out.pred[0], intermediates(loaded, params, image, t, states)

    pred, ours = run(loaded.params, *given(fixture, case))
    assert pred.dtype == jnp.float32
    ours["output"] = harness.nchw(pred)
    recorded = fixture.under(f"out/{case}")
    names = {n for n in recorded if not re.fullmatch(r"return_layer\d+_feat", n)}
    unknown = sorted(names - set(ours))
    assert not unknown, (
        f"recorded intermediates that this test does not compute: {unknown}"
    )
    for name in sorted(names):
        harness.close(ours[name], recorded[name], f"{case}/{name}")


@harness.parametrize("pixelgen_forward", "jit_t2i", named_cases)
def test_pixelgen_forward(fixture, case):
    check_forward(fixture, case, pixelgen)


@harness.parametrize("pixnerd_forward", "t2i", named_cases)
def test_pixnerd_forward(fixture, case):
    check_forward(fixture, case, pixnerd)


@harness.parametrize("pixnerd_forward", "t2i_heavy", named_cases)
def test_pixnerd_heavy_decoder_forward(fixture, case):
    check_forward(fixture, case, pixnerd)


def check_features(fixture, case: str, feature_layer: int) -> None:
    """Tokens after `feature_layer` blocks; with two groups, and rematerialised."""
    canvas = harness.canvas_of(fixture, case)
    loaded = harness.text_model(
        fixture, feature_layer=feature_layer, remat="full", canvas=canvas
    )
    image, t, states = given(fixture, case)
    batch = (
        Inputs(image, t, Condition(text=states)),
        Inputs(image[:1], t[:1], Condition(text=states[:1])),
    )
    out = jax.jit(loaded.network.apply)(loaded.params, batch)
    recorded = fixture.under(f"out/{case}")
    for pred, feature, count in zip(out.pred, out.features, (len(t), 1), strict=True):
        theirs = recorded["output"][:count]
        harness.close(harness.nchw(pred), theirs, f"{case}/output")
        for name in (f"return_layer{feature_layer}_feat", f"block{feature_layer - 1}"):
            if name in recorded:
                harness.close(feature, recorded[name][:count], f"{case}/{name}")


def feature_cases(fixture) -> list[str]:
    """Every case with every return_layer, and with the first and the last layer."""
    layers = {int(i) for i in fixture.config.get("return_layers", [])}
    model = fixture.config["model"]
    depth = model.get("num_blocks") or model["num_encoder_blocks"]
    cases = [
        (c, feature_layer)
        for c in named_cases(fixture)
        for feature_layer in layers | {0, 1, depth}
    ]
    return [f"{case}-layer{feature_layer}" for case, feature_layer in sorted(cases)]


@harness.parametrize("pixelgen_forward", "jit_t2i", feature_cases)
def test_pixelgen_features(fixture, case):
    case, _, feature_layer = case.rpartition("-layer")
    check_features(fixture, case, int(feature_layer))


@harness.parametrize("pixnerd_forward", "t2i", feature_cases)
def test_pixnerd_features(fixture, case):
    case, _, feature_layer = case.rpartition("-layer")
    check_features(fixture, case, int(feature_layer))


@harness.parametrize("pixnerd_forward", "t2i_heavy", feature_cases)
def test_pixnerd_heavy_decoder_features(fixture, case):
    case, _, feature_layer = case.rpartition("-layer")
    check_features(fixture, case, int(feature_layer))


def check_export(fixture) -> None:
    loaded = harness.text_model(fixture)
    exported = tables.export(loaded.table, loaded.params)
    official = fixture.under("params")
    assert exported.keys() == official.keys()
    for name, theirs in official.items():
        assert exported[name].dtype == theirs.dtype
        assert exported[name].flags.c_contiguous
        np.testing.assert_array_equal(exported[name], theirs, err_msg=name)


@harness.parametrize("pixelgen_forward", "jit_t2i", lambda fixture: ["export"])
def test_pixelgen_export_is_bit_identical(fixture, case):
    check_export(fixture)


@harness.parametrize("pixnerd_forward", "t2i", lambda fixture: ["export"])
def test_pixnerd_export_is_bit_identical(fixture, case):
    check_export(fixture)


@harness.parametrize("pixnerd_forward", "t2i_heavy", lambda fixture: ["export"])
def test_pixnerd_heavy_decoder_export_is_bit_identical(fixture, case):
    check_export(fixture)


def table_names(fixture) -> list[str]:
    """The recorded tables; a pair of cos and sin is one table."""
    names = [key for key in fixture.tensors if key.startswith("out/tables/")]
    names = [name.removeprefix("out/tables/") for name in names]
    return sorted({re.sub(r"_(cos|sin)$", "", name) for name in names})


@harness.parametrize("pixelgen_forward", "jit_t2i", table_names)
def test_pixelgen_tables(fixture, case):
    config, recorded = harness.text_model(fixture).config, fixture.under("out/tables")
    side = config.image_size // config.patch
    match case:
        case "pos_embed_sincos_init":
            ours = sincos_table(side, side, config.width)
            harness.close(ours, recorded[case], case, TABLE)
        case "rope":
            cos, sin = text_rope(side, side, config.width // config.heads)
            harness.close(cos, recorded["rope_cos"], "cos", TABLE)
            harness.close(sin, recorded["rope_sin"], "sin", TABLE)
        case unknown:
            raise AssertionError(f"this test knows no table {unknown}")
