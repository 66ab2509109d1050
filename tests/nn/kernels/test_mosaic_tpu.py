"""The kernels for TPUs: in half precision, refused sizes, and lowered for a TPU."""

import functools

import jax
import jax.numpy as jnp
import pytest

from pixelflow_jax.doctor import kernels
from pixelflow_jax.doctor.kernels import Sizes, deviations, operations, with_gradient
from pixelflow_jax.nn.kernels.choice import Kernels

MOSAIC = Kernels(blocks="mosaic", field="mosaic", attention="xla")
# Sizes that the kernels know: three tiles of 16 tokens, heads of 16.
SMALL = Sizes(2, 48, 128, 8, 128, 128, (16, 128))
OPERATIONS = {op.name: op for op in operations(SMALL) if op.part != "attention"}
LAUNCHED = {name: op for name, op in OPERATIONS.items() if "activate" not in name}
CHIP = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")


@pytest.mark.parametrize("name", LAUNCHED)
def test_half_precision_is_as_near_the_formula_as_rounding_lets_it(name):
    worst = max(deviations(LAUNCHED[name], MOSAIC, "bfloat16"))
    assert worst < kernels.TOLERANCES["bfloat16"] / 2


@pytest.mark.parametrize("name", OPERATIONS)
def test_forward_and_gradient_lower_for_a_tpu_that_is_not_there(name):
    """As "auto" chooses: the activation is the compiler's, fused into products."""
    operation = OPERATIONS[name]
    run = functools.partial(operation.function, Kernels())
    inputs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in operation.shapes]
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=CHIP)
    with jax.sharding.use_abstract_mesh(mesh):
        outs = jax.tree.leaves(jax.eval_shape(run, *inputs))
        program = jax.jit(with_gradient(run, len(outs)))
        text = (
            program.trace(*inputs, *outs).lower(lowering_platforms=("tpu",)).as_text()
        )
    assert text.count("tpu_custom_call") == (2 if name in LAUNCHED else 0)


@pytest.mark.parametrize(
    ("name", "sizes", "needs"),
    [
        ("adaln_residual", SMALL._replace(width=136), "widths in multiples of 128"),
        ("qkv_norm_rope", SMALL._replace(heads=1, width=160), "head widths"),
        ("neural_field", SMALL._replace(pixels=64), "pixels a patch"),
    ],
)
def test_other_sizes_are_refused(name, sizes, needs):
    operation = next(op for op in operations(sizes) if op.name == name)
    run = functools.partial(operation.function, MOSAIC)
    inputs = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in operation.shapes]
    with pytest.raises(ValueError, match=f'"mosaic" needs .*{needs}'):
        jax.eval_shape(run, *inputs)
