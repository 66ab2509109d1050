"""ST-LPIPS: its size, its layers by hand, and the package where it is at hand."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.models.interface import count
from pixelflow_jax.teachers import stlpips
from pixelflow_jax.teachers.lpips import scaled
from pixelflow_jax.teachers.stlpips import StLpipsNet, table
from pixelflow_jax.tensors.mapping import load
from tests.teachers import official
from tests.teachers.official import EXACT

NET = StLpipsNet(precision=EXACT)


@pytest.fixture(scope="module")
def params() -> dict:
    tensors = official.tensors(table())
    tensors = {k: np.abs(v) if k.startswith("lin") else v for k, v in tensors.items()}
    return jax.tree.map(jnp.asarray, load(table(), tensors))


def images(seed: int, size: int = 32) -> jax.Array:
    draw = np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3))
    return jnp.asarray(draw, jnp.float32)


def test_a_blur_halves_what_it_has_reflected():
    x = np.random.default_rng(0).normal(size=(1, 5, 7, 2)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    weights = np.outer((0.25, 0.5, 0.25), (0.25, 0.5, 0.25))
    expected = np.einsum("bhwcij,ij->bhwc", windows[:, ::2, ::2], weights)
    np.testing.assert_allclose(stlpips.halved(jnp.asarray(x)), expected, atol=1e-6)


def test_the_first_layer_by_hand(params):
    """Scaling, 11 x 11 with a pad of 2, a blur that halves, and then the ReLU."""
    x = np.pad(scaled(images(0)), ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (11, 11), (1, 2))
    own = params["trunk"]["conv0"]
    out = np.einsum("bhwcij,ijco->bhwo", windows, own["kernel"]) + own["bias"]
    expected = np.maximum(stlpips.halved(jnp.asarray(out)), 0)
    found = jax.jit(NET.features)(params, images(0))
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert [(f.shape[1], f.shape[3]) for f in found] == [
        (14, 64),
        (7, 192),
        (4, 384),
        (4, 256),
        (4, 256),
    ]


def test_equal_images_have_no_distance_and_gradients_reach_images_alone(params):
    a, b = images(0), images(1)
    own = lambda params, a: NET.distance(params, a, b).sum()
    to_params, to_image = jax.jit(jax.grad(own, (0, 1)))(params, a)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(to_params))
    assert np.all(np.isfinite(to_image)) and np.any(to_image)
    assert not np.any(NET.distance(params, a, a))
    small = images(0, 12)  # enlarged to what the pads need
    assert np.all(NET.distance(params, small, -small) > 0)


def test_the_published_size_and_a_missing_package(monkeypatch):
    assert count(NET.shapes()) == 2_469_696 + 1_152  # LPIPS's AlexNet
    monkeypatch.setattr(stlpips, "packaged", lambda package, inside: "")
    with pytest.raises(WeightsError, match="stlpips-pytorch"):
        NET.load()


def test_the_package_agrees(monkeypatch):
    """On its own weights, forward and gradient; its idle imports are stood in for."""
    torch = pytest.importorskip("torch")
    idle = {"IPython": "embed", "torchsummary": "summary", "torchvision": "models"}
    for name, member in idle.items():
        module = types.ModuleType(name)
        setattr(module, member, None)
        monkeypatch.setitem(sys.modules, name, module)
    package = pytest.importorskip("stlpips_pytorch.stlpips")
    model = package.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    a, b = (np.asarray(images(seed, 43)) for seed in (0, 1))
    x, y = (torch.from_numpy(np.moveaxis(image, -1, 1).copy()) for image in (a, b))
    x.requires_grad_()
    total = model(x, y)
    total.sum().backward()
    own = NET.load()
    found = NET.distance(own, jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, total.detach().numpy().ravel(), rtol=1e-4)
    gradient = jax.grad(lambda a: NET.distance(own, a, jnp.asarray(b)).sum())(a)
    theirs = np.moveaxis(x.grad.numpy(), 1, -1)
    off = np.abs(gradient - theirs) / np.abs(theirs).max()
    # A ReLU within rounding of its kink may go either way.
    assert np.mean(off < 5e-5) > 0.8 and off.max() < 0.05
