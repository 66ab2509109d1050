"""Pickles of weights: what is read, what is refused, and that nothing is run."""

import resource
import zipfile

import ml_dtypes
import numpy as np
import pytest

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors import reader
from pixelflow_jax.tensors.lazy import LazyTensor
from tests.tensors.pt_files import FLOAT8, UTILS, Call, Global, Pid, save, save_old

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
WRITERS = pytest.mark.parametrize("write", [save, save_old])


def read(content, tmp_path, write=save):
    return reader.opened(write(tmp_path / "x.pt", content))


@WRITERS
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "f2", ml_dtypes.bfloat16, FLOAT8])
def test_tensors_come_through(dtype, write, tmp_path):
    array = ARRAY.astype(dtype)
    if write is save_old and array.dtype.str[1:] not in ("f4", "f8", "i8"):
        pytest.skip("such files had no types but those of their storages")
    tensor = read({"model": {"w": array}}, tmp_path, write)["model"]["w"]
    assert isinstance(tensor, LazyTensor) and tensor.dtype == array.dtype
    np.testing.assert_array_equal(tensor.read(), array)
    np.testing.assert_array_equal(tensor.fetch(1), array[1])


def numpy_scalar(value: float):
    kind = Call(Global("numpy dtype"), ("f8", False, True))
    data = Call(
        Global("_codecs encode"),
        (np.float64(value).tobytes().decode("latin1"), "latin1"),
    )
    return Call(Global("numpy.core.multiarray scalar"), (kind, data))


@WRITERS
def test_numbers_and_settings_beside_the_weights_are_taken(write, tmp_path):
    content = {
        "best": numpy_scalar(1.25),
        "sampler": Call(Global("torch.optim.adamw AdamW"), ()),
        "seen": Call(Global("__builtin__ set"), ([1, 2],)),
        "w": ARRAY,
    }
    found = read(content, tmp_path, write)
    assert found["best"] == 1.25 and found["seen"] == [1, 2]
    np.testing.assert_array_equal(found["w"].read(), ARRAY)


def test_a_tensor_of_strides_is_laid_out(tmp_path):
    pid = Pid("FloatStorage", "0", 12)
    turned = Call(
        Global(f"{UTILS} _rebuild_tensor_v2"), (pid, 1, (4, 2), (1, 4), False, None)
    )
    content = {"w": ARRAY, "turned": turned}
    found = read(content, tmp_path)["turned"]
    np.testing.assert_array_equal(
        found.read(), ARRAY.ravel()[[[1, 5], [2, 6], [3, 7], [4, 8]]]
    )
    np.testing.assert_array_equal(found.fetch(2), ARRAY.ravel()[[3, 7]])


BOMBS = {
    "bytearray": Call(Global("builtins bytearray"), (1 << 34,)),
    "bytearray of Python 2": Call(Global("__builtin__ bytearray"), (1 << 34,)),
    "bytes": Call(Global("builtins bytes"), (1 << 34,)),
    "a storage": Call(Global("torch FloatStorage"), (1 << 34,)),
    "a tensor": Call(Global("torch Tensor"), (1 << 34,)),
    "zeros": Call(Global("torch zeros"), (1 << 34,)),
    "a list of ranges": Call(
        Global("builtins list"), (Call(Global("builtins range"), (1 << 34,)),)
    ),
    "eval": Call(Global("builtins eval"), ("__import__('os').mkdir('x')",)),
    "a shell": Call(Global("posix system"), ("mkdir x",)),
    "an attribute": Call(Global("builtins getattr"), ("", "x")),
    "a nested file": Call(Global("torch.storage _load_from_bytes"), (b"",)),
    "a scalar of bytes": Call(
        Global("numpy.core.multiarray scalar"),
        (Call(Global("numpy dtype"), ("i8",)), 1 << 34),
    ),
    "a tensor larger than its storage": Call(
        Global(f"{UTILS} _rebuild_tensor_v2"),
        (Pid("FloatStorage", "0", 12), 0, (1 << 34,), (1,), False, None),
    ),
    "a tensor repeated": Call(
        Global(f"{UTILS} _rebuild_tensor_v2"),
        (Pid("FloatStorage", "0", 12), 0, (1 << 34,), (0,), False, None),
    ),
    "a storage larger than the file": Call(
        Global(f"{UTILS} _rebuild_tensor_v2"),
        (Pid("FloatStorage", "0", 1 << 34), 0, (1 << 34,), (1,), False, None),
    ),
}
HARMLESS = {"a tensor", "a list of ranges"}  # they stand for nothing


@WRITERS
@pytest.mark.parametrize("name", BOMBS)
def test_what_asks_for_more_is_refused_and_costs_no_memory(
    name, write, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = {"w": ARRAY, "state": BOMBS[name]}
    if name in HARMLESS:
        read(content, tmp_path, write)
    else:
        with pytest.raises(WeightsError, match=r"x\.pt (is refused|cannot be read)"):
            read(content, tmp_path, write)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 100_000, "kB"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_class_is_given_no_state(tmp_path):
    """What would change this process for good."""
    for name in ("argparse Namespace", "torch.optim X", "collections OrderedDict"):
        named = b"c" + name.replace(" ", "\n").encode() + b"\n"
        with pytest.raises(WeightsError, match="cannot be read"):
            read_raw(named + b"}U\x06appendK\x01sb.", tmp_path)


def test_nested_lists_end_in_a_message(tmp_path):
    deep = b"]" * 100_000 + b"a" * 99_999 + b"."
    with pytest.raises(WeightsError, match="cannot be read"):
        read_raw(deep, tmp_path)


def read_raw(pickled: bytes, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return reader.opened(tmp_path / "x.pt")


def test_what_holds_itself_ends(tmp_path):
    """A list doubled thirty times is small in a file, and a thousand million long."""
    pickled = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))
    found = read_raw(pickled + b".", tmp_path)
    assert len(found) == 2 and found[0] is found[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch.distributed.tensor DTensor", "one process's part"),
        (
            "torch.distributed._shard.sharded_tensor.api ShardedTensor",
            "merge the parts",
        ),
        ("__torch__.model Net", "a program of TorchScript"),
        ("torch.nn.modules.linear Linear", "save its state dict"),
    ],
)
def test_what_is_no_set_of_weights_is_named(name, words, tmp_path):
    with pytest.raises(WeightsError, match=words):
        read({"x": Call(Global(name), ())}, tmp_path)
