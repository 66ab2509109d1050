"""The kernels of Mosaic for GPUs: lowered for one that is not there."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pixelflow_jax.doctor.kernels import XL, operations, with_gradient
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.choice import Kernels

OPERATIONS = {op.name: op for op in operations(XL) if op.part == "blocks"}
LAUNCHED = {"adaln_residual"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_forward_and_gradient_lower_for_a_gpu_that_is_not_there(name, monkeypatch):
    """What has no such kernel is the compiler's."""
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    operation = OPERATIONS[name]
    run = functools.partial(operation.function, Kernels(blocks="mosaic"))
    inputs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in operation.shapes]
    outs = jax.tree.leaves(jax.eval_shape(run, *inputs))
    traced = jax.jit(with_gradient(run, len(outs))).trace(*inputs, *outs)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@mosaic_gpu") == (2 if name in LAUNCHED else 0)


def test_other_widths_are_refused(monkeypatch):
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    operation = operations(XL._replace(width=200, heads=5))[0]
    run = functools.partial(operation.function, Kernels(blocks="mosaic"))
    inputs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in operation.shapes]
    with pytest.raises(ValueError, match="widths in multiples of 128"):
        jax.eval_shape(run, *inputs)
