"""PixelGen's JiT against the official code: outputs, intermediates, tables, export."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.pixelgen import TIME_PERIOD, PixelGenModel
from pixelflow_jax.models.trunk import Tokens
from pixelflow_jax.nn.block import Block
from pixelflow_jax.nn.embed import TimeEmbed, sincos_table, sinusoid
from pixelflow_jax.nn.layers import gated, modulate
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.tensors import mapping as tables
from tests.golden import harness

TABLE = 5e-6  # of tables, whose angles are float32 on one side or both


def branches(block: Block, x: Tokens, cond: Array) -> dict:
    """A block's two branches, before their gates."""
    modulation = block.modulation(cond)[:, None]
    shift1, scale1, gate1, shift2, scale2, _ = jnp.split(modulation, 6, -1)
    z = modulate(block.norm1(x.array), shift1, scale1)
    attn = block.attention(z, x.packing, x.rope)
    attn = harness.biased(block.attention.out, attn)
    z = modulate(block.norm2(gated(x.array, gate1, attn)), shift2, scale2)
    mlp = harness.biased(block.mlp.down, block.mlp(z, x.packing))
    return {"attn": attn, "mlp": mlp}


def intermediates(model: PixelGenModel, start: int, image, t, labels) -> dict:
    """What the reference records inside the network, under its names.

    `start`: the block before which the class tokens enter.
    """
    pre = model.precompute((Inputs(image, t, Condition(labels=labels)),))
    (time,), (name,), (cond,) = pre.time, pre.extra, pre.cond
    out = {"t_embedder": time, "y_embedder": name, "conditioning": time + name}
    x = model.embed((image,))
    patches = patchify(image, model.patch)
    first = model.patch_embed(patches.reshape(*patches.shape[:2], -1))
    side = image.shape[1] // model.patch
    grid = first.reshape(len(first), side, -1, first.shape[-1])
    out["x_embedder_proj1"] = jnp.moveaxis(grid, -1, -3)
    out["x_embedder"] = model.patch_expand(first) if model.patch_expand else first
    stacks = (model.early, model.middle, model.late)
    blocks = [block for stack in stacks for block in harness.blocks(stack)]
    for i, block in enumerate(blocks):
        if i == start:
            x = model.with_context(x, (image,), (name,))
        out[f"block{i}_input"] = x.array
        found = branches(block, x, cond)
        out |= {f"block{i}_{key}": value for key, value in found.items()}
        x = x._replace(array=block(x.array, (cond,), x.packing, x.rope))
        out[f"block{i}"] = x.array
    image_tokens = x.array[:, -first.shape[1] :]
    return out | {"final_layer": model.decoder.patches(image_tokens, cond)}


named_cases = lambda fixture: fixture.config["cases"]


def given(fixture, case: str) -> tuple:
    arrays = fixture.under(f"in/{case}")
    return harness.nhwc(arrays["x"]), arrays["t"], arrays["y"].astype(np.int32)


@harness.parametrize("pixelgen_forward", "jit", named_cases)
def test_forward(fixture, case):
    loaded = harness.pixelgen_model(fixture)
    start = loaded.config.context_start

    @jax.jit
    def run(params, *args):
        image, t, labels = args
        out = loaded.network.apply(
            params, (Inputs(image, t, Condition(labels=labels)),)
        )
        return out.pred[0], intermediates(loaded.module(params), start, *args)

    pred, ours = run(loaded.params, *given(fixture, case))
    assert pred.dtype == jnp.float32
    ours["output"] = harness.nchw(pred)
    recorded = fixture.under(f"out/{case}")
    features = {
        name for name in recorded if re.fullmatch(r"return_layer\d+_feat", name)
    }
    unknown = sorted(set(recorded) - set(ours) - features)
    assert not unknown, (
        f"recorded intermediates that this test does not compute: {unknown}"
    )
    for name in sorted(set(recorded) - features):
        harness.close(ours[name], recorded[name], f"{case}/{name}")


def feature_cases(fixture) -> list[str]:
    """Every case with every return_layer, and with the first and the last layer."""
    layers = {int(i) for i in fixture.config.get("return_layers", [])}
    depth = fixture.config["model"]["depth"]
    return [
        f"{case}-layer{feature_layer}"
        for case in fixture.config["cases"]
        for feature_layer in sorted(layers | {0, 1, depth})
    ]


