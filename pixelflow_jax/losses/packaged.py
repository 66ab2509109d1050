"""Perceptual terms whose networks come with a package: nothing has to be brought.

They stand beside LPIPS and P-DINO under names of their own, for theirs are other
networks, and no figure of one says anything of the other.
"""

import dataclasses
from typing import Annotated, ClassVar

import jax.numpy as jnp
from jax import Array

from pixelflow_jax.losses.context import Context, Role, Term, weight_problems
from pixelflow_jax.losses.perceptual import (
    cosine,
    for_patch,
    gated,
    threshold_problems,
)
from pixelflow_jax.teachers.efficientnet import STAGES
from pixelflow_jax.teachers.suite import RequiredFeatures
from pixelflow_jax.values import NonNegative, Pixels, Range, Share

StageNumber = Annotated[int, Range(low=0, high=len(STAGES) - 1)]


@dataclasses.dataclass(kw_only=True)
class StLpips(Term):
    """ST-LPIPS between the predicted and the real clean image (Ghildyal & Liu 2022).

    In LPIPS's place, with a network that the package stlpips-pytorch brings whole. The
    noise gate `threshold` and the resizing by 16 / `patch` are those of `Lpips`.
    """

    weight: NonNegative = 0.1
    threshold: Share = 0.0
    patch: Pixels = 16
    role: ClassVar[Role] = "perceptual"

    def __call__(self, context: Context) -> Array:
        """The distance of every image, scaled so that their mean is the gated mean."""
        net, params = context.teachers.stlpips, context.frozen_params["stlpips"]
        values = [
            net.distance(
                params, for_patch(clean, self.patch), for_patch(point.clean, self.patch)
            )
            for clean, point in zip(context.clean(), context.points, strict=True)
        ]
        return gated(jnp.concatenate(values), context, self.threshold)

    def required_features(self) -> RequiredFeatures:
        """The ST-LPIPS network."""
        return RequiredFeatures(stlpips=True)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return [*weight_problems(self), *threshold_problems(self)]


@dataclasses.dataclass(kw_only=True)
class Lite0Distance(Term):
    """1 - cosine between what EfficientNet-Lite0 sees in the two clean images.

    The mean over places and over `stages` (0 to 6) of the network: P-DINO with a small
    convolutional classifier. Images are resized by 16 / `patch`, and `threshold` gates
    them, as in `Lpips`. What it teaches must not be judged by distances of features of
    the same network, such as FD-lite0.
    """

    weight: NonNegative = 0.01
    threshold: Share = 0.0
    patch: Pixels = 16
    stages: tuple[StageNumber, ...] = (2, 4, 6)
    role: ClassVar[Role] = "perceptual"

    def __call__(self, context: Context) -> Array:
        """The distance of every image, scaled so that their mean is the gated mean."""
        net, params = context.teachers.lite0, context.frozen_params["lite0"]
        values = []
        for clean, point in zip(context.clean(), context.points, strict=True):
            ours, true = (
                net.features(params, for_patch(images, self.patch), self.stages)
                for images in (clean, point.clean)
            )
            alike = [cosine(ours[n], true[n]).mean((1, 2)) for n in self.stages]
            values.append(1 - jnp.stack(alike).mean(0))
        return gated(jnp.concatenate(values), context, self.threshold)

    def required_features(self) -> RequiredFeatures:
        """The EfficientNet-Lite0."""
        return RequiredFeatures(lite0=True)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        messages = [*weight_problems(self), *threshold_problems(self)]
        if not self.stages:
            messages.append("Lite0Distance.stages is empty: name at least one stage")
        return messages
