"""PixelGen: sizes, cuts, positions, class tokens, packed groups, cost."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.models.interface import Condition, Inputs, count, network
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from tests.models.pixelgen_small import (
    EXACT,
    IMAGES,
    SMALL,
    batch,
    change,
    model,
    near,
    run,
    shapes,
)

LARGE = PixelGen(width=1024, depth=24, bottleneck=128)


@pytest.fixture(scope="module")
def small():
    """The small network as a compiled function of params, images and so on, and key."""
    net, params = model()
    return jax.jit(net.apply), params


def by_hand(config: PixelGen) -> int:
    """Parameters counted layer by layer from the architecture."""
    d, pixel = config.width, config.channels * config.patch**2
    neck, side = config.bottleneck, config.image_size // config.patch
    linear = lambda inputs, outputs: inputs * outputs + outputs
    patches = pixel * neck + linear(neck, d) if neck else linear(pixel, d)
    places = (side**2 + config.context_length + config.num_classes + 1) * d
    embeds = patches + places + linear(256, d) + linear(d, d)
    mlp = int(config.width * config.mlp_ratio) * 2 // 3
    attention = linear(d, 3 * d) + linear(d, d) + 2 * (d // config.heads)
    block = 2 * d + attention + 2 * linear(d, mlp) + linear(mlp, d) + linear(d, 6 * d)
    return embeds + config.depth * block + d + linear(d, 2 * d) + linear(d, pixel)


@pytest.mark.parametrize(
    ("config", "expected"),
    [(PixelGen(), 676_994_112), (LARGE, 459_139_808)],
    ids=["XL/16", "L/16"],
)
def test_parameter_counts(config, expected):
    assert count(shapes(config)) == by_hand(config) == expected


def test_options_change_the_parameters():
    plain = change(bottleneck=0, context_length=0, mlp_ratio=3.0)
    found = shapes(plain)
    assert count(found) == by_hand(plain)
    assert "context" not in found and "patch_expand" not in found
    assert found["patch_embed"]["kernel"].shape == (48, 24)
    assert found["early"]["blocks"]["mlp"]["up"]["kernel"].shape == (2, 24, 48)
    found = shapes(SMALL)
    assert set(found["patch_embed"]) == {"kernel"}
    assert found["context"].shape == (2, 24) and found["position"].shape == (9, 24)


@pytest.mark.parametrize(
    ("feature_layer", "start", "depths"),
    [
        (0, 2, [0, 2, 2]),
        (2, 2, [2, 0, 2]),
        (3, 2, [2, 1, 1]),
        (4, 0, [0, 4, 0]),
        (1, 3, [1, 2, 1]),
    ],
)
def test_stacks_are_cut_where_something_happens(feature_layer, start, depths):
    found = shapes(change(feature_layer=feature_layer, context_start=start))
    stacks = [found.get(name) for name in ("early", "middle", "late")]
    layers = lambda stack: stack["blocks"]["norm1"]["weight"].shape[0] if stack else 0
    assert [layers(stack) for stack in stacks] == depths
    without = shapes(
        change(feature_layer=feature_layer, context_start=start, context_length=0)
    )
    assert "middle" not in without


def test_where_the_trunk_is_cut_changes_nothing(small):
    apply, params = small
    expected = apply(params, IMAGES)
    early, late = (run(change(feature_layer=layer)) for layer in (0, 3))
    for out in (early, late):
        near(out.pred[0], expected.pred[0])
        assert out.features[0].shape == (4, 9, 24)
        assert jnp.abs(out.features[0] - expected.features[0]).max() > 0.1
    # Tokens that leave before the class tokens come do not know whether they will.
    without = run(change(context_length=0))
    near(without.features[0], expected.features[0])
    assert jnp.abs(without.pred[0] - expected.pred[0]).max() > 0.01


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_packed_groups_equal_separate_calls(small, batches):
    """The trained size and another."""
    apply, params = small
    sizes = ((12, 12), (8, 20))
    groups = [batch(b, b, *size) for b, size in zip(batches, sizes, strict=True)]
    packed = apply(params, groups[0] + groups[1])
    for i, group in enumerate(groups):
        alone = apply(params, group)
        assert packed.pred[i].shape == group[0].image.shape
        near(packed.pred[i], alone.pred[0])
        near(packed.features[i], alone.features[0])


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (12, 12), (32, 48)])
def test_any_size_and_aspect_with_the_same_parameters(size):
    net = network(SMALL, Precision())
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    labels = Condition(jax.ShapeDtypeStruct((2,), jnp.int32))
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    out = jax.eval_shape(net.apply, net.shapes(), (Inputs(image, t, labels),))
    assert out.pred[0].shape == image.shape and out.pred[0].dtype == jnp.float32
    assert out.features[0].shape == (2, size[0] * size[1] // 16, 24)
    bad = jax.ShapeDtypeStruct((2, 6, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match="patch of 4 does not divide.*6 x 8"):
        jax.eval_shape(net.apply, net.shapes(), (Inputs(bad, t, labels),))


def test_stored_positions_serve_the_trained_size_and_computed_ones_all_others(small):
    apply, params = small
    moved = {**params, "position": params["position"] + 1}
    begun = {**params, "position": jnp.asarray(sincos_table(3, 3, 24))}
    outs = [apply(p, IMAGES).pred[0] for p in (params, moved, begun)]
    assert jnp.abs(outs[1] - outs[0]).max() > 0.01
    assert jnp.abs(outs[2] - outs[0]).max() > 0.01
    # 6 x 24 pixels at twice the size would be the same number of tokens.
    other = batch(1, 4, 4, 36)
    near(apply(params, other).pred[0], apply(moved, other).pred[0], 0)
    # Where the stored table is the computed one, a part of it is a smaller grid's.
    whole = network(SMALL, EXACT).init(jax.random.key(0))["position"]
    near(whole.reshape(3, 3, 24)[:2, :2].reshape(4, 24), sincos_table(2, 2, 24), 1e-6)


def module(config: PixelGen, params: dict):
    build = lambda: config.build(nnx.Rngs(params=0), EXACT)
    return nnx.merge(nnx.graphdef(nnx.eval_shape(build)), params)


def test_class_tokens_come_first_know_no_time_and_do_not_turn():
    _, params = model()
    own = module(SMALL, params)
    ((images, _, cond),) = IMAGES
    (names,) = own.precompute(IMAGES).extra
    x = own.embed((images,))
    longer = own.with_context(x, (images,), (names,))
    table = params["class_embed"]["table"][cond.labels]
    near(longer.array[:, :2], table[:, None] + params["context"], 1e-6)
    near(longer.array[:, 2:], x.array, 0)
    assert longer.packing.lengths == (11,)
    for part, whole, still in zip(x.rope, longer.rope, (1, 0), strict=True):
        assert (whole[:2] == still).all()
        near(whole[2:], part, 0)
    angles = np.arctan2(x.rope[1], x.rope[0]).reshape(3, 3, 4)
    near(angles[2, 1], [2, 0.02, 1, 0.01], 1e-5)  # row 2, then column 1


def test_label_and_time_both_matter(small):
    apply, params = small
    ((images, t, cond),) = IMAGES
    base = apply(params, IMAGES).pred[0]
    other = Condition(labels=(cond.labels + 1) % 6)
    for changed in (Inputs(images, t, other), Inputs(images, t + 0.1, cond)):
        assert jnp.abs(apply(params, (changed,)).pred[0] - base).max() > 1e-3


def test_half_precision_is_close_and_returns_float32(small):
    apply, params = small
    exact = apply(params, IMAGES).pred[0]
    out = jax.jit(network(SMALL, Precision()).apply)(params, IMAGES)
    assert out.pred[0].dtype == jnp.float32 and out.features[0].dtype == jnp.bfloat16
    error = jnp.linalg.norm(out.pred[0] - exact) / jnp.linalg.norm(exact)
    assert 1e-6 < error < 0.03


@pytest.mark.parametrize(
    "options",
    [{"bottleneck": 32, "context_length": 20}, {"bottleneck": 0, "context_length": 0}],
    ids=["all", "none"],
)
def test_flops_agree_with_the_compiler(options):
    config = PixelGen(
        num_classes=10,
        patch=8,
        image_size=64,
        width=128,
        heads=4,
        depth=3,
        feature_layer=1,
        context_start=1,
        stack=StackConfig(remat="none", scan=False),
        **options,
    )
    net = network(config, EXACT)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    cond = Condition(jax.ShapeDtypeStruct((1,), jnp.int32))
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    lowered = jax.jit(net.apply).lower(net.shapes(), (Inputs(image, t, cond),))
    compiled = lowered.compile().cost_analysis()["flops"]
    assert abs(config.flops(64, 64) / compiled - 1) < 0.05


def test_a_sound_config_has_no_problems():
    for config in (PixelGen(), LARGE, change(context_length=0, context_start=99)):
        assert config.problems(12 * 16, 4 * 16) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image_size": 250}, ["model.image_size=250", "model.patch=16"]),
        ({"heads": 7}, ["model.heads=7", "model.width=1152"]),
        ({"width": 96}, ["multiple of 4"]),
        ({"feature_layer": 29}, ["model.feature_layer=29", "depth=28"]),
        ({"context_start": 28}, ["model.context_start=28", "27", "context_length=0"]),
        ({"context_start": -1}, ["model.context_start=-1"]),
        ({"context_length": -1}, ["context_length", "at least 0"]),
        ({"bottleneck": -2}, ["bottleneck", "at least 0"]),
        ({"num_classes": 0}, ["num_classes=0", "at least 1"]),
        ({"image_size": 0}, ["image_size=0", "at least 1"]),
        ({"mlp_ratio": 0.0}, ["model.mlp_ratio=0.0"]),
        ({"dropout": 1.0}, ["model.dropout=1.0", "[0, 1)"]),
        ({"attention_dropout": -0.1}, ["model.attention_dropout=-0.1"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_problems_name_the_field_and_the_value(fields, words):
    (problem,) = PixelGen(**fields).problems(256, 256)
    assert all(word in problem for word in words)


def test_problems_of_the_size_and_all_at_once():
    (problem,) = PixelGen().problems(250, 256)
    assert "model.patch=16" in problem and "250 x 256" in problem
    config = PixelGen(heads=7, feature_layer=99, context_start=99, dropout=2.0)
    assert len(config.problems(250, 250)) == 5
    # A zero is reported, not divided by.
    for name in ("patch", "width", "heads", "depth", "channels"):
        (found, *_) = PixelGen(**{name: 0}).problems(256, 256)
        assert f"{name}=0" in found


# What a parameter starts as; the first pattern that its path matches decides.
RULES = [
    (r"norm\d?/weight$|_norm/weight$", "ones"),
    (r"decoder/linear/|/?modulation/|bias$", "zeros"),
    (r"time_embed/\w+/kernel$|class_embed/table$|context$", "normal"),
    (r"position$", "table"),
    (r"mlp/(gate|up)/kernel$", "half"),
    (r"kernel$", "xavier"),
]


@pytest.fixture(scope="module", params=[0, 24], ids=["direct", "bottleneck"])
def drawn(request):
    config = change(
        num_classes=60,
        width=64,
        heads=4,
        image_size=48,
        context_length=40,
        bottleneck=request.param,
    )
    net = network(config, EXACT)
    return net, jax.jit(net.init)(jax.random.key(0))


def test_every_parameter_follows_its_distribution(drawn):
    leaves = jax.tree_util.tree_leaves_with_path(drawn[1])
    for keys, leaf in leaves:
        path, value = "/".join(k.key for k in keys), np.asarray(leaf)
        assert value.dtype == np.float32, path
        rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
        if rule in ("ones", "zeros"):
            assert (value == (rule == "ones")).all(), path
            continue
        if rule == "table":
            near(value, sincos_table(12, 12, 64), 0)
            continue
        inputs, outputs = value.shape[-2:]
        bound = {
            "xavier": np.sqrt(6 / (inputs + outputs)),
            "half": np.sqrt(6 / (inputs + 2 * outputs)),
            "normal": 0.02 * np.sqrt(3),
        }[rule]
        noise = 4 / np.sqrt(value.size)
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < noise, path
        assert abs(value.mean()) < noise * bound, path
        largest = np.abs(value).max()
        uniform = 0.98 * bound < largest <= bound * (1 + 1e-6)
        assert largest > bound if rule == "normal" else uniform, path
        if "blocks" in path:
            assert not (value[0] == value[-1]).any() or len(value) == 1, path


def test_the_first_output_is_exactly_zero():
    net = network(SMALL, EXACT)
    out = jax.jit(lambda key: net.apply(net.init(key), IMAGES))(jax.random.key(0))
    assert not out.pred[0].any() and (out.features[0] != 0).all()
