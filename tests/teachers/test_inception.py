"""The 2015 Inception against recordings, its files, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.teachers import graphdef, inception, inception_table
from tests.teachers.inception_weights import Recording, parameters, tensors

# By area; the larger ones, however many, are slow.
SIZES = ["smallest", "second", pytest.param("others", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def recording(golden):
    return Recording(golden("eval_inception.safetensors"))


@pytest.fixture(scope="module")
def program():
    """Everything that the recordings hold, in one program."""

    def run(params, images):
        seen = inception.activations(params, images)
        return seen, inception.outputs(params, images)

    return jax.jit(run)


def sizes_of(recording, which: str) -> list[str]:
    """Names of the recorded sizes, height x width, that a test is about."""
    sizes = sorted(recording.config["sizes"], key=lambda size: size[0] * size[1])
    names = [f"{height}x{width}" for height, width, *_ in sizes]
    parts = {"smallest": names[:1], "second": names[1:2], "others": names[2:]}
    return parts[which]


def images_of(recording, size: str) -> np.ndarray:
    return recording[f"in/{size}/images_uint8"].transpose(0, 2, 3, 1)


def test_the_weights_of_the_rule_are_the_recorded_ones(recording):
    keys = recording.config["weight_keys"]
    own = tensors(recording.config["weights_salt"])
    assert set(keys) == set(own)
    sums = [
        [own[k].sum(dtype=np.float64), np.abs(own[k]).sum(dtype=np.float64)]
        for k in keys
    ]
    np.testing.assert_allclose(sums, recording["out/weights_checksums"], rtol=1e-9)


def test_the_resize_is_tensorflows_to_the_bit(recording):
    rows = recording.config["resized_rows"]
    for height, width, *_ in recording.config["sizes"]:
        image = images_of(recording, f"{height}x{width}")[:1]
        ours = (np.asarray(inception.resize(jnp.asarray(image))) - 128) / 128
        expected = recording[f"out/{height}x{width}/resized_rows_image0"]
        np.testing.assert_array_equal(ours[0, rows].transpose(2, 0, 1), expected)


@pytest.mark.parametrize("which", SIZES)
def test_features_are_those_of_the_recording(recording, program, which):
    for size in sizes_of(recording, which):
        check_features(recording, program, size)


def check_features(recording, program, size: str) -> None:
    params = parameters(recording.config["weights_salt"])
    seen, out = program(params, images_of(recording, size))
    out_of = lambda name: recording[f"out/{size}/{name}"]
    for ours, name in (
        (out.pool3, "pool3"),
        (out.logits, "logits"),
        (out.logits_unbiased, "logits_unbiased"),
        (out.spatial, "spatial_nhwc"),
        (seen["MaxPool_1"].mean((1, 2)), "mean64"),
        (seen["MaxPool_2"].mean((1, 2)), "mean192"),
        (seen["Mixed_6e"].mean((1, 2)), "mean768"),
    ):
        np.testing.assert_allclose(ours, out_of(name), atol=1e-5, err_msg=name)
    for i, block in enumerate(recording.config["blocks"]):
        x = np.asarray(seen[block.replace(".", "/")], np.float64)
        x = x.reshape(len(x), *(x.shape[1:3] if x.ndim == 4 else (1, 1)), -1)
        means = (x.mean((1, 2, 3)), np.abs(x).mean((1, 2, 3)), x[..., -1].mean((1, 2)))
        names = ("block_mean", "block_absmean", "block_last_channel_mean")
        for mean, name in zip(means, names, strict=True):
            np.testing.assert_allclose(mean, out_of(name)[i], atol=1e-5, err_msg=block)
        np.testing.assert_allclose(
            corners(x[0]), out_of("block_corners_image0")[i], atol=1e-5, err_msg=block
        )


# What a wrong network would say of the same images, from what the right one says.
MISTAKES = {
    "logits with bias": lambda out: out._replace(logits_unbiased=out.logits),
    "channels before places": lambda out: out._replace(
        spatial=out.spatial.reshape(-1, 289, 7).swapaxes(1, 2).reshape(-1, 2023)
    ),
    "the next seven channels": lambda out: out._replace(spatial=out.spatial[:, ::-1]),
}


@pytest.fixture(scope="module")
def right(recording, program):
    """What the right network says of the smallest images."""
    params = parameters(recording.config["weights_salt"])
    (size,) = sizes_of(recording, "smallest")
    return program(params, images_of(recording, size))[1]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(recording, right, mistake):
    compare(recording, right)
    with pytest.raises(AssertionError):
        compare(recording, MISTAKES[mistake](right))


def test_another_order_of_colours_is_seen(recording, program):
    params = parameters(recording.config["weights_salt"])
    (size,) = sizes_of(recording, "smallest")
    images = images_of(recording, size)[..., ::-1]
    with pytest.raises(AssertionError):
        compare(recording, program(params, images)[1])


def test_half_pixels_are_seen(recording):
    (size,) = sizes_of(recording, "smallest")
    image = images_of(recording, size)[:1].astype(np.float32)
    wrong = jax.image.resize(image, (1, 299, 299, 3), "linear", antialias=False)
    rows = (np.asarray(wrong)[0, recording.config["resized_rows"]] - 128) / 128
    expected = recording[f"out/{size}/resized_rows_image0"]
    assert np.abs(rows.transpose(2, 0, 1) - expected).max() > 0.1


def compare(recording, out: inception.Outputs) -> None:
    """What evaluators read against the recording, of the smallest images."""
    (size,) = sizes_of(recording, "smallest")
    for ours, name in (
        (out.pool3, "pool3"),
        (out.logits_unbiased, "logits_unbiased"),
        (out.spatial, "spatial_nhwc"),
    ):
        expected = recording[f"out/{size}/{name}"]
        np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=name)


def pool_by_nine(x: jax.Array) -> jax.Array:
    return inception._sums(x) / 9


@pytest.mark.parametrize("wrong", ["means by nine", "a last block of means"])
def test_a_wrong_pool_is_seen(recording, monkeypatch, wrong):
    if wrong == "means by nine":
        monkeypatch.setattr(inception, "mean_pool", pool_by_nine)
    else:
        last = inception_table._block_e("Mixed_7c", "mean")
        blocks = (*inception.BLOCKS[:-1], last)
        monkeypatch.setattr(inception, "BLOCKS", blocks)
    params = parameters(recording.config["weights_salt"])
    (size,) = sizes_of(recording, "smallest")
    out = jax.jit(inception.outputs)(params, images_of(recording, size)[:1])
    differs = np.abs(out.pool3 - recording[f"out/{size}/pool3"][:1]).max()
    assert differs > 1e-3


def corners(x: np.ndarray) -> np.ndarray:
    """First and last channel: 2 x 2 pixels at the top left, then bottom right."""
    channels = x[..., [0, -1]].transpose(2, 0, 1)
    if x.shape[0] == 1:
        return np.tile(channels.reshape(2, 1), (2, 4)).ravel()
    return np.concatenate([channels[:, :2, :2].ravel(), channels[:, -2:, -2:].ravel()])


def test_the_names_are_those_of_tensorflows_graph(golden):
    expected = json.loads(golden("eval_tf_names.json").read_text())
    ours = {"softmax/weights": "fc.weight", "softmax/biases": "fc.bias"}
    for name, scope in inception_table.tensorflow_names().items():
        ours[f"{scope}/conv2d_params"] = f"{name}.conv"
        ours[f"{scope}/batchnorm"] = f"{name}.bn"
    assert ours == expected


def test_a_graph_is_read_as_tensorflow_reads_it(golden):
    recording = Recording(golden("eval_graphdef.safetensors"))
    graph = graphdef.nodes(golden(recording.config["pb"]).read_bytes())
    held = graphdef.constants(graph)
    for name in recording.names():
        own = held[name.removeprefix("out/")]
        assert own.dtype == recording[name].dtype
        np.testing.assert_array_equal(own, recording[name], err_msg=name)
    scaled = {
        node.name.removesuffix("/batchnorm"): node.attributes[
            "scale_after_normalization"
        ]
        for node in graph
        if node.op == "BatchNormWithGlobalNormalization"
    }
    assert scaled == recording.config["scale_after_normalization"]
