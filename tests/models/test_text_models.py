"""The models that read text: sizes, masks, texts that do not fit, groups, cost."""

import dataclasses
import functools
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.convert import pixelgen, pixnerd
from pixelflow_jax.models.deco import PixelMLPs
from pixelflow_jax.models.deco_text import DeCoText
from pixelflow_jax.models.interface import Condition, Inputs, count, network
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import NeuralField
from pixelflow_jax.models.pixnerd_text import PixNerdText, text_field
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping as tables
from tests.marks import long

EXACT = Precision(compute="float32", matmul="highest")
WIDTHS = {"width": 16, "heads": 2, "depth": 2, "text_depth": 1, "feature_layer": 1}
TEXTS = {"text_width": 6, "text_length": 5}
FIELD = dataclasses.replace(text_field(), width=8, depth=1)
PIXNERD = PixNerdText(patch=4, decoder=FIELD, **WIDTHS, **TEXTS)
PIXELGEN = PixelGenText(patch=4, image_size=8, bottleneck=7, **WIDTHS, **TEXTS)
DECO = DeCoText(patch=4, decoder=PixelMLPs(width=8, depth=2), **WIDTHS, **TEXTS)
PLAIN = {type(config).__name__: config for config in (PIXNERD, PIXELGEN, DECO)}
TABLES = {PixNerdText: pixnerd.text_table, PixelGenText: pixelgen.text_table}
SMALL = pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
LARGE = pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PixNerdText(), 1_171_518_019),
        (PixelGenText(), 1_123_312_384),
        (DeCoText(), 1_133_759_395),
    ],
    ids=PLAIN,
)
TRUE = jnp.ones((2, 5), bool)
Config = PixNerdText | PixelGenText | DeCoText


