"""Every program lowers for a TPU, and plainly for a GPU, on a machine with neither.

Real configs at their real width in bfloat16, of a few blocks; nothing is allocated,
compiled or run.
"""

import dataclasses
import functools
import itertools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pixelflow, pixelgen, pixelgen_t2i, pixnerd, pixnerd_t2i
from pixelflow_jax import build, sharding
from pixelflow_jax.config_io import walk
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.losses.context import term_name
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.batches import Weights
from pixelflow_jax.training.step import abstract_state, make_step
from tests.marks import long

BATCH = 8
# Custom calls that a TPU knows: what the partitioner reads, and Mosaic's own kernels.
CALLS = {
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "annotate_device_placement",
    "tpu_custom_call",
}
CALL = re.compile(r'(?:custom_call\s+@|call_target_name = )"?([\w.$]+)')
TALK = re.compile(r"stablehlo\.(infeed|outfeed|send|recv)\b")  # with the host

FAMILIES = {
    "pixnerd": (pixnerd.get_config, "xl16_256", {"depth": 2, "feature_layer": 1}),
    "pixelgen": (
        *(pixelgen.get_config, "xl_256"),
        {"depth": 4, "feature_layer": 1, "context_start": 2},
    ),
    "pixelflow": (pixelflow.get_config, "xl4_256", {"depth": 2, "feature_layer": 1}),
    "pixnerd_text": (
        *(pixnerd_t2i.get_config, "pretrain_256"),
        {"depth": 2, "feature_layer": 1, "text_depth": 1},
    ),
    "pixelgen_text": (
        *(pixelgen_t2i.get_config, "pretrain_256"),
        {"depth": 2, "feature_layer": 1, "text_depth": 1},
    ),
}
MESHES = {
    "one": (1, sharding.MeshShape()),
    "eight": (8, sharding.MeshShape(fsdp=2, tensor=2)),
}


def foreign(module: str) -> list[str]:
    """What a program asks for that a TPU lacks: other machines' calls, and the host."""
    return sorted(set(CALL.findall(module)) - CALLS | set(TALK.findall(module)))


def shallow(family: str) -> Experiment:
    """The family's published config with a few blocks, all loops scanned."""
    get_config, variant, small = FAMILIES[family]
    config = get_config(variant)
    config.model = dataclasses.replace(config.model, **small)
    for _, node in walk(config):
        if isinstance(node, StackConfig):
            node.scan = True
    assert config.precision.compute == "bfloat16"
    return config


def on(layout: jax.sharding.Sharding, shapes: object) -> object:
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=layout)
    return jax.tree.map(place, shapes)


def traced_step(config: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
    objective, settings = build.objective(config), build.step_settings(config)
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((BATCH, size, size, 3), np.float32)
    batch = {"image": image, **config.conditioner.example(BATCH)}
    frozen_params = objective.frozen_shapes()
    inputs = (
        abstract_state(objective, settings, mesh),
        on(sharding.batch_sharding(mesh), batch),
        jax.tree.map(on, sharding.state_sharding(frozen_params, mesh), frozen_params),
    )
    with jax.set_mesh(mesh):
        step = make_step(objective, settings)
        return jax.jit(step, donate_argnums=0).trace(*inputs)


def traced_sampler(config: Experiment, mesh: jax.sharding.Mesh) -> jax.stages.Traced:
    size = config.data.image_size
    program = functools.partial(build.generator(config, size, size).trace, record=False)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    params, frozen_params = build.network(config).shapes(), config.conditioner.shapes()
    inputs = (
        on(whole, Weights(params, frozen_params)),
        on(split, jax.ShapeDtypeStruct((BATCH,), np.uint32)),
        on(split, config.conditioner.example(BATCH)),
        on(whole, jax.ShapeDtypeStruct((), np.uint32)),
    )
    with jax.set_mesh(mesh):
        return jax.jit(program).trace(*inputs)


PROGRAMS = {"step": traced_step, "sampler": traced_sampler}


def lowered(traced: jax.stages.Traced, platform: str) -> str:
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("family", "program", "mesh"),
    [
        *itertools.product(FAMILIES, PROGRAMS, ["eight"]),
        *(long("pixnerd", program, "one") for program in PROGRAMS),
    ],
)
def test_it_lowers_for_a_tpu_and_plainly_for_a_gpu(family, program, mesh):
    """Fused kernels are chosen where a GPU is: none is here, so none appears."""
    count, shape = MESHES[mesh]
    traced = PROGRAMS[program](shallow(family), shape.build(jax.devices()[:count]))
    for platform in ("tpu", "cuda"):
        module = lowered(traced, platform)
        assert foreign(module) == [], platform
        assert "xbf16>" in module and "xf64>" not in module
    assert f"mhlo.num_partitions = {count} " in module


