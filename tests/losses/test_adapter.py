"""The masked adapter in REPA's place: what it sees, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.config_io import from_dict, to_dict, walk
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.losses.adapter import MaskedAdapter
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.teachers.suite import Teachers
from tests.models.small import random_like

MODEL = PixelGen(num_classes=3, width=16, heads=2, depth=2)
KEYS = jax.random.split(jax.random.key(0), 2)
TOKENS = jax.random.normal(jax.random.key(1), (2, 6, 16))
GIVEN = Inputs(
    jnp.zeros((2, 8, 12, 3)),
    jnp.array([0.2, 0.7]),
    Condition(labels=jnp.array([0, 3])),
)


def adapted(mask: float, width: int = 24, tokens=TOKENS, keys=KEYS, given=GIVEN):
    adapter = MaskedAdapter(heads=2, mask=mask, context_length=2)
    shapes = jax.eval_shape(lambda: adapter.init(KEYS[0], MODEL, width))
    return adapter(random_like(shapes), tokens, given, keys)


@pytest.mark.parametrize("width", [16, 24])
def test_it_gives_the_teachers_tokens(width):
    out = adapted(0.2, width)
    assert out.shape == (2, 6, width) and out.dtype == jnp.float32


def test_masks_are_an_images_own():
    first, other, none = (
        adapted(0.5),
        adapted(0.5, keys=KEYS.at[0].set(jax.random.key(9))),
        adapted(0.0),
    )
    moved = jnp.abs(first - other).max((1, 2))
    assert moved[0] > 1e-3 and moved[1] == 0
    assert (jnp.abs(first - none).max((1, 2)) > 1e-3).all()


def test_masked_tokens_are_not_seen():
    """Gradients reach all tokens without masks, and only some with them."""

    def reached(mask: float) -> np.ndarray:
        grad = jax.grad(lambda tokens: adapted(mask, tokens=tokens).sum())(TOKENS)
        return np.asarray(jnp.abs(grad).max(-1) > 0)

    assert reached(0.0).all()
    assert 0 < reached(0.5).sum() < reached(0.5).size


def test_it_knows_time_and_class():
    for changed in (
        GIVEN._replace(timestep=GIVEN.timestep + 0.2),
        GIVEN._replace(cond=Condition(labels=jnp.array([1, 2]))),
    ):
        moved = jnp.abs(adapted(0.0, given=changed) - adapted(0.0)).max((1, 2))
        assert (moved > 1e-3).all()


def test_a_config_keeps_it():
    term = Repa(weight=0.1, projector=MaskedAdapter(depth=3))
    classes = {type(node) for _, node in walk(term)}
    assert from_dict(to_dict(term), classes) == term
    assert Repa().projector is None  # the linear layers, as ever


def test_of_a_model_of_text_it_knows_the_time_alone():
    """Without classes there is no embedding of them; its own tokens stay."""
    adapter = MaskedAdapter(heads=2, mask=0.0, context_length=2)
    text = PixelGenText(width=16, heads=2, depth=2)
    shapes = jax.eval_shape(lambda: adapter.init(KEYS[0], text, 24))
    assert "class_embed" not in shapes and shapes["context"].shape == (2, 16)
    params = random_like(shapes)
    given = GIVEN._replace(cond=Condition(text=jnp.ones((2, 3, 8))))
    later = given._replace(timestep=given.timestep + 0.2)
    outs = [adapter(params, TOKENS, one, KEYS) for one in (given, later)]
    assert outs[0].shape == (2, 6, 24)
    assert (jnp.abs(outs[0] - outs[1]).max((1, 2)) > 1e-3).all()


def test_heads_that_do_not_divide_are_refused():
    term = Repa(projector=MaskedAdapter(heads=3))
    with pytest.raises(ConfigError, match="heads=3 must divide"):
        term.init_projector(KEYS[0], MODEL, Teachers())
