"""PixelGen's adaptive weight between the flow-matching and the perceptual terms."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.values import Count, Natural, NonNegative, Positive, Share


@dataclasses.dataclass(kw_only=True)
class AdaptiveWeight:
    """A running weight that keeps perceptual gradients as large as the flow's.

    From step `start` on, every `every` steps, the gradients of the two groups of terms
    with respect to the network's last matrix give the ratio of their lengths, bounded
    by `limit`; the weight moves to it as an average with `decay`, and is 1 before. It
    multiplies the perceptual terms together with the constant `ratio`. It lives in
    `TrainState.carry` (the official code loses it with every restart).
    """

    start: Natural = 400_000
    every: Count = 50
    decay: Share = 0.8
    limit: Positive = 100.0
    ratio: NonNegative = 1.0

    def is_due(self, step: Array | int) -> Array | bool:
        """Whether the weight moves before step number `step`."""
        return (step >= self.start) & (step % self.every == 0)

    def update(
        self, weight: Array, flow: Array, perceptual: Array
    ) -> tuple[Array, Array]:
        """The next weight, and the bounded ratio, from the two gradients."""
        ratio = _length(flow) / (_length(perceptual) + 1e-4)
        bounded = jnp.clip(ratio, 0.0, self.limit)
        return self.decay * weight + (1 - self.decay) * bounded, bounded

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if self.start < 0 or self.every < 1 or not 0 <= self.decay <= 1:
            return ["adaptive_weight needs start >= 0, every >= 1 and decay in [0, 1]"]
        if self.limit <= 0 or self.ratio < 0:
            return ["adaptive_weight needs limit > 0 and ratio >= 0"]
        return []


def _length(gradient: Array) -> Array:
    return jnp.sqrt(jnp.sum(jax.lax.square(gradient.astype(jnp.float32))))