@harness.parametrize("pixelgen_forward", "jit", feature_cases)
def test_features(fixture, case):
    """Tokens after `feature_layer` blocks, as return_layer gives; the output stays.

    Where no such feature was recorded, a block's recorded output stands for it.
    """
    case, _, feature_layer = case.rpartition("-layer")
    loaded = harness.pixelgen_model(fixture, feature_layer=int(feature_layer))
    image, t, labels = given(fixture, case)
    out = jax.jit(loaded.network.apply)(
        loaded.params, (Inputs(image, t, Condition(labels=labels)),)
    )
    recorded = fixture.under(f"out/{case}")
    harness.close(harness.nchw(out.pred[0]), recorded["output"], f"{case}/output")
    feature, block = (
        f"return_layer{feature_layer}_feat",
        f"block{int(feature_layer) - 1}",
    )
    if feature in recorded:
        harness.close(out.features[0], recorded[feature], f"{case}/{feature}")
    elif block in recorded:
        images = recorded[block][:, -out.features[0].shape[1] :]
        harness.close(out.features[0], images, f"{case}/{block}")


def table_names(fixture) -> list[str]:
    """The recorded tables; a pair of cos and sin is one table."""
    names = [key.removeprefix("out/tables/") for key in fixture.tensors]
    found = [name for name in names if f"out/tables/{name}" in fixture.tensors]
    return sorted({re.sub(r"_(cos|sin)$", "", name) for name in found})


@harness.parametrize("pixelgen_forward", "jit", table_names)
def test_tables(fixture, case):
    loaded = harness.pixelgen_model(fixture)
    config, recorded = loaded.config, fixture.under("out/tables")
    side = config.image_size // config.patch
    image = jnp.zeros((1, config.image_size, config.image_size, config.channels))
    match case:
        case "pos_embed_sincos_init":
            ours = sincos_table(side, side, config.width)
            harness.close(ours, recorded[case], case, TABLE)
        case "timestep_embedding_256":
            assert TimeEmbed.features == 256
            (first, *_) = fixture.config["cases"]
            t = jnp.asarray(fixture.tensors[f"in/{first}/t"])
            harness.close(sinusoid(t, 256, TIME_PERIOD), recorded[case], case, TABLE)
        case "feat_rope" | "feat_rope_incontext":
            model = loaded.module(loaded.params)
            x = model.embed((image,))
            if case == "feat_rope_incontext":
                x = model.with_context(x, (image,), (jnp.zeros((1, config.width)),))
            for name, table in zip(("cos", "sin"), x.rope, strict=True):
                doubled = np.repeat(np.asarray(table), 2, -1)  # one angle a pair
                theirs = recorded[f"{case}_{name}"]
                harness.close(doubled, theirs, f"{case}_{name}", TABLE)
        case unknown:
            raise AssertionError(f"this test knows no table {unknown}")


@harness.parametrize("pixelgen_forward", "jit", lambda fixture: ["export"])
def test_export_is_bit_identical(fixture, case):
    loaded = harness.pixelgen_model(fixture)
    exported = tables.export(loaded.table, loaded.params)
    official = fixture.under("params")
    assert exported.keys() == official.keys()
    for name, theirs in official.items():
        assert exported[name].dtype == theirs.dtype
        assert exported[name].flags.c_contiguous
        np.testing.assert_array_equal(exported[name], theirs, err_msg=name)


@harness.parametrize("pixelgen_forward", "jit", named_cases)
def test_in_two_groups_and_rematerialised(fixture, case):
    """Images are what they are alone, also beside a group of another batch size."""
    loaded = harness.pixelgen_model(fixture, remat="full")
    image, t, labels = given(fixture, case)
    batch = (
        Inputs(image, t, Condition(labels=labels)),
        Inputs(image[:1], t[:1], Condition(labels[:1])),
    )
    out = jax.jit(loaded.network.apply)(loaded.params, batch)
    theirs = fixture.tensors[f"out/{case}/output"]
    harness.close(harness.nchw(out.pred[0]), theirs, f"{case}/output")
    harness.close(harness.nchw(out.pred[1]), theirs[:1], f"{case}/output[:1]")
