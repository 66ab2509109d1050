"""Every recorded official model: through the converter and back, bit for bit.

The forward fixtures are also run, with the weights that were written to disk.
"""

import dataclasses
import json
import re

import jax
import pytest
from safetensors.numpy import load_file

from pixelflow_jax.convert import families
from pixelflow_jax.models.interface import Condition, DenoiserConfig, Inputs, network
from tests.convert import checkpoints
from tests.golden import harness

FORWARD = r"out/(?!given_s)[^/]+/output"
SKIP = pytest.mark.skip(reason="no reference arrays: see PIXELFLOW_GOLDEN_DIR")
CONTAINERS = {
    "lightning.ckpt": checkpoints.lightning,
    "bare.pt": checkpoints.bare,
    "training.pt": checkpoints.training,
    "jit.pth": checkpoints.jit,
}


def official_config(fixture: harness.Fixture) -> DenoiserConfig:
    """Our config from the official constructor's arguments."""
    kwargs, variant = fixture.config["model"], fixture.config.get("variant")
    if fixture.kind.startswith("deco"):
        return harness.deco_config(kwargs)
    if fixture.kind.startswith("pixelflow"):
        return harness.pixelflow_config(kwargs)
    if variant == "dit":
        return harness.pixnerd_config(kwargs, baseline=True)
    makers = {
        "c2i": harness.pixnerd_config,
        "t2i": harness.pixnerd_text_config,
        "t2i_heavy": harness.pixnerd_text_config,
        "jit": harness.pixelgen_config,
        "jit_t2i": harness.pixelgen_text_config,
    }
    return makers[variant](kwargs)


def models() -> list:
    """(fixture, group of parameters) for every official model that was recorded."""
    found = []
    for fixture in harness.fixtures():
        groups = sorted({key.split("/")[0] for key in fixture.tensors})
        for group in ("params", "params_guide"):
            if group in groups and fixture.kind.startswith(("pix", "deco_forward")):
                name = f"golden-{fixture.stem}-{group}"
                found.append(pytest.param(fixture, group, id=name))
    return found or [pytest.param(None, None, id="golden-absent", marks=SKIP)]


every_model = pytest.mark.parametrize(("fixture", "group"), models())


def assumed(model: DenoiserConfig) -> list[str]:
    """The flags that say what no tensor says."""
    tell = {
        "PixelFlow": ("heads", "feature_layer"),
        "PixelGen": ("context_start", "feature_layer", "dropout", "attention_dropout"),
    }
    names = tell.get(type(model).__name__, ("feature_layer",))
    return [x for name in names for x in ("--set", f"{name}={getattr(model, name)}")]


def converted(source, out, fixture, group) -> None:
    """Converts a file, and checks the config it was given."""
    model = official_config(fixture)
    flags = assumed(model)
    # Small enough for the tiny models' stages and patches.
    size = [] if hasattr(model, "image_size") else ["--image-size", 32]
    checkpoints.run("from-torch", source, out, *flags, *size)
    config, params = checkpoints.read(out)
    ours, theirs = families.fields(config.model), families.fields(model)
    for name in families.EXECUTION:
        ours.pop(name, None), theirs.pop(name, None)
    assert group != "params" or ours == theirs


@every_model
def test_safetensors_there_and_back(fixture, group, tmp_path):
    theirs = fixture.under(group)
    source = checkpoints.save(theirs, tmp_path / "official.safetensors")
    converted(source, tmp_path / "ours", fixture, group)
    computes_the_official_output(tmp_path / "ours", fixture)
    back = tmp_path / "back.safetensors"
    checkpoints.run("to-torch", tmp_path / "ours", back)
    checkpoints.identical(load_file(back), theirs)
    again = tmp_path / "again.safetensors"
    checkpoints.run("to-safetensors", source, again)
    checkpoints.identical(load_file(again), theirs)


def computes_the_official_output(folder, fixture: harness.Fixture) -> None:
    """Runs what was written, where the fixture holds a forward pass."""
    recorded = [key.split("/")[1] for key in fixture.tensors if re.match(FORWARD, key)]
    config, params = checkpoints.read(folder)
    for case in recorded if "scaling" in fixture.config else recorded[:1]:
        computes_a_case(config.model, params, fixture, case)


def computes_a_case(model: DenoiserConfig, params, fixture, case: str) -> None:
    if canvas := harness.canvas_of(fixture, case):
        model = dataclasses.replace(model, canvas=canvas)
    arrays = fixture.under("in")
    own = {k.removeprefix(f"{case}/"): v for k, v in arrays.items() if case in k}
    arrays = own or arrays
    t = arrays.get("t", arrays.get("timestep"))
    image, cond = harness.nhwc(arrays["x"]), condition(case, arrays)
    apply = jax.jit(network(model, harness.EXACT).apply)
    out = apply(params, (Inputs(image, t, cond),))
    theirs = fixture.under(f"out/{case}")["output"]
    harness.close(harness.nchw(out.pred[0]), theirs, case)


def condition(case: str, arrays: dict) -> Condition:
    for name in ("class_labels", "y"):
        if name in arrays:
            return harness.condition(arrays[name])
    mask = None if case == "nomask" else arrays["encoder_attention_mask"].astype(bool)
    return Condition(text=arrays["encoder_hidden_states"], mask=mask)


@every_model
@pytest.mark.parametrize("container", CONTAINERS)
def test_files_of_pytorch_there_and_back(container, fixture, group, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = fixture.under(group)
    source = tmp_path / container
    checkpoints.torch_save(torch, CONTAINERS[container](theirs), source)
    converted(source, tmp_path / "ours", fixture, group)
    checkpoints.run("to-torch", tmp_path / "ours", tmp_path / "back.pt")
    checkpoints.identical(checkpoints.torch_load(torch, tmp_path / "back.pt"), theirs)
    checkpoints.run("to-torch", tmp_path / "ours", tmp_path / "back.ckpt")
    whole = checkpoints.torch_load(torch, tmp_path / "back.ckpt")
    names = ("denoiser.", "ema_denoiser.")
    wanted = [checkpoints.prefixed(name, theirs) for name in names]
    checkpoints.identical(whole["state_dict"], wanted[0] | wanted[1])
    about = json.loads((tmp_path / "ours" / "config.json").read_text())
    step = 1234 if container == "lightning.ckpt" else 0
    assert about["step"] == step and whole["global_step"] == step
    assert about["origin"].startswith(container)
    checkpoints.run("to-safetensors", source, tmp_path / "safe.safetensors")
    checkpoints.identical(load_file(tmp_path / "safe.safetensors"), theirs)
