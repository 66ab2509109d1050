"""LPIPS's invariants, its formula by hand, its loader and its two backbones."""

import dataclasses
import functools
import importlib.machinery
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.teachers import lpips
from pixelflow_jax.teachers.lpips import BACKBONES, LpipsNet, table
from pixelflow_jax.tensors import reader
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors.mapping import load
from tests.teachers import official
from tests.teachers.official import EXACT

NET = LpipsNet(backbone="alexnet", precision=EXACT)  # the smaller one


@functools.cache
def theirs(backbone: str = "alexnet") -> dict[str, np.ndarray]:
    """Official tensors; LPIPS's own weights are not negative."""
    found = official.tensors(table(backbone))
    return {k: np.abs(v) if k.startswith("lin") else v for k, v in found.items()}


@functools.cache
def parameters(backbone: str = "alexnet") -> dict:
    return jax.tree.map(jnp.asarray, load(table(backbone), theirs(backbone)))


def images(seed: int, size: int = 64) -> jax.Array:
    draw = np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3))
    return jnp.asarray(draw, jnp.float32)


distance = jax.jit(NET.distance)


def test_equal_images_have_no_distance_and_order_does_not_matter():
    params, a, b = parameters(), images(0), images(1)
    assert not np.any(distance(params, a, a))
    found = distance(params, a, b)
    assert found.shape == (2,) and found.dtype == jnp.float32 and np.all(found > 1e-3)
    np.testing.assert_allclose(distance(params, b, a), found, rtol=1e-5)
    np.testing.assert_allclose(
        distance(params, a[::-1], b[::-1]), found[::-1], rtol=1e-5
    )
    nearer = distance(params, a, a + 0.1 * (b - a))
    assert np.all(nearer < 0.5 * found)


def test_the_formula_by_hand():
    """Unit vectors, squared difference, one weight a channel, mean, sum."""
    params, expected = parameters(), []
    features = [jax.jit(NET.features)(params, images(i)) for i in (0, 1)]
    for i, pair in enumerate(zip(*features, strict=True)):
        one, other = (np.asarray(f, np.float64) for f in pair)
        unit = [
            f / (np.sqrt((f**2).sum(-1, keepdims=True)) + 1e-10) for f in (one, other)
        ]
        weight = theirs()[f"lin{i}.model.1.weight"][0, :, 0, 0]
        expected.append(((unit[0] - unit[1]) ** 2 @ weight).mean((1, 2)))
    layers = NET.compare(params, *features)
    np.testing.assert_allclose(layers, expected, rtol=1e-4)
    found = distance(params, images(0), images(1))
    np.testing.assert_allclose(found, np.sum(expected, 0), rtol=1e-4)


def test_the_first_layers_by_hand():
    """Scaling, an 11 x 11 convolution, ReLU, maxima, a 5 x 5 convolution, ReLU."""
    x = np.asarray(images(0, 32), np.float64)[:1]
    scaled = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    np.testing.assert_allclose(lpips.scaled(images(0, 32))[:1], scaled, atol=1e-5)

    def convolved(x, key, stride, padding):
        kernel = theirs()[f"features.{key}.weight"].astype(np.float64)
        size = kernel.shape[-1]
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
        windows = windows[:, ::stride, ::stride]
        out = np.einsum("bhwcij,ocij->bhwo", windows, kernel)
        return np.maximum(out + theirs()[f"features.{key}.bias"], 0)

    first = convolved(scaled, 0, 4, 2)
    pooled = np.lib.stride_tricks.sliding_window_view(first, (3, 3), (1, 2))
    second = convolved(pooled[:, ::2, ::2].max((-1, -2)), 3, 1, 2)
    found = jax.jit(NET.features)(parameters(), images(0, 32))
    np.testing.assert_allclose(found[0][:1], first, atol=1e-4)
    np.testing.assert_allclose(found[1][:1], second, atol=1e-4)


