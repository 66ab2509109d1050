"""Small instances of any denoiser, and what to give them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.models.interface import Condition, DenoiserConfig, Inputs, Labels
from pixelflow_jax.nn.precision import Precision

EXACT = Precision(compute="float32", matmul="highest")
SIZES = (8, 8), (16, 8)  # of the images, at the patch below
LENGTH = 5  # of a text where a model reads any
# The most that a field of this name may be; other whole numbers are at most OTHER.
LIMITS = {
    "patch": 4,
    "width": 24,
    "heads": 2,
    "depth": 2,
    "feature_layer": 1,
    "context_start": 1,
    "context_length": 2,
    "text_depth": 1,
    "text_length": LENGTH,
    "num_classes": 5,
}
INSIDE = LIMITS | {"width": 8, "depth": 1}  # in the config of a part, such as a decoder
OTHER = 8


def small(config: DenoiserConfig) -> DenoiserConfig:
    """The same with every size cut down; what is 0 stays 0."""
    return _shrunk(config, LIMITS)


def _shrunk(node, limits: dict[str, int]):
    changed = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _shrunk(value, INSIDE)
        elif isinstance(value, int) and not isinstance(value, bool):
            changed[field.name] = min(value, limits.get(field.name, OTHER))
    return dataclasses.replace(node, **changed)


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def condition(config: DenoiserConfig, count: int, seed: int) -> Condition:
    """Labels, the null class among them, or texts of which one is not whole."""
    grounding = jnp.ones(count, bool)
    spec = config.condition
    if isinstance(spec, Labels):
        labels = (seed + jnp.arange(count)) % (spec.num_classes + 1)
        return Condition(labels=labels, grounding=grounding)
    length = spec.length or LENGTH
    mask = jnp.arange(length) < length - jnp.arange(count)[:, None] % 2
    text = normal(seed, count, length, spec.width)
    return Condition(text=text, mask=mask, grounding=grounding)


def inputs(
    config: DenoiserConfig, size: tuple[int, int], count: int = 2, seed: int = 0
) -> Inputs:
    """Images of one size with their times and conditions."""
    image = normal(seed, count, *size, config.channels)
    times = jnp.linspace(0.2 + 0.1 * seed, 0.9, count)
    return Inputs(image, times, condition(config, count, seed))


def random_like(shapes: dict, scale: float = 0.3) -> dict:
    """Parameters of which none is zero: matrices keep the size of what passes them."""
    leaves, structure = jax.tree.flatten(shapes)
    sizes = [leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else scale for leaf in leaves]
    drawn = [
        size * normal(i, *leaf.shape)
        for i, (size, leaf) in enumerate(zip(sizes, leaves, strict=True))
    ]
    return jax.tree.unflatten(structure, drawn)


def frozen_params(config: DenoiserConfig) -> dict:
    """Random parameters of what the denoiser looks through."""
    networks = config.frozen_networks()
    return {name: random_like(net.shapes()) for name, net in networks.items()}