def by_hand(config: Config) -> int:
    """Parameters counted layer by layer from the architecture."""
    d, pixels = config.width, config.channels * config.patch**2
    linear = lambda inputs, outputs: inputs * outputs + outputs
    norms = 2 * d + 2 * (d // config.heads)
    block = 3 * d * d + linear(d, d) + 12 * d * d + linear(d, 6 * d) + norms
    embeds = linear(256, d) + linear(d, d) + linear(config.text_width, d) + d
    trunk = embeds + config.text_length * d
    trunk += (config.text_depth + config.depth) * block + config.depth * 2 * d * d
    if isinstance(config, PixelGenText):
        neck, side = config.bottleneck, config.image_size // config.patch
        return trunk + pixels * neck + linear(neck, d) + side**2 * d + linear(d, pixels)
    w, last = config.decoder.width, linear(config.decoder.width, config.channels)
    if isinstance(config, DeCoText):
        block = 2 * w + 2 * linear(w, w) + linear(w, 3 * w)
        each = linear(d, config.patch**2 * w) + config.decoder.depth * block
        pixel = linear(config.channels + 64, w) + linear(w, w)
        return trunk + linear(pixels, d) + each + pixel + last
    hidden = w * config.decoder.ratio
    field = config.decoder.depth * (linear(d, 2 * w * hidden) + w)
    return trunk + linear(pixels, d) + field + linear(config.channels + 64, w) + last


@LARGE
def test_parameter_counts_of_the_published_sizes(config, expected):
    shapes = network(config, Precision()).shapes()
    assert count(shapes) == by_hand(config) == expected
    assert (config.problems(512, 512), config.num_classes) == ([], 0)


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def built(config: Config) -> tuple:
    """The network with parameters of which none is zero."""
    net = network(config, EXACT)
    leaves, structure = jax.tree.flatten(net.shapes())
    sizes = [leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.4 for leaf in leaves]
    drawn = [
        s * normal(i, *a.shape)
        for i, (s, a) in enumerate(zip(sizes, leaves, strict=True))
    ]
    return net, jax.tree.unflatten(structure, drawn)


@functools.cache
def compiled(name: str, mask_text: bool = False):
    """A function of conditions for one batch of two images."""
    net, params = built(dataclasses.replace(PLAIN[name], mask_text=mask_text))
    image, t = normal(90, 2, 8, 8, 3), jnp.array([0.3, 0.8])
    apply = lambda cond: net.apply(params, (Inputs(image, t, cond),)).pred[0]
    return jax.jit(apply)


def apart(one: jax.Array, other: jax.Array) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


@SMALL
def test_padding_is_read_unless_masked(config):
    text, mask = normal(91, 2, 5, 6), jnp.arange(5) < jnp.array([[3], [5]])
    other = jnp.where(mask[..., None], text, text + 1)
    name = type(config).__name__
    plain, masked = compiled(name), compiled(name, True)
    # Without mask_text a mask changes nothing.
    assert (
        apart(plain(Condition(text=text)), plain(Condition(text=text, mask=mask))) == 0
    )
    moved = apart(plain(Condition(text=text)), plain(Condition(text=other)))
    hidden = [masked(Condition(text=a, mask=mask)) for a in (text, other)]
    assert moved > 1e-2 and apart(*hidden) < 1e-4 * moved
    full = masked(Condition(text=text, mask=jnp.ones((2, 5), bool)))
    assert apart(full, plain(Condition(text=text))) < 1e-4
    # The image itself is never hidden: the second text is whole.
    assert apart(hidden[0][1], full[1]) < 1e-4 < apart(hidden[0][0], full[0])


@SMALL
@pytest.mark.parametrize(
    ("cond", "words"),
    [
        (Condition(), "holds none"),
        (
            Condition(text=jnp.zeros((2, 4, 6)), mask=TRUE),
            "exactly 5 tokens of width 6, not 4 of 6",
        ),
        (
            Condition(text=jnp.zeros((2, 5, 7)), mask=TRUE),
            "exactly 5 tokens of width 6, not 5 of 7",
        ),
        (Condition(text=jnp.zeros((2, 5, 6))), "no mask"),
    ],
    ids=["none", "length", "width", "mask"],
)
def test_conditions_that_do_not_fit_are_refused(config, cond, words):
    net = network(dataclasses.replace(config, mask_text=True), EXACT)
    image, t = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(net.apply, net.shapes(), (Inputs(image, t, cond),))


@SMALL
@pytest.mark.parametrize(
    "batches", [long((2, 2), id="aligned"), pytest.param((2, 1), id="unequal")]
)
def test_groups_are_what_they_are_alone(config, batches):
    config = dataclasses.replace(config, mask_text=True, text_depth=2)
    net, params = built(config)
    batch = []
    for i, (b, size) in enumerate(zip(batches, [(8, 8), (8, 16)], strict=True)):
        mask = jnp.arange(5) < 2 + i + jnp.arange(b)[:, None]
        cond = Condition(text=normal(20 + i, b, 5, 6), mask=mask)
        times = jnp.full(b, 0.2 + 0.3 * i)
        batch.append(Inputs(normal(10 + i, b, *size, 3), times, cond))
    both = jax.jit(net.apply)(params, tuple(batch))
    for i, inputs in enumerate(batch):
        alone = jax.jit(net.apply)(params, (inputs,))
        np.testing.assert_allclose(both.pred[i], alone.pred[0], atol=2e-4)
        np.testing.assert_allclose(both.features[i], alone.features[0], atol=2e-4)


@SMALL
def test_the_blocks_attend_to_the_refined_text(config):
    """Taking the blocks on texts away, or moving a text's places, changes images."""
    config = dataclasses.replace(config, text_depth=0)
    net, params = built(dataclasses.replace(config, text_depth=1))
    cond = Condition(text=text(1))
    batch = (Inputs(normal(1, 1, 8, 8, 3), jnp.array([0.5]), cond),)
    base = net.apply(params, batch).pred[0]
    trunk = params["trunk"]
    rest = {k: v for k, v in trunk.items() if k != "refine"}
    bare = network(config, EXACT).apply({**params, "trunk": rest}, batch).pred[0]
    embed = trunk["text_embed"]
    moved = {**trunk, "text_embed": {**embed, "position": embed["position"][::-1]}}
    other = net.apply({**params, "trunk": moved}, batch).pred[0]
    assert min(apart(base, bare), apart(base, other)) > 1e-3


def text(b: int) -> jax.Array:
    return normal(5, b, 5, 6)


@SMALL
def test_beginnings(config):
    """The official initialisation: nothing comes out, and the places are of its size"""
    net = network(dataclasses.replace(config, text_length=500), EXACT)
    params = net.init(jax.random.key(0))
    kernel = functools.reduce(operator.getitem, config.output_kernel, params)
    assert not kernel.any()
    trunk = params["trunk"]
    places = 0.02 if isinstance(config, PixelGenText) else 1.0
    std = jnp.std(trunk["text_embed"]["position"])
    assert abs(std / places - 1) < 0.05
    begins_as_identity = not trunk["early"]["blocks"]["modulation"]["kernel"].any()
    assert begins_as_identity == isinstance(config, PixelGenText)


@pytest.mark.parametrize("config", [PIXNERD, PIXELGEN], ids=["pixnerd", "pixelgen"])
def test_weights_go_out_and_come_back(config):
    _, params = built(config)
    table = TABLES[type(config)](config)
    again = tables.load(table, tables.export(table, params), params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@SMALL
def test_flops_agree_with_the_compiler(config):
    fields = {"width": 64, "heads": 2, "text_width": 64, "text_length": 24}
    loop = StackConfig(remat="none", scan=False)
    config = dataclasses.replace(config, patch=8, stack=loop, **fields)
    if isinstance(config, PixelGenText):
        config = dataclasses.replace(config, image_size=64)
    net = network(config, EXACT)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    cond = Condition(text=shape(1, 24, 64))
    batch = (Inputs(shape(1, 64, 64, 3), shape(1), cond),)
    lowered = jax.jit(net.apply).lower(net.shapes(), batch)
    found = lowered.compile().cost_analysis()["flops"]
    assert abs(config.flops(64, 64) / found - 1) < 0.08
    if isinstance(config, PixNerdText):
        sized = dataclasses.replace(config, canvas=(32, 32))
        lowered = jax.jit(network(sized, EXACT).apply).lower(net.shapes(), batch)
        found = lowered.compile().cost_analysis()["flops"]
        assert abs(sized.flops(64, 64) / found - 1) < 0.08


CANVAS = dataclasses.replace(PIXNERD, canvas=(8, 8))


def drawn(config: PixNerdText, params: dict, image: jax.Array):
    """Prediction and features for one image at t = 0.4."""
    cond = Condition(text=normal(3, 1, 5, 6))
    apply = jax.jit(network(config, EXACT).apply)
    out = apply(params, (Inputs(image, jnp.array([0.4]), cond),))
    return out.pred[0], out.features[0]


def test_a_canvas_of_the_image_size_is_no_canvas():
    """At the patch of the published model, whose coordinates span 16 either way."""
    plain = dataclasses.replace(PIXNERD, patch=16)
    _, params = built(plain)
    image = normal(1, 1, 32, 16, 3)
    pairs = zip(
        drawn(plain, params, image),
        drawn(dataclasses.replace(plain, canvas=(32, 16)), params, image),
        strict=True,
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(16, 16), (12, 12), (16, 6), (2, 8)], ids=str)
def test_a_canvas_keeps_the_number_of_tokens(size):
    _, params = built(CANVAS)
    pred, features = drawn(CANVAS, params, normal(1, 1, *size, 3))
    assert pred.shape == (1, *size, 3) and features.shape == (1, 4, 16)


def test_the_transformer_sees_a_canvas_and_the_field_every_pixel():
    """A pixel that is not picked changes its own value in the result and no other."""
    _, params = built(CANVAS)
    small = normal(1, 1, 8, 8, 3)
    large = small.repeat(2, 1).repeat(3, 2)  # 16 x 24: the same pixels are picked
    pred, features = drawn(CANVAS, params, large)
    np.testing.assert_allclose(features, drawn(CANVAS, params, small)[1], atol=1e-5)
    changed, same = drawn(CANVAS, params, large.at[0, 5, 7].add(1.0))
    np.testing.assert_array_equal(features, same)
    moved = np.argwhere(np.abs(changed - pred).max(-1) > 1e-6)
    assert moved.tolist() == [[0, 5, 7]]
    _, other = drawn(CANVAS, params, large.at[0, 4, 6].add(1.0))
    assert apart(features, other) > 1e-3


def test_coordinates_span_the_same_in_every_patch():
    """The corners of a patch of one size and another have the same field."""
    _, params = built(CANVAS)
    constant = lambda h, w: jnp.full((1, h, w, 3), 0.3)
    small, large = (
        np.asarray(drawn(CANVAS, params, constant(*size))[0])
        for size in [(8, 8), (24, 14)]
    )
    corners = [(0, 0), (3, 0), (0, 3), (3, 3)]
    scaled = [(0, 0), (11, 0), (0, 6), (11, 6)]
    for (r, c), (y, x) in zip(corners, scaled, strict=True):
        np.testing.assert_allclose(small[0, r, c], large[0, y, x], atol=1e-5)
        np.testing.assert_allclose(small[0, 4 + r, c], large[0, 12 + y, x], atol=1e-5)
    assert np.abs(small[0, 0, 0] - small[0, 3, 0]).max() > 1e-3


@pytest.mark.parametrize(
    ("canvas", "size", "words"),
    [
        ((512, 512), (1000, 512), "32 x 32 patches: .* of 32.*unlike 1000 x 512"),
        ((512, 256), (512, 520), "32 x 16 patches: .* width of 16, unlike 512 x 520"),
        ((512,), (512, 512), "must be a height and a width"),
        ((0, 512), (512, 512), "must be a height and a width"),
        ((500, 512), (512, 512), r"patch=16 does not divide.*model.canvas=\(500"),
    ],
    ids=str,
)
def test_sizes_that_a_canvas_does_not_fit(canvas, size, words):
    (problem,) = PixNerdText(canvas=canvas).problems(*size)
    assert re.search(words, problem)


def test_a_canvas_fits_multiples_of_its_grid():
    config = PixNerdText(canvas=(512, 512))
    for size in [(512, 512), (1024, 768), (480, 32)]:
        assert config.problems(*size) == []
    assert config.flops(1024, 1024) < 1.2 * config.flops(512, 512)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PixNerdText(text_width=0), "text_width=0"),
        (PixelGenText(text_length=0), "text_length=0"),
        (PixNerdText(text_depth=-1), "model.text_depth=-1"),
        (PixelGenText(bottleneck=0), "bottleneck=0"),
        (PixelGenText(image_size=250), "model.image_size=250"),
        (PixNerdText(feature_layer=17), "model.feature_layer=17"),
        (PixelGenText(heads=7), "model.heads=7"),
        (PixNerdText(decoder=NeuralField(depth=0)), "decoder.width, ratio and depth"),
    ],
)
def test_problems_name_the_field(config, words):
    (problem,) = config.problems(512, 512)
    assert words in problem