SHAPES = {
    "vgg16": [(64, 64), (32, 128), (16, 256), (8, 512), (4, 512)],
    "alexnet": [(15, 64), (7, 192), (3, 384), (3, 256), (3, 256)],
}
COUNTS = {"vgg16": 14_714_688 + 1_472, "alexnet": 2_469_696 + 1_152}
SMALLEST = {"vgg16": 16, "alexnet": 31}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_sizes(backbone, monkeypatch):
    net = LpipsNet(backbone=backbone)
    shapes = net.shapes()
    assert count(shapes) == COUNTS[backbone]

    def compared(size: int) -> list[tuple[int, int]]:
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        found = jax.eval_shape(net.features, shapes, image)
        assert all(f.dtype == jnp.bfloat16 and f.shape[1] == f.shape[2] for f in found)
        return [(f.shape[1], f.shape[3]) for f in found]

    assert compared(64) == SHAPES[backbone]
    least = net.smallest
    assert least == SMALLEST[backbone] and compared(least)[-1][0] == 1
    assert compared(least - 1) == compared(least)  # enlarged
    monkeypatch.setattr(LpipsNet, "smallest", 1)
    assert compared(least - 1)[-1][0] < 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_small_images_are_enlarged(backbone):
    """From the least on that leaves a pixel in the last layer, they are not."""
    net, params = dataclasses.replace(NET, backbone=backbone), parameters(backbone)
    x, least = images(0, 40), SMALLEST[backbone]
    small = x[:, : least // 2, : least // 2 + 3]
    size = least, least * small.shape[2] // small.shape[1]
    larger = jax.image.resize(small, (len(x), *size, 3), "linear")
    run = jax.jit(net.features)
    for ours, theirs in zip(run(params, small), run(params, larger), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    first = run(params, x[:, :least, : least + 3])[0]
    assert first.shape[1:3] == ((16, 19) if backbone == "vgg16" else (7, 7))
    assert not net.problems(*small.shape[1:3])


def test_the_topology_of_vgg16():
    """Convolutions by number, and after which of them maxima are taken."""
    slices = BACKBONES["vgg16"].slices
    keys = [[conv.key for conv in part.convs] for part in slices]
    assert keys == [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    assert [part.pool for part in slices] == [False, True, True, True, True]


def test_the_gradient_is_the_slope():
    a, b, direction = images(0), images(1), images(2) - images(0)
    total = lambda a, b, params: NET.distance(params, a, b).sum()
    gradient = jax.jit(jax.grad(total))(a, b, parameters())
    moved = lambda h: distance(parameters(), a + h * direction, b)
    slope = float(jnp.sum(moved(2e-3) - moved(-2e-3))) / 4e-3
    np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=2e-2)


def test_no_gradient_reaches_the_parameters():
    total = lambda params: NET.distance(params, images(0), images(1)).sum()
    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(parameters())):
        assert not np.any(leaf)


def test_pixels_without_any_feature_leave_the_gradient_finite():
    one, other = (NET.features(parameters(), images(i)) for i in (0, 1))
    dark = tuple(value.at[:, 0, 0].set(0) for value in one)
    total = lambda dark, other, params: NET.compare(params, dark, other).sum()
    for gradient in jax.jit(jax.grad(total))(dark, other, parameters()):
        assert np.all(np.isfinite(gradient)) and np.any(gradient)


def test_half_precision_features_are_compared_in_float32():
    net = LpipsNet(backbone="alexnet")
    low = [jax.jit(net.features)(parameters(), images(i)) for i in (0, 1)]
    assert all(value.dtype == jnp.bfloat16 for value in low[0])
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), low)
    expected = net.compare(parameters(), *wide)
    np.testing.assert_allclose(net.compare(parameters(), *low), expected, rtol=1e-6)


def test_half_precision_is_close_and_ends_in_float32():
    low = jax.jit(LpipsNet(backbone="alexnet").distance)
    found = low(parameters(), images(0), images(1))
    assert found.dtype == jnp.float32
    exact = distance(parameters(), images(0), images(1))
    np.testing.assert_allclose(found, exact, rtol=0.03)
    assert np.any(np.asarray(found) != np.asarray(exact))


