"""Safetensors: written part by part, read as asked for, whole or not at all."""

import errno
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors.lazy import DTYPES, LazyTensor


def arrays() -> dict[str, np.ndarray]:
    """One array of every type; odd sizes, an empty one, one without axes."""
    draw = np.random.default_rng(0).integers
    found = {name: draw(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    return found | {"empty": np.zeros((0, 4), np.float32), "one": np.float32(7)}


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    path, told = tmp_path / "x.safetensors", []
    stored = {name: LazyTensor.of(array) for name, array in arrays().items()}
    safe.write(path, stored, {"origin": "here"}, told.append)
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(stored)
        # Its numpy side has no eight-bit floats.
        names = [name for name in stored if not name.startswith("F8")]
        found = {name: file.get_tensor(name) for name in names}
    for name in names:
        array = arrays()[name]
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    assert safe.metadata(path) == {"origin": "here"}
    assert sum(told) == sum(tensor.nbytes for tensor in stored.values())
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_every_tensor_is_aligned_to_its_items(tmp_path):
    path = tmp_path / "x.safetensors"
    safe.write(path, {k: LazyTensor.of(a) for k, a in arrays().items()}, {})
    with safe_open(path, "np") as file:
        assert set(file.keys()) == set(arrays())
    raw = path.read_bytes()
    for name, array in arrays().items():
        if array.size and array.dtype.itemsize > 1:
            starts = range(0, len(raw), array.dtype.itemsize)
            size = array.nbytes
            assert any(raw[i : i + size] == array.tobytes() for i in starts), name


def test_what_safetensors_writes_is_read_whole_and_in_parts(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({k: np.asarray(a) for k, a in arrays().items()}, path)
    found = safe.opened(path)
    for name, array in arrays().items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name].read(), array)
        for i in range(len(array) if array.ndim else 0):
            np.testing.assert_array_equal(found[name].fetch(i), array[i])


def test_parts_are_fetched_one_after_the_other(tmp_path):
    """No more than one part is alive at a time: each is dropped before the next."""
    alive, most = [], []

    class Part(np.ndarray):
        def __del__(self):
            alive.pop()

    def fetch(i):
        alive.append(i)
        most.append(len(alive))
        return np.full((2, 3), i, np.float32).view(Part)

    stacked = LazyTensor((4, 2, 3), np.dtype(np.float32), fetch, stacked=True)
    safe.write(tmp_path / "x.safetensors", {"a": stacked}, {})
    assert len(most) == 4
    found = load_file(tmp_path / "x.safetensors")["a"]
    np.testing.assert_array_equal(found[:, 0, 0], range(4))


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(i):
        raise RuntimeError("no values")

    stored = {
        "a": LazyTensor.of(np.ones(3)),
        "b": LazyTensor((2,), np.dtype(np.float32), fail),
    }
    with pytest.raises(RuntimeError, match="no values"):
        safe.write(tmp_path / "x.safetensors", stored, {})
    assert not list(tmp_path.iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(safe.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError) as raised:
        safe.write(tmp_path / "x.safetensors", stored, {})
    assert raised.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_unknown_types_are_named(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(4, ml_dtypes.float8_e4m3fn)}, path)
    path.write_bytes(path.read_bytes().replace(b"F8_E4M3", b"F8_E8M0"))
    with pytest.raises(WeightsError, match="F8_E8M0; F64, F32"):
        safe.opened(path)
