"""Class and grounding, dropped each by itself, together, or by guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.grounded import GroundedLabels
from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.loader import Data
from pixelflow_jax.errors import ConfigError, WeightsError
from pixelflow_jax.models.interface import load_frozen
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.validate import validate
from tests.models.small import small

MODEL = PixelDiT2(num_classes=9)
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