def test_no_parameter_is_baked_in():
    traced = jax.make_jaxpr(NET.distance)(parameters(), images(0), images(1))
    assert sum(np.size(const) for const in traced.consts) <= 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """torchvision's file, classifier and all, and LPIPS's."""
    folder = tmp_path_factory.mktemp("lpips")
    official = theirs()
    classifier = {"classifier.1.weight": np.zeros((2, 3), np.float32)}
    net = {k: v for k, v in official.items() if k.startswith("features")}
    save_file(net | classifier, folder / "alexnet.safetensors")
    linear = {k: v for k, v in official.items() if k.startswith("lin")}
    save_file(linear, folder / "linear.safetensors")
    return str(folder / "alexnet.safetensors"), str(folder / "linear.safetensors")


def test_official_files_load(files):
    weights, linear = files
    net = dataclasses.replace(NET, weights=weights, linear=linear)
    loaded = net.load()
    jax.tree.map(np.testing.assert_array_equal, loaded, parameters())
    net.precision = LpipsNet().precision
    loaded = net.load()
    same = jax.tree.map(
        lambda a, s: (a.shape, a.dtype) == (s.shape, s.dtype), loaded, net.shapes()
    )
    assert all(jax.tree.leaves(same))
    kernel = loaded["backbone"]["conv0"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and kernel.shape == (11, 11, 3, 64)
    assert loaded["linear"]["layer0"].dtype == jnp.float32


def test_the_packages_linear_layers_are_found(files, tmp_path, monkeypatch):
    """Without importing the package, which would import torch."""
    weights, linear = files
    package = tmp_path / "lpips"
    (package / "weights" / "v0.1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    found = importlib.machinery.PathFinder.find_spec("lpips", [str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    net = dataclasses.replace(NET, weights=weights)
    with pytest.raises(WeightsError, match="--config.teachers.lpips.linear=PATH"):
        net.load()
    path = package / "weights" / "v0.1" / "alex.pth"
    path.write_bytes(open(linear, "rb").read())
    monkeypatch.setitem(reader.READERS, ".pth", safe.opened)
    jax.tree.map(np.testing.assert_array_equal, net.load(), parameters())


def test_absent_or_other_weights_are_named(files, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    weights, linear = files
    for changes, parts in (
        ({}, ["alexnet-owt-7be5be79.pth", "--config.teachers.lpips.weights=PATH"]),
        ({"backbone": "vgg16"}, ["vgg16-397923af.pth"]),
        (
            {"weights": weights},
            ["weights/v0.1/alex.pth", "--config.teachers.lpips.linear=PATH"],
        ),
        (
            {"weights": weights, "linear": weights},
            ["missing: lin4.model.1.weight", "unexpected: classifier.1.weight"],
        ),
        (
            {"weights": weights, "linear": linear, "backbone": "vgg16"},
            [
                "missing: features.28.bias",
                "unexpected: features.3.bias",
                "misshapen: features.0.weight: (64, 3, 11, 11), not (64, 3, 3, 3)",
            ],
        ),
    ):
        with pytest.raises(WeightsError) as raised:
            dataclasses.replace(NET, **changes).load()
        for part in parts:
            assert part in str(raised.value)
        assert "classifier.1" not in str(raised.value) or "linear" in changes


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"backbone": "resnet"}, "backbone='resnet' is not one of vgg16, alexnet"),
        ({"precision": dataclasses.replace(EXACT, matmul="low")}, "'low'"),
    ],
)
def test_problems_are_named(changes, part):
    assert not NET.problems(64, 64)
    found = dataclasses.replace(NET, **changes).problems(64, 64)
    assert len(found) == 1 and part in found[0], found


def test_grey_images_are_refused():
    with pytest.raises(ValueError, match="RGB"):
        NET.features(parameters(), jnp.zeros((1, 64, 64, 1)))
