"""PixelFlow: its formula, packed groups, conditions, cost, initialisation, weights."""

import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.convert import pixelflow
from pixelflow_jax.models.interface import Condition, Inputs, count, network
from pixelflow_jax.models.pixelflow import PERIOD, PixelFlow
from pixelflow_jax.nn.embed import rotary_table, sinusoid
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import SAVED, StackConfig
from pixelflow_jax.sharding import MeshShape, state_sharding
from pixelflow_jax.tensors import mapping as tables
from tests.models.pixelflow_oracle import (
    BOTH,
    CLASS,
    CONFIGS,
    EXACT,
    TEXT,
    Oracle,
    condition,
    normal,
    official,
)


@functools.cache
def model(name: str) -> tuple[Callable, dict]:
    """The compiled network of a config, and those weights."""
    config = CONFIGS[name]
    params = tables.load(pixelflow.table(config), official(config))
    return jax.jit(network(config, EXACT).apply), jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_forward_pass_is_its_formula(name):
    config, (apply, params) = CONFIGS[name], model(name)
    image, timestep = normal(0, 2, 6, 8, 3), np.array([3.25, 40.0], np.float32)
    cond = condition(config, 2)
    out = apply(params, (Inputs(image, timestep, cond),)).pred[0]
    expected = Oracle(config, official(config))(image, timestep, cond)
    assert 0.5 < expected.std() < 50
    np.testing.assert_allclose(out, expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("faint", "zero"),
    [("patch_embed", "o_proj|fc2"), ("[qk]_proj", "nothing")],
    ids=["tokens", "queries and keys"],
)
def test_where_values_are_faint_the_epsilons_count(faint, zero):
    """Values of 1e-3 before layer norms, or before those of queries and keys."""
    weights = official(BOTH)
    for key, value in weights.items():
        value *= 1e-3 if re.search(faint, key) else 1
        value *= 0 if re.search(zero, key) else 1
    params = tables.load(pixelflow.table(BOTH), weights)
    image, timestep, cond = (
        normal(0, 1, 4, 4, 3),
        np.ones(1, np.float32),
        condition(BOTH, 1),
    )
    out = model("both")[0](params, (Inputs(image, timestep, cond),)).pred[0]
    expected = Oracle(BOTH, weights)(image, timestep, cond)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_parameter_count_of_xl():
    config = PixelFlow()
    d = config.width
    linear = lambda inputs, outputs: inputs * outputs + outputs
    attention, mlp = 4 * linear(d, d) + 2 * d, linear(d, 4 * d) + linear(4 * d, d)
    block = linear(d, 6 * d) + attention + d + mlp
    embeds = linear(48, d) + 2 * (linear(256, d) + linear(d, d)) + 1001 * d
    found = count(network(config, EXACT).shapes())
    assert found == 28 * block + embeds + linear(d, 2 * d) + linear(d, 48)
    assert round(found / 1e6) == 677

    text = dataclasses.replace(config, num_classes=0, text_width=2048)
    extra = 2 * linear(d, d) + 2 * linear(2048, d) + 2 * d + d
    assert count(network(text, EXACT).shapes()) == found - 1001 * d + 28 * extra


def inputs_of(config: PixelFlow, batches: tuple[int, ...]) -> tuple[Inputs, ...]:
    sizes = [(4, 4), (2, 6)]
    return tuple(
        Inputs(
            normal(i, b, *sizes[i], 3),
            jnp.linspace(2.0 + 10 * i, 90, b),
            condition(config, b, 4 + i, seed=i),
        )
        for i, b in enumerate(batches)
    )


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_packed_groups_equal_separate_calls_in_any_order(batches):
    """Every group has its own resolution, timestep, labels, text length and mask."""
    apply, params = model("both")
    batch = inputs_of(BOTH, batches)
    packed = apply(params, batch)
    moved = apply(params, batch[::-1])
    for i, image in enumerate(x.image for x in batch):
        alone = apply(params, batch[i : i + 1])
        for found in (packed.pred[i], moved.pred[::-1][i]):
            assert found.shape == image.shape
            np.testing.assert_allclose(found, alone.pred[0], atol=1e-5)
        np.testing.assert_allclose(packed.features[i], alone.features[0], atol=1e-5)


