"""Weight files: every kind is read, and whatever is wrong is said with its remedy."""

import json
import re
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors.locate import Origin, read

ORIGIN = Origin("SomeNet", "https://example.org/some.pth", "teachers.some.weights")
A = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
B = {"c": np.zeros((1, 4), np.float32)}


def refused(weights: str, *parts: str) -> str:
    """The message of the error that reading gives; it holds all `parts`."""
    with pytest.raises(WeightsError) as raised:
        read(str(weights), ORIGIN)
    message = str(raised.value)
    for part in parts:
        assert part in message, message
    return message


def equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)


def sharded(folder) -> None:
    save_file(A, folder / "model-1.safetensors")
    save_file(B, folder / "model-2.safetensors")
    where = dict.fromkeys(A, "model-1.safetensors")
    where |= dict.fromkeys(B, "model-2.safetensors")
    index = json.dumps({"weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index)


def test_a_file_and_folders_are_read(tmp_path):
    save_file(A, tmp_path / "any.safetensors")
    equal(read(f"{tmp_path}/any.safetensors", ORIGIN), A)
    equal(read(str(tmp_path), ORIGIN), A)  # the folder's only weight file
    sharded(tmp_path)
    equal(read(str(tmp_path), ORIGIN), A | B)
    save_file(B, tmp_path / "model.safetensors")
    equal(read(str(tmp_path), ORIGIN), B)


def test_absent_weights_are_named_with_their_origin_and_field(tmp_path):
    remedy = ORIGIN.source, "SomeNet", "--config.teachers.some.weights=PATH"
    refused("", *remedy)
    refused(tmp_path / "no.pth", str(tmp_path / "no.pth"), *remedy)


def test_unfit_files_are_named(tmp_path):
    (tmp_path / "some.txt").write_text("weights")
    refused(tmp_path / "some.txt", "some.txt", ".safetensors, .pth")
    refused(tmp_path, "neither model.safetensors nor its index", "no weight file")
    for name in ("one.safetensors", "two.safetensors"):
        save_file(A, tmp_path / name)
    refused(tmp_path, "one.safetensors, two.safetensors: name one file")
    sharded(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    refused(tmp_path, "lacks shards: model-2.safetensors")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file(A, path)
    whole = path.read_bytes()
    for size in (len(whole) - 3, 12, 0):
        path.write_bytes(whole[:size])
        refused(path, str(path), "Download it again")


def test_a_package_that_is_absent_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    wanted = "needs the package huggingface_hub", "pixelflow_jax[hub]"
    assert "cannot be" not in refused("hf://someone/some", *wanted)


def test_torch_is_not_needed_to_read_its_files(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "some.pth"
    path.write_bytes(b"anything")
    assert "needs the package" not in refused(
        path, "cannot be read", "Download it again"
    )


@pytest.fixture
def hub(monkeypatch):
    """Stands for huggingface_hub: a module whose download the test sets."""
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_repository_or_one_of_its_files_is_downloaded(hub, tmp_path):
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    hub.snapshot_download = snapshot_download
    sharded(tmp_path)
    (tmp_path / "folder").mkdir()
    save_file(A, tmp_path / "folder" / "some.safetensors")
    equal(read("hf://someone/some-net", ORIGIN), A | B)
    equal(read("hf://someone/some-net/folder/some.safetensors", ORIGIN), A)
    patterns = ["*.safetensors", "*.safetensors.index.json"]
    assert asked == [
        ("someone/some-net", patterns),
        ("someone/some-net", ["folder/some.safetensors"]),
    ]
    refused("hf://someone/some-net/other.pth", "There is no file", "other.pth")


def test_a_download_that_fails_says_why_and_what_to_do(hub):
    def snapshot_download(repository, allow_patterns):
        raise ConnectionError("no route\nto the hub")

    hub.snapshot_download = snapshot_download
    message = refused("hf://someone/some", "ConnectionError: no route", ORIGIN.source)
    assert "\n" not in message
    refused("hf://some", "hf://organisation/name")


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_files_of_pytorch_are_read(tmp_path, archive):
    torch = pytest.importorskip("torch")
    path = tmp_path / "some.pth"
    values = {key: torch.from_numpy(value) for key, value in A.items()}
    values["c"] = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    how = {"_use_new_zipfile_serialization": archive}
    torch.save(values, path, **how)
    equal(read(str(path), ORIGIN), A | {"c": np.ones(2, np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "some.pth", "Download it again")
    torch.save({"epoch": 3, "model": values}, path, **how)
    refused(path, "something else than a dict of tensors")
    torch.save([re.compile("code")], path, **how)  # neither tensors nor containers
    refused(path, "some.pth is refused", "re._compile", "nothing of it was executed")
