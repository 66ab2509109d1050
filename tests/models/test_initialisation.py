"""Initial parameters: zero output, and the official distributions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import Condition, Inputs, network
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from tests.golden.record import EXACT

FIELD = PixNerd(
    num_classes=40,
    patch=4,
    width=64,
    heads=4,
    depth=3,
    feature_layer=1,
    decoder=NeuralField(width=16, depth=2),
)
LINEAR = PixNerd(
    num_classes=40,
    patch=4,
    width=64,
    heads=4,
    depth=3,
    feature_layer=1,
    decoder=LinearDecoder(),
)

# What a parameter starts as; the first pattern that its path matches decides.
RULES = [
    (r"norm\d?/weight$|_norm/weight$", "ones"),
    (r"decoder/linear/", "zeros"),
    (r"decoder/modulation/", "zeros"),  # the baseline's; the blocks' is not zero
    (r"patch_embed/bias$", "zeros"),
    (r"patch_embed/kernel$", "xavier"),
    (r"time_embed/\w+/kernel$|class_embed/table$", "normal"),
    (r"", "torch"),
]


def flatten(params: dict) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(k.key for k in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module", params=[FIELD, LINEAR], ids=["field", "linear"])
def drawn(request):
    net = network(request.param, EXACT)
    return net, jax.jit(net.init)(jax.random.key(0))


def test_the_first_output_is_exactly_zero(drawn):
    net, params = drawn
    image = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    cond = Condition(labels=jnp.array([1, 40]))
    inputs = Inputs(image, jnp.array([0.1, 0.9]), cond)
    out = jax.jit(net.apply)(params, (inputs,))
    assert not out.pred[0].any()
    assert (out.features[0] != 0).all()


def test_every_parameter_follows_its_distribution(drawn):
    flat = flatten(drawn[1])
    for path, value in flat.items():
        assert value.dtype == np.float32, path
        rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
        if rule in ("ones", "zeros"):
            assert (value == (rule == "ones")).all(), path
            continue
        kernel = flat[re.sub("bias$", "kernel", path)]
        fan_in, fan_out = kernel.shape[-2:]
        bound = {
            "torch": fan_in**-0.5,
            "xavier": np.sqrt(6 / (fan_in + fan_out)),
            "normal": 0.02 * np.sqrt(3),
        }[rule]
        count = value.size
        noise = 4 / np.sqrt(count)
        assert abs(value.std() / (bound / np.sqrt(3)) - 1) < noise, path
        assert abs(value.mean()) < noise * bound, path
        if rule == "normal":
            assert np.abs(value).max() > bound, path
        else:
            assert np.abs(value).max() <= bound * (1 + 1e-6), path
            assert count < 500 or np.abs(value).max() > 0.98 * bound, path


def test_the_key_decides_and_layers_differ(drawn):
    net, params = drawn
    init = jax.jit(net.init)
    one, two = flatten(init(jax.random.key(0))), flatten(init(jax.random.key(1)))
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, one[path])
        assert value.std() == 0 or not (value == two[path]).any(), path
        if "blocks" in path and value.std():
            assert not (value[0] == value[-1]).any() or len(value) == 1, path
