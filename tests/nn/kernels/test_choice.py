"""Who computes an operation: said once for a program, kept by its gradients."""

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.models.interface import Condition, Inputs, network
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.kernels.backends import is_interpreted, platform
from pixelflow_jax.nn.kernels.choice import (
    Kernels,
    Version,
    choose,
    chosen,
    kernel_backend,
)
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from tests.marks import long

HALF, EXACT = jnp.dtype("bfloat16"), jnp.dtype("float32")
# The kernels know its sizes: 64 tokens, heads of 24, an MLP of 256, patches of 64.
MODEL = PixNerd(
    num_classes=2,
    patch=8,
    width=96,
    heads=4,
    depth=2,
    feature_layer=1,
    decoder=NeuralField(width=16, ratio=1, depth=1),
)
SIDE = 64


# The kernels of an operation that has one for each backend.
ALL = {name: Version(True, "sizes") for name in ("triton", "mosaic_gpu", "mosaic_tpu")}
WITHOUT_TRITON = "PIXELFLOW_WITHOUT_TRITON" in os.environ


@pytest.mark.parametrize(
    ("choice", "platform", "dtype", "backend"),
    [
        ("auto", "gpu", HALF, None if WITHOUT_TRITON else "triton"),
        ("auto", "gpu", EXACT, None),
        ("auto", "cpu", HALF, None),
        ("auto", "tpu", HALF, "mosaic_tpu"),
        ("auto", "tpu", EXACT, None),
        ("pallas", "cpu", EXACT, "triton"),
        ("pallas", "tpu", EXACT, "mosaic_tpu"),
        ("mosaic", "gpu", EXACT, "mosaic_gpu"),
        ("mosaic", "tpu", HALF, "mosaic_tpu"),
        ("mosaic", "cpu", HALF, "mosaic_tpu"),
        ("xla", "gpu", HALF, None),
    ],
)
def test_who_runs_the_kernel_of_an_operation(
    choice, platform, dtype, backend, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    for part, other in (("blocks", "field"), ("field", "blocks")):
        with choose(Kernels(**{part: choice, other: "auto"})):
            assert kernel_backend(part, ALL, dtype) == backend
            others = {name: v for name, v in ALL.items() if name != backend}
            assert kernel_backend(part, others, dtype) is None


def test_auto_leaves_sizes_that_no_kernel_knows_to_the_compiler(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    other = {"mosaic_tpu": Version(False, "other sizes")}
    assert kernel_backend("blocks", other, HALF) is None


def test_the_mesh_in_use_says_what_a_program_runs_on():
    """Its devices need not be there: programs are compiled ahead of time."""
    chip = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=chip)
    assert platform() == "cpu" and is_interpreted()
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform() == "tpu" and not is_interpreted()
        assert kernel_backend("blocks", ALL, HALF) == "mosaic_tpu"
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        assert platform() == "cpu"


def test_choices_nest_and_end():
    assert chosen() == Kernels()
    with choose(Kernels(blocks="xla")):
        with choose(Kernels(field="xla")):
            assert chosen() == Kernels(field="xla")
        assert chosen() == Kernels(blocks="xla")
    assert chosen() == Kernels()
    with pytest.raises(RuntimeError), choose(Kernels(blocks="xla")):
        raise RuntimeError
    assert chosen() == Kernels()


def test_a_choice_is_its_thread_s_own():
    seen = []
    with choose(Kernels(blocks="xla")):
        thread = threading.Thread(target=lambda: seen.append(chosen()))
        thread.start()
        thread.join()
    assert seen == [Kernels()]


def test_unknown_words_and_sizes_are_refused():
    with pytest.raises(ValueError, match="kernels.field must be one of.*'triton'"):
        Kernels(field="triton").check()
    with (
        pytest.raises(ValueError, match="kernels.attention"),
        choose(Kernels(attention="pallas")),
    ):
        pass
    with (
        choose(Kernels(blocks="pallas")),
        pytest.raises(
            ValueError, match='kernels.blocks="pallas" needs even sizes, not 3'
        ),
    ):
        kernel_backend("blocks", {"triton": Version(False, "even sizes, not 3")}, HALF)


def kernel_names(traced: jax.stages.Traced) -> set[str]:
    """The names of all kernels of a program, forward and backward."""
    names = "adaln_residual qkv_norm_rope activate_and_project neural_field".split()
    text = str(traced.jaxpr)
    both = (f"{name}_{way}_kernel" for name in names for way in ("forward", "backward"))
    return {name for name in both if name in text}


def gradient(kernels: Kernels, inner: bool, remat: str, scan: bool):
    """The loss's gradient, traced outside of what enters the choice, and its arguments.

    `inner`: the network is jitted by itself, so that its rules of differentiation are
    traced when the choice is over.
    """
    stack = StackConfig(remat=remat, scan=scan)
    field = dataclasses.replace(MODEL.decoder, stack=stack)
    model = dataclasses.replace(MODEL, stack=stack, decoder=field)
    net = network(model, Precision(compute="float32"), kernels)
    apply = jax.jit(net.apply) if inner else net.apply

    def loss(params: dict, batch: tuple) -> jax.Array:
        return jnp.sum(apply(params, batch).pred[0] ** 2)

    image = jnp.asarray(np.random.default_rng(0).standard_normal((2, SIDE, SIDE, 3)))
    cond = Condition(labels=jnp.array([0, 1]))
    batch = (Inputs(image.astype(jnp.float32), jnp.array([0.3, 0.6]), cond),)
    return jax.jit(jax.grad(loss)), net, batch


BLOCKS = {
    f"{name}_{way}_kernel"
    for name in ("adaln_residual", "qkv_norm_rope", "activate_and_project")
    for way in ("forward", "backward")
}
FIELD = {"neural_field_forward_kernel", "neural_field_backward_kernel"}


@pytest.mark.parametrize(
    ("inner", "remat", "scan"),  # the network traced in one, or jitted apart
    [
        *((False, "names", True), (True, "none", False)),
        *(long(True, "names", True), long(False, "none", False)),
        *(long(inner, "full", True) for inner in (False, True)),
        *(long(inner, "mlp", False) for inner in (False, True)),
    ],
)
def test_gradients_are_computed_as_the_network_was(inner, remat, scan):
    others = Kernels(blocks="pallas", field="pallas")
    for kernels, names in (
        (Kernels(blocks="pallas", field="xla"), BLOCKS),
        (Kernels(blocks="xla", field="pallas"), FIELD),
        (Kernels(), set()),
    ):
        program, net, batch = gradient(kernels, inner, remat, scan)
        with choose(others):
            assert kernel_names(program.trace(net.shapes(), batch)) == names


def run(program: str) -> subprocess.CompletedProcess:
    """A process of its own, in which jax lacks Pallas' Triton backend."""
    lacking = 'import sys; sys.modules["jax.experimental.pallas.triton"] = None\n'
    command = [sys.executable, "-c", lacking + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_without_pallas_everything_is_the_compiler_s_and_says_so_once():
    done = run("""
        import jax
        import jax.numpy as jnp
        from pixelflow_jax.nn.kernels.adaln_residual import AdaLN, adaln_residual
        from pixelflow_jax.nn.kernels.choice import Kernels, choose
        from pixelflow_jax.nn.packing import Packing

        x, adaln = jnp.ones((2, 16, 16), jnp.bfloat16), AdaLN(None, 0, 1)
        call = lambda: adaln_residual(
            x, (jnp.ones((2, 32)),), Packing((2,), (16,)), None, adaln
        )
        jax.default_backend = lambda: "gpu"
        assert call()[1].shape == call()[1].shape == x.shape
        try:
            with choose(Kernels(blocks="pallas")):
                call()
        except ValueError as error:
            print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lacks Pallas' Triton backend") == 1
    assert len(done.stderr.splitlines()) == 1
    assert 'kernels.blocks="pallas" cannot be had: jax' in done.stdout
    assert 'set it to "auto"' in done.stdout


def test_a_network_trains_on_a_gpu_whose_jax_lacks_the_kernels_backend():
    """Its operations are chosen as they would be there, in half precision."""
    done = run("""
        import jax
        import jax.numpy as jnp
        import optax
        from pixelflow_jax.models.interface import Condition, Inputs, network
        from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
        from pixelflow_jax.nn.kernels import choice
        from pixelflow_jax.nn.kernels.choice import Kernels
        from pixelflow_jax.nn.precision import Precision

        # Sizes that the kernels know.
        model = PixNerd(
            num_classes=2, patch=8, width=96, heads=4, depth=2, feature_layer=1,
            decoder=NeuralField(width=16, ratio=1, depth=1),
        )
        jax.default_backend = lambda: "gpu"
        net = network(model, Precision(), Kernels(attention="xla"))
        cond = Condition(labels=jnp.array([0, 1]))
        image = jnp.ones((2, 64, 64, 3))
        batch = (Inputs(image, jnp.array([0.3, 0.6]), cond),)
        loss = lambda p: jnp.mean((net.apply(p, batch).pred[0] - image) ** 2)

        @jax.jit
        def step(params):
            value, gradient = jax.value_and_grad(loss)(params)
            return value, optax.apply_updates(
                params, jax.tree.map(lambda g: -0.1 * g, gradient)
            )

        params, values = net.init(jax.random.key(0)), []
        for _ in range(3):
            value, params = step(params)
            values.append(float(value))
        assert values[2] < values[1] < values[0], values
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lacks Pallas' Triton backend") == 1


def test_importing_the_models_leaves_pallas_alone():
    """All else runs with a jax that has no Triton backend, and starts faster."""
    done = run("""
        del sys.modules["jax.experimental.pallas.triton"]
        import importlib, pkgutil
        import pixelflow_jax
        prefix, pallas = "pixelflow_jax.", "jax.experimental.pallas"
        for module in pkgutil.walk_packages(pixelflow_jax.__path__, prefix):
            if module.name.startswith((prefix + "nn", prefix + "models")):
                importlib.import_module(module.name)
        assert "pixelflow_jax.nn.kernels.neural_field" in sys.modules
        print([name for name in sys.modules if name.startswith(pallas)])
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
