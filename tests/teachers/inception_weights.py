"""Weights of the 2015 Inception made by a formula, and the recordings' content."""

import functools
import json
import pathlib
import zlib

import numpy as np
from safetensors import safe_open

from pixelflow_jax.teachers.inception_table import table
from pixelflow_jax.tensors import mapping


@functools.cache
def tensors(salt: str = "") -> dict[str, np.ndarray]:
    """Every tensor by its official name, as the recordings' rule makes it."""
    return {
        key: _tensor(salt + key, key, row.shape)
        for row in table()
        for key in row.keys()
    }


def _tensor(seed: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.RandomState(zlib.crc32(seed.encode()))
    n = draw.standard_normal(shape).astype(np.float32)
    f = np.float32
    if key.endswith("conv.weight"):
        return n * f(np.sqrt(2 / np.prod(shape[1:])))
    if key == "fc.weight":
        return n * f(1 / np.sqrt(2048))
    if key == "fc.bias":
        return f(0.5) * n
    if key.endswith("bn.weight"):
        return 1 + f(0.1) * n
    if key.endswith("running_var"):
        return 1 + f(0.2) * np.abs(n)
    return f(0.1) * n


@functools.cache
def parameters(salt: str = "") -> dict:
    """The same as our parameters."""
    return mapping.load(table(), tensors(salt))


class Recording:
    """A reference file: its arrays by name, and what its metadata say."""

    def __init__(self, path: pathlib.Path):
        self._file = safe_open(path, "np")
        self.config = json.loads(self._file.metadata()["meta"])["config"]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def names(self) -> list[str]:
        return list(self._file.keys())

    def scalar(self, name: str) -> float:
        return float(self[f"out/scalar/{name}"][0])
