"""Eight devices compute what one computes, and share the state out among them."""

import jax
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.step import abstract_state, make_step
from tests.jaxprs import equations
from tests.training import tiny

STEPS = 20
# Each mesh, the share of the state on one device, and the shapes that two parameters
# have there: the MLP's [1, 32, 85] and the attention's output matrix [1, 32, 32].
MESHES = {
    "data8": (MeshShape(data=8), 1, (1, 32, 85), (1, 32, 32)),
    "data2_fsdp4": (MeshShape(data=2, fsdp=4), 1 / 4, (1, 8, 85), (1, 8, 32)),
    "data2_fsdp2_tensor2": (
        MeshShape(data=2, fsdp=2, tensor=2),
        0.467,
        (1, 16, 85),
        (1, 16, 16),
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_device(images, tmp_path_factory):
    return trained(images, tmp_path_factory.mktemp("one"))


def trained(images, workdir, **layout):
    """State and losses after some steps."""
    optimizer = AdamW(lr=1e-3, warmup=2, clip=0.1, weight_decay=0.01)
    run = tiny.run(images, steps=STEPS, optimizer=optimizer, **layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpointer, "save", lambda *args: None)
        return train(run, workdir), tiny.history(workdir)


def on_first_device(tree) -> int:
    """Bytes of a pytree that lie on one device."""
    first = jax.devices()[0]
    shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards if shard.device == first)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_equal_one(images, one_device, tmp_path, name):
    mesh, share, mlp, attention = MESHES[name]
    one, losses = one_device
    many, their_losses = trained(images, tmp_path, devices=8, mesh=mesh)
    for line, other in zip(losses, their_losses, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, one, many)

    for part in ("params", "opt_state", "ema"):
        here = on_first_device(getattr(many, part))
        assert here / on_first_device(getattr(one, part)) == pytest.approx(share, 0.06)
    for tree in (many.params["denoiser"], many.ema["0.9"]):
        blocks = tree["late"]["blocks"]
        kernels = blocks["mlp"]["up"]["kernel"], blocks["attention"]["out"]["kernel"]
        for kernel, shape in zip(kernels, (mlp, attention), strict=True):
            assert {s.data.shape for s in kernel.addressable_shards} == {shape}


@pytest.mark.parametrize(
    ("dtype", "other"), [("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_gradients_of_matrices_are_summed_in_the_type_that_is_asked(
    images, dtype, other
):
    """What a product gives is what the compiler sums over devices."""
    config = tiny.experiment(
        images, precision=Precision(), mesh=MeshShape(reduce_dtype=dtype)
    )
    objective, settings = build.objective(config), build.step_settings(config)
    state = abstract_state(objective, settings, config.mesh.build())
    with build.open_data(config, 0) as loader:
        batch = next(loader)
    step = jax.make_jaxpr(make_step(objective, settings))(state, batch, {})
    kernels = {
        leaf.shape[-2:]
        for path, leaf in jax.tree.leaves_with_path(state.params["denoiser"])
        if path[-1].key == "kernel"
    }
    # A matrix's gradient may be computed as its transpose.
    kernels |= {shape[::-1] for shape in kernels}
    products = [
        equation.outvars[0].aval
        for equation, _ in equations(step)
        if equation.primitive.name == "dot_general"
    ]
    types = [str(a.dtype) for a in products if a.shape in kernels]
    # Of two small matrices outside of the policy, times and classes, in float32.
    assert types.count(dtype) >= len(kernels) // 2
    assert dtype == "bfloat16" or other not in types
