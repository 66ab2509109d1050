"""Official checkpoints in every container, and what the converter makes of them."""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from pixelflow_jax.convert.__main__ import main
from pixelflow_jax.experiment import Experiment

Tensors = dict[str, np.ndarray]


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def other(tensors: Tensors) -> Tensors:
    """The same names with other values: what must not be taken."""
    return {key: value + np.ones_like(value) for key, value in tensors.items()}


def bare(tensors: Tensors) -> dict:
    return tensors


def lightning(tensors: Tensors) -> dict:
    """A training checkpoint of PixNerd or PixelGen; the average is what counts."""
    projector = {
        f"diffusion_trainer.proj.0.{i}.weight": np.ones((2, 2)) for i in (0, 2)
    }
    state = prefixed("denoiser.", other(tensors)) | prefixed("ema_denoiser.", tensors)
    return {
        "state_dict": state | projector,
        "global_step": 1234,
        "optimizer_states": [{"state": {0: {"exp_avg": np.zeros(3)}}}],
        "pytorch-lightning_version": "2.5.0",
    }


def training(tensors: Tensors) -> dict:
    """A training checkpoint of PixelFlow."""
    args = argparse.Namespace(output="somewhere", seed=3)
    return {"model": other(tensors), "ema": tensors, "opt": {"state": {}}, "args": args}


def jit(tensors: Tensors) -> dict:
    """A training checkpoint of JiT; its program samples with the first average."""
    named = prefixed("net.", other(tensors))
    first = prefixed("net.", tensors)
    args = argparse.Namespace(model="JiT-B/16", noise_scale=1.0)
    averages = {"model_ema1": first, "model_ema2": named}
    return {"model": named, "optimizer": {}, "epoch": 7, "args": args} | averages


def torch_save(torch, content: object, path: pathlib.Path) -> None:
    """torch.save of nested dicts of arrays."""

    def build(node: object) -> object:
        if isinstance(node, dict):
            return {key: build(value) for key, value in node.items()}
        if isinstance(node, list):
            return [build(value) for value in node]
        return as_tensor(torch, node) if isinstance(node, np.ndarray) else node

    torch.save(build(content), path)


def as_tensor(torch, array: np.ndarray):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def torch_load(torch, path: pathlib.Path) -> dict:
    """The tensors of a file of PyTorch's as arrays, read independently of ours."""

    def build(node: object) -> object:
        if isinstance(node, dict):
            return {key: build(value) for key, value in node.items()}
        if not isinstance(node, torch.Tensor):
            return node
        half = node.dtype == torch.bfloat16
        return (
            node.view(torch.int16).numpy().view(jnp.bfloat16) if half else node.numpy()
        )

    return build(torch.load(path, weights_only=True))


def run(*arguments: object) -> None:
    """A command that succeeds."""
    assert main([str(argument) for argument in arguments]) == 0


def refused(capsys, *arguments: object) -> str:
    """The message of a command that fails: one paragraph, no traceback."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def read(folder: pathlib.Path) -> tuple[Experiment, dict]:
    """The config and the parameters, float32, of a folder that was written."""
    about = json.loads((folder / "config.json").read_text())
    assert (about["format"], about["version"]) == ("pixelflow_jax", 2)
    config = Experiment.from_dict(about["config"])
    flat = load_file(folder / "model.safetensors")
    params = traverse_util.unflatten_dict(flat, sep="/")
    return config, jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


def identical(found: Tensors, wanted: Tensors) -> None:
    """Same names, types, shapes and bits."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def save(tensors: Tensors, path: pathlib.Path) -> pathlib.Path:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path
