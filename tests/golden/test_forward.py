"""Forward passes and tables against the official code: outputs and intermediates."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.pixnerd import TIME_PERIOD, Block, FieldDecoder, PixNerdModel
from pixelflow_jax.models.text_trunk import text_rope
from pixelflow_jax.nn.embed import rotary_table, sinusoid
from pixelflow_jax.nn.field import ENCODINGS, cosine_features, dct_features
from pixelflow_jax.nn.layers import gated, layer_normalise, modulate
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import patchify
from tests.golden import harness


def trunk(model: PixNerdModel, image: Array, t: Array, labels: Array) -> dict:
    """The transformer's intermediates, under the reference's names."""
    pre = model.precompute((Inputs(image, t, Condition(labels=labels)),))
    (time,), (cond,) = pre.time, pre.cond
    tokens, packing, rope = model.embed((image,))
    out = {
        "t_embedder": time,
        "y_embedder": model.class_embed(labels),
        "conditioning": cond[:, None],
        "s_embedder": tokens,
        "x_embedder": tokens,
    }
    for i, block in enumerate(harness.blocks(model.early) + harness.blocks(model.late)):
        out[f"block{i}_input"] = tokens
        out |= {f"block{i}_{k}": v for k, v in parts(block, tokens, cond, rope).items()}
        tokens = block(tokens, (cond,), packing, rope)
        out[f"block{i}"] = tokens
    return out | {"nerf_condition_s": jax.nn.silu(time[:, None] + tokens)}


def parts(block: Block, x: Array, cond: Array, rope: tuple) -> dict:
    """A block's two branches, before their gates."""
    modulation = block.modulation(cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, _ = jnp.split(modulation, 6, -1)
    z = modulate(block.norm1(x), shift1, scale1)
    packing = Packing.of([x])
    attn = harness.biased(block.attention.out, block.attention(z, packing, rope))
    z = modulate(block.norm2(gated(x, gate1, attn)), shift2, scale2)
    mlp = harness.biased(block.mlp.down, block.mlp(z, packing))
    return {"attn": attn, "mlp": mlp}


def field(
    decoder: FieldDecoder, depth: int, image: Array, condition: Array, patch=None
) -> dict:
    """The neural field's intermediates; its blocks are numbered after the trunk's."""
    pixels = patchify(image, patch or decoder.patch)
    z = decoder.embed(pixels, patch or decoder.patch)
    out = {"nerf_input_pixels": pixels, "nerf_x_embedder": z}
    for i, block in enumerate(harness.blocks(decoder.field)):
        z = block(z, condition)
        out[f"block{depth + i}_nerf"] = z
    z = z if decoder.norm is None else decoder.norm(z)
    return out | {"nerf_final_layer": decoder.linear(z)}


def channels_first(tokens: Array, channels: int) -> Array:
    """Our token vectors (row, column, channel) in the reference's order."""
    pixels = tokens.reshape(*tokens.shape[:2], -1, channels)
    return jnp.swapaxes(pixels, -1, -2).reshape(tokens.shape)


def field_intermediates(loaded, params, image, t, labels) -> dict:
    model = loaded.module(params)
    out = trunk(model, image, t, labels)
    condition = out["nerf_condition_s"]
    found = field(model.decoder, loaded.config.depth, image, condition)
    found["nerf_condition_s"] = condition
    return out | {k: v.reshape(-1, *v.shape[2:]) for k, v in found.items()}


def baseline_intermediates(loaded, params, image, t, labels) -> dict:
    model = loaded.module(params)
    out = trunk(model, image, t, labels)
    tokens = out[f"block{loaded.config.depth - 1}"]
    shift, scale = jnp.split(model.decoder.modulation(out["conditioning"]), 2, -1)
    final = model.decoder.linear(modulate(layer_normalise(tokens), shift, scale))
    return out | {"final_layer": channels_first(final, loaded.config.channels)}


def check_forward(
    loaded: harness.Loaded, fixture, case: str, intermediates, tolerance: float
) -> None:
    given, recorded = fixture.under(f"in/{case}"), fixture.under(f"out/{case}")
    args = (harness.nhwc(given["x"]), given["t"], given["y"].astype(np.int32))

    @jax.jit
    def run(params, image, t, labels):
        out = loaded.network.apply(
            params, (Inputs(image, t, Condition(labels=labels)),)
        )
        return out.pred[0], intermediates(loaded, params, image, t, labels)

    pred, ours = run(loaded.params, *args)
    assert pred.dtype == jnp.float32
    ours["output"] = harness.nchw(pred)
    unknown = sorted(set(recorded) - set(ours))
    assert not unknown, (
        f"recorded intermediates that this test does not compute: {unknown}"
    )
    for name, theirs in recorded.items():
        harness.close(ours[name], theirs, f"{case}/{name}", tolerance)


named_cases = lambda fixture: fixture.config["cases"]


@harness.parametrize("pixnerd_forward", "c2i", named_cases)
def test_forward(fixture, case):
    loaded = harness.pixnerd_model(fixture)
    check_forward(loaded, fixture, case, field_intermediates, harness.FORWARD)


@harness.parametrize("pixelgen_forward", "dit", named_cases)
def test_baseline_forward(fixture, case):
    loaded = harness.pixnerd_model(fixture, baseline=True)
    check_forward(loaded, fixture, case, baseline_intermediates, 1e-5)


def has_given_s(fixture) -> list[str]:
    return ["given_s"] if "in/given_s" in fixture.tensors else []


@harness.parametrize("pixnerd_forward", "c2i", has_given_s)
def test_decoder_with_given_conditions(fixture, case):
    """The condition is taken as it is: without SiLU and without the time."""
    theirs = fixture.tensors["out/given_s/output"]
    images = [fixture.tensors[f"in/{c}/x"] for c in fixture.config["cases"]]
    image = next(image for image in images if image.shape == theirs.shape)
    loaded = harness.pixnerd_model(fixture)
    decode = jax.jit(lambda p, *args: loaded.module(p).decoder.decode(*args))
    ours = decode(loaded.params, harness.nhwc(image), fixture.tensors["in/given_s"])
    harness.close(harness.nchw(ours), theirs, "given_s/output")


@harness.parametrize("pixnerd_forward", "c2i", lambda fixture: ["every_tap"])
def test_where_the_trunk_is_cut_changes_nothing(fixture, case):
    name = fixture.config["cases"][0]
    given, recorded = fixture.under(f"in/{name}"), fixture.under(f"out/{name}")
    depth = fixture.config["model"]["num_cond_blocks"]
    cond = Condition(labels=given["y"].astype(np.int32))
    for feature_layer in sorted({0, 1, depth}):
        loaded = harness.pixnerd_model(fixture, feature_layer=feature_layer)
        out = jax.jit(loaded.network.apply)(
            loaded.params,
            (Inputs(harness.nhwc(given["x"]), given["t"], cond),),
        )
        harness.close(
            harness.nchw(out.pred[0]),
            recorded["output"],
            f"feature_layer {feature_layer}",
        )
        theirs = f"block{feature_layer - 1}" if feature_layer else "s_embedder"
        if theirs in recorded:
            harness.close(
                out.features[0],
                recorded[theirs],
                f"feature_layer {feature_layer}: tokens",
            )


def table_names(fixture) -> list[str]:
    """Names of the recorded tables; a pair of cos and sin is one table."""
    names = {re.sub(r"/(cos|sin)$", "", name) for name in fixture.under("out")} - {"t"}
    return sorted(names)


@harness.parametrize("pixnerd_tables", None, table_names)
def test_tables(fixture, case):
    recorded = fixture.under("out")
    numbers = [int(n) for n in re.findall(r"\d+", case.partition("/")[2])]
    match case.split("/")[0]:
        case "c2i_dct":
            ours = dct_features(*numbers)[None]
            harness.close(ours, recorded[case], case, 5e-6)
        case rope if rope.startswith("rope_c2i_scale"):
            head_width, rows, columns = numbers
            extent = float(rope.removeprefix("rope_c2i_scale"))
            cos, sin = rotary_table(rows, columns, head_width, extent)
            harness.close(cos, recorded[f"{case}/cos"], f"{case}/cos", 5e-6)
            harness.close(sin, recorded[f"{case}/sin"], f"{case}/sin", 5e-6)
        case "t2i_cospos":
            ours = cosine_features(*numbers)[None]
            harness.close(ours, recorded[case], case, 5e-6)
        case "t2i_heavy_cospos":
            ours = ENCODINGS["cosine16"](tuple(numbers[-2:]))[None]
            harness.close(ours, recorded[case], case, 5e-6)
        case "rope_t2i_ex2d":
            head_width, rows, columns = numbers
            cos, sin = text_rope(rows, columns, head_width)
            harness.close(cos, recorded[f"{case}/cos"], f"{case}/cos", 5e-6)
            harness.close(sin, recorded[f"{case}/sin"], f"{case}/sin", 5e-6)
        case embedding if embedding.startswith("timestep_embedding_"):
            width = int(embedding.rpartition("_")[2])
            ours = sinusoid(jnp.asarray(recorded["t"]), width, TIME_PERIOD)
            harness.close(ours, recorded[case], case, 5e-6)
        case unknown:
            pytest.fail(f"this test knows no table {unknown}")
