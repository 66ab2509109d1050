"""The official files of the 2015 Inception: read alike, others refused by name."""

import struct

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.evaluation.extractors import digest, open_extractor
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.teachers import graphdef, inception_files
from pixelflow_jax.teachers.inception_table import TF_NORM, tensorflow_names
from tests.evaluation import sets
from tests.teachers.inception_weights import parameters, tensors


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def attribute(name: str, value: bytes) -> bytes:
    return field(5, field(1, name.encode()) + field(2, value))


def node(name: str, op: str, *attributes: bytes) -> bytes:
    head = field(1, name.encode()) + field(2, op.encode())
    return field(1, head + b"".join(attributes))


def constant(name: str, array: np.ndarray) -> bytes:
    shape = b"".join(field(2, field(1, size)) for size in array.shape)
    content = field(4, np.ascontiguousarray(array, np.float32).tobytes())
    tensor = field(1, 1) + field(2, shape) + content
    return node(name, "Const", attribute("value", field(8, tensor)))


def graph(unscaled: str = "", epsilon: float = 1e-3) -> bytes:
    """The formula's weights as TensorFlow's frozen graph holds them."""
    own = tensors()
    parts = [
        constant("softmax/weights", own["fc.weight"].T),
        constant("softmax/biases", own["fc.bias"]),
    ]
    for name, scope in tensorflow_names().items():
        kernel = own[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        parts.append(constant(f"{scope}/conv2d_params", kernel))
        for ours, theirs in TF_NORM.items():
            part = own[f"{name}.bn.{ours}"]
            parts.append(constant(f"{scope}/batchnorm/{theirs}", part))
        added = varint(4 << 3 | 5) + struct.pack("<f", epsilon)
        scale = attribute("scale_after_normalization", field(5, int(name != unscaled)))
        norm = attribute("variance_epsilon", added), scale
        parts.append(node(f"{scope}/batchnorm", inception_files.NORM_OP, *norm))
    return b"".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("inception")


@pytest.fixture(scope="module")
def named(folder):
    """A file of PyTorch's names."""
    save_file(tensors(), folder / "named.safetensors")
    return str(folder / "named.safetensors")


def test_both_kinds_of_file_hold_the_same(folder, named):
    (folder / "graph.pb").write_bytes(graph("Mixed_6b.branch7x7_2"))
    read = inception_files.load(str(folder / "graph.pb"))
    own = inception_files.load(named)
    assert digest(own) == digest(parameters()) != digest(read)
    # What is not scaled after the norm has a gamma that is not used.
    scale = read["Mixed_6b"]["branch7x7_2"]
    np.testing.assert_array_equal(scale["weight"], np.ones(128))
    scale["weight"] = own["Mixed_6b"]["branch7x7_2"]["weight"]
    assert digest(own) == digest(read)


def test_a_graph_of_something_else_is_refused(folder, golden):
    mini = golden("eval_graphdef_mini.pb")
    with pytest.raises(WeightsError, match="conv_1/conv2d_params and .* others"):
        inception_files.load(str(mini))
    path = folder / "cut.pb"
    path.write_bytes(mini.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="cannot be read as a frozen graph"):
        inception_files.load(str(path))
    path.write_bytes(graph(epsilon=1e-5))
    with pytest.raises(WeightsError, match="adds 1e-05|adds 9.99"):
        inception_files.load(str(path))


@pytest.mark.parametrize("content", [b"\x08", b"\x0a\x05ab", b"\x0b", b"\xff" * 12])
def test_bytes_that_are_no_graph_are_refused(content):
    with pytest.raises(ValueError):
        graphdef.nodes(content)


def test_torchvisions_network_is_refused_by_name(folder):
    other = {"fc.weight": np.zeros((1000, 2048), np.float32)}
    other["AuxLogits.conv0.conv.weight"] = np.zeros((1, 1), np.float32)
    save_file(other, folder / "torchvision.safetensors")
    with pytest.raises(WeightsError) as error:
        inception_files.load(str(folder / "torchvision.safetensors"))
    for part in (
        "torchvision's inception_v3 (1000 classes",
        "1008",
        "--inception=PATH",
    ):
        assert part in str(error.value)


def test_no_file_and_another_file_say_which_to_bring(folder):
    with pytest.raises(WeightsError, match="inception is empty.*6726825d.pth"):
        inception_files.load("")
    with pytest.raises(WeightsError, match="There is no file.*--inception=PATH"):
        inception_files.load("absent.pth")
    save_file(
        {"fc.weight": np.zeros((1008, 2048), np.float32)}, folder / "a.safetensors"
    )
    with pytest.raises(WeightsError, match="missing: Conv2d_1a_3x3.bn.bias"):
        inception_files.load(str(folder / "a.safetensors"))


@pytest.mark.slow
@pytest.mark.long
def test_features_are_the_same_on_one_device_and_on_eight(named):
    images = sets.images(5, 40, 56)
    one = open_extractor("inception", named, batch=8, devices=jax.devices()[:1])
    many = open_extractor("inception", named, batch=1)
    assert len(one.file_sha256) == len(one.weights_digest) == 64
    theirs = many.extract(images)
    for key, array in one.extract(images).items():
        rtol = 0 if key == FEATURES else 1e-5
        np.testing.assert_allclose(theirs[key], array, rtol, atol=1e-6, err_msg=key)
    assert theirs[FEATURES].shape == (5, 2048)
