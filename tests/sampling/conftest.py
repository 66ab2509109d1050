"""A tiny model that draws, with random weights."""

import jax
import pytest

from pixelflow_jax import build
from pixelflow_jax.sampling.batches import Generator, Weights
from tests.sampling.generators import on
from tests.training import tiny


@pytest.fixture(scope="module")
def generator() -> Generator:
    return on(build.generator(tiny.experiment("unused"), 16, 16), 1)


@pytest.fixture(scope="module")
def weights():
    """Random weights; a fresh decoder is zero and would draw nothing but noise."""
    network = build.network(tiny.experiment("unused"))
    fresh = jax.jit(network.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return Weights(jax.device_get(jax.tree.unflatten(tree, noisy)))