def test_long_sequences_attend_by_a_kernel_of_tpus(monkeypatch):
    """PixelFlow's last stage, 4,096 tokens, where images and heads are divided."""
    monkeypatch.setattr(backends, "platform", lambda: "tpu")
    config = shallow("pixelflow")
    config.kernels = Kernels(blocks="xla", field="xla")
    mesh = sharding.MeshShape(fsdp=2, tensor=4).build(jax.devices()[:8])
    traced = traced_step(config, mesh)
    module = lowered(traced, "tpu")
    assert foreign(module) == []
    kernels = re.findall(r'kernel_name = "(\w+)"', module)
    assert set(kernels) == {"splash_mha_fwd_residuals", "splash_mha_dkv_no_residuals"}
    with pytest.raises(REFUSALS):
        lowered(traced, "cuda")


def test_pixelgen_lowers_with_all_of_its_loss():
    """The step above looks through both teachers, and its weights are balanced."""
    config = shallow("pixelgen")
    names = [term_name(term) for term in config.terms]
    assert names == ["FlowMatching", "Repa", "Lpips", "PDino"]
    assert config.adaptive_weight is not None
    assert set(build.objective(config).frozen_shapes()) == {"dino", "lpips"}


def test_an_exported_step_is_for_tpus_and_has_no_effects():
    """`jax.export` refuses custom calls without guarantees, of its own accord."""
    config = shallow("pixnerd")
    config.terms = [FlowMatching()]
    mesh = sharding.MeshShape().build(jax.devices()[:1])
    objective, settings = build.objective(config), build.step_settings(config)
    image = jax.ShapeDtypeStruct((BATCH, 256, 256, 3), np.float32)
    batch = {"image": image, **config.conditioner.example(BATCH)}
    step = jax.jit(make_step(objective, settings))
    export = jax.export.export(step, platforms=["tpu"])
    exported = export(abstract_state(objective, settings, mesh), batch, {})
    assert exported.platforms == ("tpu",)
    assert not exported.ordered_effects and not exported.unordered_effects
    assert foreign(exported.mlir_module()) == []


# What must not pass: the checker is worth what it catches.

# Where Pallas refuses by itself: what it raises differs between versions of jax.
REFUSALS = (AssertionError, RuntimeError, ValueError)
HALF = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)


@pytest.mark.parametrize(
    "target",
    ["__cudnn$fmhaSoftmax", "__gpu$xla.gpu.triton", "__cublas$gemm", "lapack_sgeev"],
)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_call_of_another_machine_is_found(target, platform):
    call = jax.ffi.ffi_call(target, HALF)
    assert foreign(lowered(jax.jit(call).trace(HALF), platform)) == [target]


def test_a_call_in_generic_form_is_found():
    module = '"stablehlo.custom_call"(%0) <{call_target_name = "__cudnn$norm"}>'
    assert foreign(module) == ["__cudnn$norm"]


def test_talk_with_the_host_is_found():
    assert foreign('%1 = "stablehlo.send"(%0, %token)') == ["send"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_host_callback_does_not_lower(platform):
    call = lambda q: jax.pure_callback(lambda a: a, HALF, q)
    with pytest.raises(ValueError, match="platform"):
        lowered(jax.jit(call).trace(HALF), platform)


def test_cudnn_attention_does_not_lower():
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    with pytest.raises(RuntimeError, match="cuDNN|dot_product_attention"):
        lowered(jax.jit(attend).trace(HALF, HALF, HALF), "tpu")


@pytest.mark.skipif("PIXELFLOW_WITHOUT_TRITON" in os.environ, reason="wants Triton")
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_step_with_the_fused_field_does_not_pass(platform, monkeypatch):
    """The package's own GPU kernel, chosen as it would be on a machine with a GPU."""
    monkeypatch.setattr(backends, "platform", lambda: "gpu")
    config = shallow("pixnerd")
    config.terms = [FlowMatching()]
    config.kernels = Kernels(attention="xla")
    mesh = sharding.MeshShape().build(jax.devices()[:1])
    traced = traced_step(config, mesh)
    assert "pallas_call" in str(traced.jaxpr)
    try:
        module = lowered(traced, platform)
    except REFUSALS as refusal:
        assert platform == "tpu" or "GPU" in str(refusal)
    else:
        assert foreign(module) == ["__gpu$xla.gpu.triton"]


def test_a_step_lowers_with_the_package_s_own_tpu_kernels(monkeypatch):
    """All that "auto" takes on a TPU: norms, heads and the neural field."""
    monkeypatch.setattr(backends, "platform", lambda: "tpu")
    config = shallow("pixnerd")
    config.terms = [FlowMatching()]
    mesh = sharding.MeshShape().build(jax.devices()[:1])
    module = lowered(traced_step(config, mesh), "tpu")
    assert foreign(module) == []
    for name in ("adaln_residual", "qkv_norm_rope", "neural_field"):
        assert f"{name}_forward_kernel" in module, name
        assert f"{name}_backward_kernel" in module, name
