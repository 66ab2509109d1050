"""Convolutions channel by channel: on CPUs the same as XLA's, and not XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.teachers import depthwise as module
from pixelflow_jax.teachers.depthwise import depthwise


def on_a_gpu(*args):
    """The form that other backends compute, on this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "platform", lambda: "gpu")
        return depthwise(*args)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_both_forms_are_one_convolution(size, stride, padding):
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 11, 8, 3)).astype(np.float32)
    kernel = draw.standard_normal((size, size, 1, 3)).astype(np.float32)

    def both(form, x, kernel):
        """The result, and its gradients in a direction that weighs places unlike."""
        out, pull = jax.vjp(lambda *at: form(*at, stride, padding), x, kernel)
        return out, *pull(jnp.cos(jnp.arange(out.size)).reshape(out.shape))

    ours, theirs = (
        jax.jit(both, static_argnums=0)(form, x, kernel)
        for form in (depthwise, on_a_gpu)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6 * np.abs(other).max())


def test_bfloat16_is_added_up_in_float32():
    """Of 25 terms of one 256th none is lost beside a sum of 1."""
    kernel = jnp.full((5, 5, 1, 1), 2.0**-8, jnp.bfloat16).at[0, 0].set(1)
    total = depthwise(jnp.ones((1, 5, 5, 1)), kernel, 1, "VALID")
    assert total.dtype == jnp.bfloat16
    assert total.item() == 1 + 24 / 256


def test_cpus_have_no_grouped_convolution():
    x, kernel = np.zeros((1, 8, 8, 4), np.float32), np.zeros((3, 3, 1, 4), np.float32)
    program = jax.jit(depthwise, static_argnums=(2, 3))
    assert "convolution" not in program.lower(x, kernel, 1, "SAME").as_text()