def test_remat_changes_neither_output_nor_gradient():
    batch = jax.tree.map(jnp.asarray, inputs_of(BOTH, (1,)))
    results = []
    for remat in ("none", "names"):
        net = network(dataclasses.replace(BOTH, stack=StackConfig(remat=remat)), EXACT)
        loss = lambda p, net=net: jnp.mean(net.apply(p, batch).pred[0] ** 2)
        results.append(jax.jit(jax.value_and_grad(loss))(model("both")[1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results
    )
    assert all(np.any(leaf) for leaf in jax.tree.leaves(results[0][1]))


def test_what_remat_keeps_is_named():
    batch = inputs_of(BOTH, (1,))
    net = network(BOTH, EXACT)
    program = str(jax.make_jaxpr(net.apply)(net.shapes(), batch))
    names = ("qkv", "attention", "mlp_hidden", "residual")
    assert set(names) <= set(SAVED)
    found = {name: len(re.findall(rf"\bname={name}\b", program)) for name in names}
    # Queries, keys and values of the image in one, those of the text in two.
    assert found == {"qkv": 3, "attention": 2, "mlp_hidden": 1, "residual": 2}


def test_masked_text_has_no_influence_and_no_mask_means_all_text():
    run, params = model("text")
    apply = lambda cond: run(params, (Inputs(image, timestep, cond),)).pred[0]
    image, timestep, cond = (
        normal(0, 2, 4, 4, 3),
        jnp.array([5.0, 9.0]),
        condition(TEXT, 2),
    )
    hidden = jnp.where(cond.mask[..., None], cond.text, 99.0)
    np.testing.assert_allclose(
        apply(cond._replace(text=hidden)), apply(cond), atol=1e-5
    )
    everything = apply(cond._replace(mask=jnp.ones((2, 4), bool)))
    np.testing.assert_allclose(apply(cond._replace(mask=None)), everything, atol=1e-5)
    assert np.abs(everything - apply(cond))[0].max() > 1e-2


def test_every_condition_matters():
    """Label, text, time, and the width in patches, which the rows do not change."""
    run, params = model("both")
    apply = lambda timestep, cond: run(params, (Inputs(image, timestep, cond),))
    image, cond = normal(0, 1, 4, 4, 3), condition(BOTH, 1)
    base = apply(jnp.array([100.0]), cond).pred[0]
    for timestep, other in (
        (101.0, cond),
        (100.0, cond._replace(labels=cond.labels - 1)),
        (100.0, cond._replace(text=cond.text + 1)),
    ):
        assert np.abs(apply(jnp.array([timestep]), other).pred[0] - base).max() > 1e-2


def test_the_size_that_the_network_is_told_is_the_width_in_patches():
    _, params = model("class")
    build = lambda: CLASS.build(nnx.Rngs(params=0), EXACT)
    module = nnx.merge(nnx.graphdef(nnx.eval_shape(build)), params)
    cond = Condition(labels=jnp.zeros(1, int))

    def modulating(*size: int) -> jax.Array:
        inputs = Inputs(jnp.zeros((1, *size, 3)), jnp.ones(1), cond)
        return module.precompute((inputs,)).cond[0]

    np.testing.assert_array_equal(modulating(4, 8), modulating(8, 8))
    assert np.abs(modulating(4, 8) - modulating(8, 4)).max() > 1e-2


def test_the_features_lie_between_the_early_and_the_late_stack():
    apply, params = model("class")
    batch = inputs_of(CLASS, (2,))
    base = apply(params, batch)
    twice = lambda stack: {
        **params,
        stack: jax.tree.map(lambda a: 2 * a, params[stack]),
    }
    late, early = apply(twice("late"), batch), apply(twice("early"), batch)
    np.testing.assert_array_equal(late.features[0], base.features[0])
    assert np.abs(late.pred[0] - base.pred[0]).max() > 1e-2
    assert np.abs(early.features[0] - base.features[0]).max() > 1e-2


def test_a_condition_that_lacks_something_is_refused():
    net = network(BOTH, EXACT)
    image, timestep, cond = jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), condition(BOTH, 1)
    for missing, message in (
        ("labels", "no labels.*model.num_classes=0"),
        ("text", "holds none.*model.text_width=0"),
    ):
        lacking = cond._replace(**{missing: None})
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.apply, net.shapes(), (Inputs(image, timestep, lacking),))


