"""PixelDiT2: how it begins, what it drops, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from tests.models.small import EXACT, frozen_params, inputs, random_like

EYES = DinoV2(
    geometry=Geometry(width=16, heads=2, depth=1, patch=4, grid=2), precision=EXACT
)
SIZES = {"patch": 4, "width": 32, "heads": 2, "depth": 4, "feature_layer": 4}
CLASSES = PixelDiT2(
    **SIZES, num_classes=5, encoder=EYES, context_length=2, context_start=1
)
TEXT = PixelDiT2Text(**SIZES, text_depth=1, text_width=6, text_length=5, encoder=EYES)
BOTH = pytest.mark.parametrize("config", [CLASSES, TEXT], ids=["classes", "text"])


@BOTH
def test_it_begins_as_the_identity_without_output(config):
    """Every block's modulation is zero, as published: tokens leave as they entered."""
    net = network(config, EXACT)
    params = jax.jit(net.init)(jax.random.key(0))
    batch = (inputs(config, (8, 12)),)
    run = jax.jit(lambda: net.apply(params, batch, frozen_params=frozen_params(config)))
    out = run()
    assert not out.pred[0].any()
    pixels = np.asarray(batch[0].image).reshape(2, 2, 4, 3, 4, 3).swapaxes(2, 3)
    embed = params["patch_embed"]
    tokens = pixels.reshape(2, 6, -1) @ embed["kernel"] + embed["bias"]
    np.testing.assert_allclose(out.features[0], tokens, atol=1e-5)
    assert not params["ground"]["stack"]["blocks"]["modulation"]["kernel"].any()


def test_the_middle_half_drops_by_each_images_key():
    config = dataclasses.replace(CLASSES, dropout=0.4)
    assert config.dropping == range(1, 3)
    net, frozen = network(config, EXACT), frozen_params(config)
    params, batch = random_like(net.shapes()), (inputs(config, (8, 8)),)

    @jax.jit
    def run(key):
        return net.apply(params, batch, key=key, frozen_params=frozen).pred[0]

    keys = jax.random.split(jax.random.key(0), 2)
    first, other = run(keys), run(keys.at[0].set(jax.random.key(1)))
    moved = jnp.abs(first - other).max((1, 2, 3))
    assert moved[0] > 1e-3 and moved[1] == 0
    plain = jax.jit(lambda: net.apply(params, batch, frozen_params=frozen).pred[0])()
    assert (jnp.abs(first - plain).max((1, 2, 3)) > 1e-3).all()
    # Dropout is of training alone, and a rate of 0 has none.
    still = network(dataclasses.replace(config, dropout=0.0), EXACT)
    same = still.apply(params, batch, key=keys, frozen_params=frozen).pred[0]
    np.testing.assert_allclose(same, plain, atol=1e-5)


@BOTH
def test_flops_agree_with_the_compiler(config):
    loop = StackConfig(remat="none", scan=False)
    sizes = {"width": 64, "patch": 8, "stack": loop}
    geometry = Geometry(width=64, heads=2, depth=2, patch=8, grid=8)
    eyes = DinoV2(geometry=geometry, precision=EXACT, stack=loop)
    more = {"text_width": 64, "text_length": 24} if config is TEXT else {}
    config = dataclasses.replace(config, encoder=eyes, **sizes, **more)
    net = network(config, EXACT)
    frozen = {n: one.shapes() for n, one in config.frozen_networks().items()}
    batch = jax.eval_shape(lambda: (inputs(config, (64, 64), count=1),))
    apply = lambda p, b, f: net.apply(p, b, frozen_params=f)
    lowered = jax.jit(apply).lower(net.shapes(), batch, frozen)
    found = lowered.compile().cost_analysis()["flops"]
    assert config.flops(64, 64) == pytest.approx(found, rel=0.12)
