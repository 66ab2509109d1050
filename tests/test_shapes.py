"""What `shapes.install` checks while all tests run."""

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.nn import patch


def test_an_array_of_another_shape_than_promised_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        patch.patchify(jnp.zeros((4, 4, 3)), 2)
    with pytest.raises(jaxtyping.TypeCheckError, match="image"):
        jax.jit(patch.nearest, static_argnums=(1, 2))(jnp.zeros((4, 4, 3)), 2, 2)


def test_a_result_of_another_shape_than_promised_is_refused(monkeypatch):
    monkeypatch.setattr(Uniform, "transform", lambda self, draw: draw[1:])
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        Uniform()(jax.random.key(0), 3)
