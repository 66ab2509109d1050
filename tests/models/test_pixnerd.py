"""PixNerd: sizes, ablations, resolutions, packed groups, cost and initialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import Condition, Inputs, count, network
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from tests.golden import record

EXACT = record.EXACT
LARGE = PixNerd(width=1024, depth=22, decoder=NeuralField(depth=2))
BASELINE = PixNerd(width=1024, depth=24, decoder=LinearDecoder())


def shapes(config: PixNerd) -> dict:
    return network(config, Precision()).shapes()


def images(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(record.normal(f"image {seed}", (*shape, 3)))


def replace(config: PixNerd = record.MODEL, **field) -> PixNerd:
    decoder = dataclasses.replace(config.decoder, **field)
    return dataclasses.replace(config, decoder=decoder)


def by_hand(config: PixNerd) -> int:
    """Parameters counted layer by layer from the architecture."""
    d, pixel = config.width, config.channels * config.patch**2
    linear = lambda inputs, outputs: inputs * outputs + outputs
    embeds = linear(pixel, d) + linear(256, d) + linear(d, d)
    embeds += (config.num_classes + 1) * d
    mlp = 2 * (4 * d) // 3
    attention = 3 * d * d + linear(d, d) + 2 * (d // config.heads)
    block = 2 * d + attention + 3 * d * mlp + linear(d, 6 * d)
    if isinstance(config.decoder, LinearDecoder):
        return embeds + config.depth * block + linear(d, 2 * d) + linear(d, pixel)
    field = config.decoder
    w = field.width
    layer = w + linear(d, 2 * w * w * field.ratio)
    ends = linear(config.channels + 64, w) + w + linear(w, config.channels)
    return embeds + config.depth * block + field.depth * layer + ends


@pytest.mark.parametrize(
    ("config", "expected"),
    [(PixNerd(), 700_589_219), (LARGE, 452_113_795), (BASELINE, 459_171_584)],
    ids=["XL/16", "L/16", "DiT-L/16"],
)
def test_parameter_counts(config, expected):
    assert count(shapes(config)) == by_hand(config) == expected


@pytest.mark.parametrize("width", [36, 64, 72])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_width_and_depth_of_the_field(width, depth):
    config = replace(width=width, depth=depth)
    found = shapes(config)["decoder"]
    generator = found["field"]["blocks"]["generator"]["kernel"]
    assert generator.shape == (depth, config.width, 2 * width * 2 * width)
    assert found["linear"]["kernel"].shape == (width, 3)
    assert count(shapes(config)) == by_hand(config)


def test_encoding_and_output_norm_change_the_parameters():
    sincos = shapes(replace(encoding="sincos"))["decoder"]["embed"]["proj"]["kernel"]
    assert sincos.shape == (3 + 32, 6)
    assert "norm" in shapes(replace())["decoder"]
    assert "norm" not in shapes(replace(output_norm=False))["decoder"]


def test_normalised_weights_change_the_output_and_not_the_parameters():
    _, params = record.model(record.MODEL)
    batch = (Inputs(images(0, 1, 4, 4), jnp.zeros(1), Condition(jnp.zeros(1, int))),)
    outputs = []
    for normalised in [(), ("first",), ("second",), ("first", "second")]:
        net = network(replace(normalised=normalised), EXACT)
        assert jax.tree.structure(net.shapes()) == jax.tree.structure(params)
        outputs.append(jax.jit(net.apply)(params, batch).pred[0])
    for i, one in enumerate(outputs):
        assert all(jnp.abs(one - other).max() > 1e-3 for other in outputs[:i])


@pytest.mark.parametrize(
    "config", [record.MODEL, record.BASELINE], ids=["field", "linear"]
)
@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_packed_groups_equal_separate_calls(config, batches):
    net, params = record.model(config)
    batch = tuple(
        Inputs(
            images(i, b, *size),
            jnp.linspace(0.1 + i, 0.9, b),
            Condition(labels=jnp.arange(b) + i),
        )
        for i, (b, size) in enumerate(zip(batches, [(8, 12), (8, 4)], strict=True))
    )
    apply = jax.jit(net.apply)
    packed = apply(params, batch)
    for i in range(2):
        alone = apply(params, batch[i : i + 1])
        assert packed.pred[i].shape == batch[i].image.shape
        np.testing.assert_allclose(packed.pred[i], alone.pred[0], atol=2e-5)
        np.testing.assert_allclose(packed.features[i], alone.features[0], atol=2e-5)


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (64, 4), (32, 48)])
def test_any_size_and_aspect_with_the_same_parameters(size):
    net = network(record.MODEL, Precision())
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    labels = Condition(jax.ShapeDtypeStruct((2,), jnp.int32))
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    out = jax.eval_shape(net.apply, net.shapes(), (Inputs(image, t, labels),))
    assert out.pred[0].shape == image.shape and out.pred[0].dtype == jnp.float32
    assert out.features[0].shape == (2, size[0] * size[1] // 16, 24)


def test_a_size_that_the_patch_does_not_divide_is_refused():
    net = network(record.MODEL, Precision())
    cond = Condition(jnp.zeros(1, int))
    batch = (Inputs(jnp.zeros((1, 6, 8, 3)), jnp.zeros(1), cond),)
    with pytest.raises(ValueError, match="patch of 4 does not divide.*6 x 8"):
        jax.eval_shape(net.apply, net.shapes(), batch)


def test_half_precision_is_close_and_returns_float32():
    net, params = record.model(record.MODEL)
    half = network(record.MODEL, Precision())
    image, t = images(0, 2, 16, 16), jnp.array([0.2, 0.7])
    batch = (Inputs(image, t, Condition(labels=jnp.array([0, 5]))),)
    exact = jax.jit(net.apply)(params, batch).pred[0]
    out = jax.jit(half.apply)(params, batch)
    assert out.pred[0].dtype == jnp.float32 and out.features[0].dtype == jnp.bfloat16
    error = jnp.linalg.norm(out.pred[0] - exact) / jnp.linalg.norm(exact)
    assert 1e-6 < error < 0.03


def test_label_and_time_both_matter():
    net, params = record.model(record.MODEL)
    apply, image = jax.jit(net.apply), images(0, 1, 8, 8)
    at = lambda t, y: apply(
        params, (Inputs(image, jnp.array([t]), Condition(jnp.array([y]))),)
    )
    base = at(0.5, 1).pred[0]
    assert jnp.abs(at(0.5, 5).pred[0] - base).max() > 1e-3
    assert jnp.abs(at(0.6, 1).pred[0] - base).max() > 1e-3


@pytest.mark.parametrize(
    "decoder",
    [NeuralField(width=16, depth=2), LinearDecoder()],
    ids=["field", "linear"],
)
def test_flops_agree_with_the_compiler(decoder):
    config = PixNerd(
        num_classes=10,
        patch=8,
        width=128,
        heads=4,
        depth=3,
        feature_layer=1,
        decoder=decoder,
        stack=StackConfig(remat="none", scan=False),
    )
    net = network(config, EXACT)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    cond = Condition(jax.ShapeDtypeStruct((1,), jnp.int32))
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    lowered = jax.jit(net.apply).lower(net.shapes(), (Inputs(image, t, cond),))
    compiled = lowered.compile().cost_analysis()["flops"]
    assert abs(config.flops(64, 64) / compiled - 1) < 0.1


def test_a_sound_config_has_no_problems():
    for config in (PixNerd(), LARGE, BASELINE):
        assert config.problems(256, 256) == config.problems(512, 384) == []


@pytest.mark.parametrize(
    ("config", "size", "words"),
    [
        (PixNerd(), (250, 256), ["model.patch=16", "250 x 256"]),
        (PixNerd(heads=7), (256, 256), ["model.heads=7", "model.width=1152"]),
        (PixNerd(width=96, heads=16), (256, 256), ["multiple of 4"]),
        (PixNerd(feature_layer=27), (256, 256), ["model.feature_layer=27", "depth=26"]),
        (PixNerd(num_classes=0), (256, 256), ["num_classes", "at least 1"]),
        (PixNerd(decoder=NeuralField(encoding="fft")), (256, 256), ["encoding", "fft"]),
        (PixNerd(decoder=NeuralField(normalised=("third",))), (16, 16), ["third"]),
        (PixNerd(decoder=NeuralField(depth=0)), (16, 16), ["decoder", "at least 1"]),
    ],
    ids=lambda value: "" if isinstance(value, PixNerd | tuple) else value[0],
)
def test_problems_name_the_field_and_the_value(config, size, words):
    (problem,) = config.problems(*size)
    assert all(word in problem for word in words)


def test_all_problems_come_at_once():
    config = PixNerd(heads=7, feature_layer=99, decoder=NeuralField(width=0))
    assert len(config.problems(250, 250)) == 4
