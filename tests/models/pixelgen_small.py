"""A small PixelGen with weights by formula, which several tests share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.convert import pixelgen
from pixelflow_jax.models.interface import Condition, Inputs, Network, network
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping as tables

EXACT = Precision(compute="float32", matmul="highest")
SMALL = PixelGen(
    num_classes=5,
    patch=4,
    image_size=12,
    width=24,
    heads=3,
    depth=4,
    bottleneck=7,
    context_length=2,
    context_start=2,
    feature_layer=2,
    dropout=0.3,
    stack=StackConfig(remat="none"),
)


def change(config: PixelGen = SMALL, **fields) -> PixelGen:
    return dataclasses.replace(config, **fields)


SINGLE = change(feature_layer=0, context_start=0)


def shapes(config: PixelGen) -> dict:
    return network(config, Precision()).shapes()


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def official(config: PixelGen) -> dict[str, np.ndarray]:
    """Weights under the official names; each depends on its name, and none is zero."""
    empty = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes(config))

    def draw(name: str, shape: tuple) -> np.ndarray:
        z = np.asarray(normal(sum(name.encode()), *shape))
        if "norm" in name:
            return 1 + 0.2 * z
        return z / np.sqrt(np.prod(shape[1:])) if z.ndim > 1 else 0.2 * z

    exported = tables.export(pixelgen.table(config), empty)
    return {name: draw(name, array.shape) for name, array in exported.items()}


def model(config: PixelGen = SMALL, precision=EXACT) -> tuple[Network, dict]:
    """The network of a config with the weights above."""
    params = tables.load(pixelgen.table(config), official(config), shapes(config))
    return network(config, precision), jax.tree.map(jnp.asarray, params)


def batch(seed: int, b: int, height: int, width: int) -> tuple[Inputs]:
    """Images of one size with their times and labels."""
    labels = Condition(labels=jnp.arange(b) % 6)
    image = normal(seed, b, height, width, 3)
    return (Inputs(image, jnp.linspace(0.2, 0.9, b), labels),)


IMAGES = batch(0, 4, 12, 12)


def run(config: PixelGen = SMALL, key=None, images: tuple = IMAGES):
    net, params = model(config)
    return jax.jit(net.apply)(params, images, key=key)


def keys(seed: int, number: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), number)


def near(one, other, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(one, other, atol=atol)
