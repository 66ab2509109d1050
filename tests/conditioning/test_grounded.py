"""Class and grounding, dropped each by itself, together, or by guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.grounded import GroundedLabels, GroundedText
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.loader import Data
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.errors import ConfigError, WeightsError
from pixelflow_jax.models.interface import load_frozen
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.validate import validate
from tests.models.small import small

MODEL = PixelDiT2(num_classes=9)
TEXT = PixelDiT2Text()
LABELS = jnp.arange(2000) % 9


def dropped(conditioner: GroundedLabels) -> tuple[np.ndarray, np.ndarray]:
    """Which images lose their class, and which their grounding."""
    cond = conditioner.encode({}, {"label": LABELS})
    null = conditioner.null({}, cond, MODEL)
    keys = jax.random.split(jax.random.key(0), len(LABELS))
    after = conditioner.dropped(keys, cond, null)
    return np.asarray(after.labels) == 9, ~np.asarray(after.grounding)


def test_each_is_dropped_by_itself():
    labels, looks = dropped(GroundedLabels(drop=0.3, grounding_drop=0.2))
    assert labels.mean() == pytest.approx(0.3, abs=0.03)
    assert looks.mean() == pytest.approx(0.2, abs=0.03)
    assert (labels & looks).mean() == pytest.approx(0.06, abs=0.02)


def test_they_may_be_dropped_together():
    labels, looks = dropped(GroundedLabels(drop=0.3, together="coupled"))
    assert labels.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(labels, looks)
    never = GroundedLabels(drop=0.0, together="coupled", joint_drop=0.5)
    assert not dropped(never)[0].any()  # as in the official code
    (problem,) = never.problems(MODEL)
    assert "joint_drop=0.5 must be 0" in problem
    both = GroundedLabels(drop=0.0, grounding_drop=0.0, joint_drop=0.25)
    labels, looks = dropped(both)
    assert labels.mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(labels, looks)


def test_guidance_is_against_neither():
    conditioner = GroundedLabels()
    cond = conditioner.encode({}, {"label": LABELS})
    null = conditioner.null({}, cond, MODEL)
    assert cond.grounding.all() and not null.grounding.any()
    assert (null.labels == 9).all()


def test_text_is_dropped_and_led_away_from_like_classes(monkeypatch):
    """The empty text without a look, or a negative one; the encoder's files are its."""
    states = lambda self, params, tokens, mask: tokens[..., None] * jnp.ones(4)
    monkeypatch.setattr(T5, "states", states)
    conditioner = GroundedText(length=3, drop=0.3, grounding_drop=0.2)
    count = 2000
    tokens = jnp.full((count, 3), 7)
    batch = {"tokens": tokens, "mask": jnp.ones((count, 3), bool)}
    cond = conditioner.encode({"text": {}}, batch)
    assert cond.grounding.all() and (cond.text == 7).all()
    null = conditioner.null({"text": {}}, cond, TEXT, batch)
    assert not null.grounding.any() and (null.text != 7).all()
    negative = {"negative_tokens": tokens + 1, "negative_mask": batch["mask"]}
    other = conditioner.null({"text": {}}, cond, TEXT, batch | negative)
    assert not other.grounding.any() and (other.text == 8).all()
    keys = jax.random.split(jax.random.key(0), count)
    after = conditioner.dropped(keys, cond, null)
    gone = np.asarray(after.text != 7).all((1, 2))
    assert gone.mean() == pytest.approx(0.3, abs=0.03)
    assert (~after.grounding).mean() == pytest.approx(0.2, abs=0.03)
    assert conditioner.for_prompts().features == ""
    named = conditioner.with_encoder_files("/a", "/b").encoder
    assert (named.weights, named.tokenizer) == ("/a", "/b")
    (problem,) = GroundedText(length=128).problems(PixNerdText())
    assert "take Text" in problem
    assert GroundedText(length=128).problems(TEXT) == []


def test_a_model_without_eyes_is_refused():
    (problem,) = GroundedLabels().problems(PixNerd())
    assert "ClassLabels" in problem
    assert GroundedLabels().problems(MODEL) == []


def test_a_config_is_tried_with_its_encoder():
    config = load_config("pixeldit2:h16_256")
    config.model = small(PixelDiT2(num_classes=9))
    config.data = Data(image_size=16)
    config.terms = config.terms[:1]
    validate(config)
    with pytest.raises(WeightsError, match=r"model\.encoder\.weights"):
        load_frozen(config.model)
    config.model.channels = 1
    with pytest.raises(ConfigError, match="RGB"):
        validate(config)