@pytest.mark.parametrize("size", [(2, 2), (4, 10), (32, 6)])
def test_any_size_with_the_same_parameters(size):
    net = network(BOTH, Precision())
    batch = (Inputs(jnp.zeros((2, *size, 3)), jnp.zeros(2), condition(BOTH, 2)),)
    out = jax.eval_shape(net.apply, net.shapes(), batch)
    assert out.pred[0].shape == (2, *size, 3) and out.pred[0].dtype == jnp.float32
    assert out.features[0].shape == (2, size[0] * size[1] // 4, 24)


def test_half_precision_is_close_and_returns_float32():
    apply, params = model("both")
    batch = inputs_of(BOTH, (2,))
    exact = apply(params, batch).pred[0]
    out = jax.jit(network(BOTH, Precision()).apply)(params, batch)
    assert out.pred[0].dtype == jnp.float32 and out.features[0].dtype == jnp.bfloat16
    error = jnp.linalg.norm(out.pred[0] - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_split_matrices_give_the_same_output():
    """Norms over all heads meet a "tensor" axis that splits the heads."""
    apply, params = model("both")
    batch = inputs_of(BOTH, (2, 2))
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    split = jax.device_put(params, state_sharding(params, mesh))
    kernel = split["early"]["blocks"]["attention"]["qkv"]["kernel"]
    assert kernel.sharding.spec[-1] == "tensor"
    with jax.set_mesh(mesh):
        found = apply(split, batch)
    for a, b in zip(found.pred, apply(params, batch).pred, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("config", [CLASS, TEXT], ids=["class", "text"])
def test_flops_agree_with_the_compiler(config):
    config = dataclasses.replace(
        config, width=128, heads=4, depth=3, stack=StackConfig(remat="none", scan=False)
    )
    if config.text_width:
        config = dataclasses.replace(config, text_width=96)
    net, cond = network(config, EXACT), condition(config, 1, 24)
    inputs = Inputs(jnp.zeros((1, 16, 24, 3)), jnp.zeros(1), cond)
    lowered = jax.jit(net.apply).lower(net.shapes(), (inputs,))
    compiled = lowered.compile().cost_analysis()["flops"]
    length = 24 if config.text_width else 0
    assert abs(config.flops(16, 24, length) / compiled - 1) < 0.1


def test_a_sound_config_has_no_problems():
    text = PixelFlow(num_classes=0, text_width=2048)
    for config in (PixelFlow(), text, BOTH):
        assert config.problems(256, 256) == config.problems(32, 48) == []


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, (250, 256), ["model.patch=4", "250 x 256"]),
        ({"heads": 7}, (256, 256), ["model.heads=7", "model.width=1152"]),
        ({"width": 96}, (256, 256), ["model.heads=16", "multiple of 4"]),
        ({"feature_layer": 29}, (256, 256), ["model.feature_layer=29", "depth=28"]),
        ({"depth": 0}, (256, 256), ["model.", "depth", "at least 1"]),
        ({"num_classes": 0}, (256, 256), ["model.num_classes", "text_width", "both 0"]),
        ({"num_classes": -1}, (256, 256), ["model.num_classes", "at least 0"]),
        ({"text_width": -1}, (256, 256), ["text_width", "at least 0"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_problems_name_the_field_and_the_value(fields, size, words):
    (problem,) = PixelFlow(**fields).problems(*size)
    assert all(word in problem for word in words)


def test_all_problems_come_at_once():
    config = PixelFlow(num_classes=0, heads=7, feature_layer=99)
    assert len(config.problems(250, 250)) == 4


# What a parameter starts as; the first pattern that its path matches decides.
RULES = [
    (r"norm\d?/weight$", "ones"),
    (r"decoder/|modulation/|/bias$", "zeros"),
    (r"(time|size)_embed/\w+/kernel$|class_embed/table$", "normal"),
    (r"attention/qkv/kernel$", 3),
    (r"attention/kv/kernel$", 2),
    (r"kernel$", 1),
]


@pytest.fixture(scope="module")
def drawn():
    config = dataclasses.replace(BOTH, attention_bias=True, width=64, heads=4, depth=3)
    net = network(config, EXACT)
    return net, jax.jit(net.init)(jax.random.key(0))


def test_every_parameter_follows_its_distribution(drawn):
    leaves = jax.tree_util.tree_leaves_with_path(drawn[1])
    for keys, leaf in leaves:
        path, value = "/".join(key.key for key in keys), np.asarray(leaf)
        rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
        if rule in ("ones", "zeros"):
            assert (value == (rule == "ones")).all(), path
            continue
        bound = 0.02 * np.sqrt(3)
        if rule != "normal":  # Xavier, each of `rule` layers side by side on its own
            bound = np.sqrt(6 / (value.shape[-2] + value.shape[-1] / rule))
            assert 0.97 * bound < np.abs(value).max() <= bound * (1 + 1e-6), path
        noise = 4 / np.sqrt(value.size)
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < noise, path
        assert abs(value.mean()) < noise * bound, path
        if "blocks" in path and len(value) > 1:
            assert not (value[0] == value[1]).any(), path


def test_the_first_output_is_exactly_zero(drawn):
    net, params = drawn
    out = jax.jit(net.apply)(params, inputs_of(BOTH, (2,)))
    assert not out.pred[0].any() and (out.features[0] != 0).all()


@pytest.mark.parametrize("feature_layer", [0, 1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_official_weights_load_and_export_bit_for_bit(name, feature_layer):
    config = CONFIGS[name]
    config = dataclasses.replace(config, feature_layer=min(feature_layer, config.depth))
    table, theirs = pixelflow.table(config), official(config)
    shapes = network(config, EXACT).shapes()
    ours = tables.load(table, theirs, shapes)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(lambda a: a.shape, shapes)
    again = tables.export(table, ours)
    assert again.keys() == theirs.keys()
    for key, value in theirs.items():
        assert again[key].flags.c_contiguous
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_official_names_and_layouts():
    theirs = {key: value.shape for key, value in official(BOTH).items()}
    assert (
        theirs.items()
        >= {
            "patch_embed.proj.weight": (24, 3, 2, 2),
            "timestep_embedder.linear_1.weight": (24, 256),
            "latent_size_embedder.linear_2.bias": (24,),
            "class_embedder.embedding_table.weight": (6, 24),
            "transformer_blocks.0.norm1.linear.weight": (144, 24),
            "transformer_blocks.0.attn1.k_proj.weight": (24, 24),
            "transformer_blocks.0.attn2.v_proj.weight": (24, 10),
            "transformer_blocks.0.attn2.q_norm.weight": (24,),
            "transformer_blocks.0.norm2.weight": (24,),
            "transformer_blocks.0.mlp.fc1.weight": (96, 24),
            "proj_out_1.weight": (48, 24),
            "proj_out_2.weight": (12, 24),
        }.items()
    )
    assert not any("attn1.q_proj.bias" in key for key in theirs)
    assert "transformer_blocks.1.attn1.o_proj.bias" in official(CLASS)
    assert not any(re.search("attn2|norm2", key) for key in official(CLASS))
    assert not any("class" in key for key in official(TEXT))


def test_fused_projections_keep_their_order():
    theirs = official(TEXT)
    ours = tables.load(pixelflow.table(TEXT), theirs)["late"]["blocks"]
    parts = [theirs[f"transformer_blocks.1.attn1.{n}_proj.weight"].T for n in "qkv"]
    np.testing.assert_array_equal(
        ours["attention"]["qkv"]["kernel"][0], np.concatenate(parts, -1)
    )
    parts = [theirs[f"transformer_blocks.1.attn2.{n}_proj.bias"] for n in "kv"]
    np.testing.assert_array_equal(
        ours["cross_attention"]["kv"]["bias"][0], np.concatenate(parts)
    )


def test_wrong_weights_of_a_fused_projection_are_named():
    theirs = official(CLASS)
    del theirs["transformer_blocks.1.attn1.k_proj.weight"]
    theirs["transformer_blocks.0.attn1.v_proj.weight"] = np.zeros((24, 12))
    theirs["patch_embed.proj.weight"] = np.zeros((24, 12))
    shapes = network(CLASS, EXACT).shapes()
    with pytest.raises(ValueError) as raised:
        tables.load(pixelflow.table(CLASS), theirs, shapes)
    lines = str(raised.value).splitlines()[1:]
    assert sorted(line.strip() for line in lines) == [
        "misshapen: patch_embed.proj.weight: (24, 12), not (24, 3, 2, 2)",
        "misshapen: transformer_blocks.0.attn1.v_proj.weight: (24, 12), not (24, 24)",
        "missing: transformer_blocks.1.attn1.k_proj.weight",
    ]


def test_rotary_halves_by_hand():
    """Two rows, three columns: the first pairs turn with the column, then the row."""
    cos, sin = rotary_table(2, 3, 8, None, halves=True)
    w = np.array([1, 1e-2])
    column, row = np.array([0, 1, 2] * 2)[:, None], np.array([0] * 3 + [1] * 3)[:, None]
    angles = np.concatenate([column * w, row * w], -1)
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-6)


def test_closed_sinusoid_ends_in_its_period():
    ours = np.asarray(sinusoid(jnp.array([999.0]), 256, PERIOD, closed=True))[0]
    angles = 999 * 10000 ** (-np.arange(128) / 127)
    # An angle near 999 has an error of 3e-5 in float32 before its cosine is taken.
    np.testing.assert_allclose(ours[:128], np.cos(angles), atol=7e-5)
    np.testing.assert_allclose(ours[128:], np.sin(angles), atol=7e-5)
    np.testing.assert_allclose(ours[-1], np.sin(0.0999), atol=1e-6)
