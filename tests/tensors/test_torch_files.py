"""PyTorch's files: nothing but tensors comes out of a pickle, and all of them do."""

import argparse
import collections
import json
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from pixelflow_jax.convert import checkpoints as containers
from pixelflow_jax.tensors import reader
from tests.convert import checkpoints
from tests.convert.checkpoints import refused, run
from tests.convert.test_command import PIXELFLOW, PIXELGEN, PIXNERD, official

torch = pytest.importorskip("torch")


class Malicious:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_a_malicious_pickle_is_refused_and_not_executed(archive, tmp_path, capsys):
    bomb = tmp_path / "bomb"
    content = {"state_dict": {}, "callbacks": Malicious(bomb)}
    path = tmp_path / "evil.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    arguments = (
        ("from-torch", path, tmp_path / "out"),
        ("to-safetensors", path, tmp_path / "out.safetensors"),
        ("inspect", path),
    )
    for command in arguments:
        message = refused(capsys, *command)
        assert "nothing of it was executed" in message
        assert f"asks for {os.mkdir.__module__}.mkdir" in message
    assert sorted(os.listdir(tmp_path)) == ["evil.ckpt"]


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_a_truncated_file_is_refused(archive, tmp_path, capsys):
    path = tmp_path / "cut.pt"
    tensors = {k: checkpoints.as_tensor(torch, v) for k, v in official(PIXNERD).items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    for size in (len(whole) - 7, len(whole) // 2, 30, 0):
        path.write_bytes(whole[:size])
        message = refused(capsys, "from-torch", path, tmp_path / "out")
        assert "cut.pt" in message and "Download it again" in message
    assert os.listdir(tmp_path) == ["cut.pt"]


def test_torch_is_needed_to_write_and_not_to_read(tmp_path, capsys, monkeypatch):
    source = checkpoints.save(official(PIXNERD), tmp_path / "x.safetensors")
    run("from-torch", source, tmp_path / "ours", "--image-size=16")
    run("to-torch", tmp_path / "ours", tmp_path / "x.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    run("to-safetensors", tmp_path / "x.pt", tmp_path / "back.safetensors")
    checkpoints.identical(load_file(tmp_path / "back.safetensors"), official(PIXNERD))
    message = refused(capsys, "to-torch", tmp_path / "ours", tmp_path / "out.ckpt")
    assert "pip install 'pixelflow_jax[teachers]'" in message
    assert not (tmp_path / "out.ckpt").exists()


@pytest.fixture
def omegaconf(monkeypatch):
    """Stands for the package: classes of its names, which pickle their state."""
    modules = {
        "omegaconf": [],
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
        "omegaconf.nodes": ["AnyNode"],
    }
    made = {}
    for module, names in modules.items():
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        for name in names:
            made[name] = type(name, (), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    return types.SimpleNamespace(**made)


def test_settings_beside_the_tensors_are_inert(tmp_path, omegaconf):
    """Namespaces and configs are read, as far as they hold no tensors, and dropped."""
    node, config = omegaconf.AnyNode(), omegaconf.DictConfig()
    node.__dict__ |= {"_metadata": omegaconf.Metadata(), "_val": 3}
    counts = collections.defaultdict(int, a=1)
    config.__dict__ |= {"_content": {"seed": node}, "_counts": counts}
    args = argparse.Namespace(lr=1e-4, config=config, folder=tmp_path, names=["a"])
    theirs = official(PIXNERD)
    tensors = {k: checkpoints.as_tensor(torch, v) for k, v in theirs.items()}
    content = {"model": tensors, "ema": tensors, "opt": {"lr": 1.0}, "args": args}
    path = tmp_path / "training.pt"
    torch.save(content, path)
    found = containers.checkpoint(reader.opened(path))
    assert list(found.weights) == ["ema", "raw"] and not found.stray
    assert found.notes == (
        "opt: state of the optimizer",
        "args: settings of the training",
    )
    run("to-safetensors", path, tmp_path / "x.safetensors")
    checkpoints.identical(load_file(tmp_path / "x.safetensors"), theirs)


def test_types_strides_and_parameters_come_through(tmp_path):
    theirs = official(PIXNERD, ml_dtypes.bfloat16)
    tensors = {k: checkpoints.as_tensor(torch, v) for k, v in theirs.items()}
    key = "blocks.1.attn.qkv.weight"
    tensors[key] = tensors[key].t().contiguous().t()  # the same, column by column
    tensors["blocks.0.attn.proj.bias"] = torch.nn.Parameter(
        tensors["blocks.0.attn.proj.bias"]
    )
    torch.save(tensors, tmp_path / "half.pt")
    run("from-torch", tmp_path / "half.pt", tmp_path / "ours", "--image-size=16")
    run("to-torch", tmp_path / "ours", tmp_path / "back.pt")
    back = checkpoints.torch_load(torch, tmp_path / "back.pt")
    checkpoints.identical(back, theirs)


@pytest.mark.parametrize(
    ("layout", "model", "flags"),
    [
        ("jit", PIXELGEN, ["--set", "context_start=1"]),
        ("pixelflow", PIXELFLOW, ["--set", "heads=2"]),
        ("lightning", PIXNERD, []),
    ],
)
def test_official_programs_find_their_layout(layout, model, flags, tmp_path):
    """Whatever average they take, it is there, and stored once."""
    theirs = official(model)
    source = checkpoints.save(theirs, tmp_path / "x.safetensors")
    size = [] if layout == "jit" else ["--image-size=16"]
    run("from-torch", source, tmp_path / "ours", *flags, *size)
    out = tmp_path / "out.pth"
    run("to-torch", tmp_path / "ours", out, f"--layout={layout}")
    content = torch.load(out, weights_only=True)
    wanted = {
        "jit": [("model", "net."), ("model_ema1", "net."), ("model_ema2", "net.")],
        "pixelflow": [("model", ""), ("ema", "")],
        "lightning": [("state_dict", "denoiser."), ("state_dict", "ema_denoiser.")],
    }
    for group, prefix in wanted[layout]:
        for key, value in theirs.items():
            np.testing.assert_array_equal(content[group][prefix + key].numpy(), value)
    assert out.stat().st_size < 1.3 * source.stat().st_size
    run("from-torch", out, tmp_path / "again", *flags, *size)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["config"]["model"]["class"] == type(model).__name__
    names = [tmp_path / folder / "model.safetensors" for folder in ("ours", "again")]
    checkpoints.identical(*map(load_file, names))


def test_layouts_need_a_file_of_pytorchs(tmp_path, capsys):
    source = checkpoints.save(official(PIXNERD), tmp_path / "x.safetensors")
    run("from-torch", source, tmp_path / "ours", "--image-size=16")
    out = tmp_path / "out.safetensors"
    message = refused(capsys, "to-torch", tmp_path / "ours", out, "--layout=jit")
    assert "bare state dict" in message and not out.exists()
