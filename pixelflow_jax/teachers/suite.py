"""The frozen networks of a run: which are needed, their weights, their features."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax import Array

from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.efficientnet import EfficientNetLite0
from pixelflow_jax.teachers.lpips import LpipsNet
from pixelflow_jax.teachers.stlpips import StLpipsNet

Teacher = DinoV2 | LpipsNet | StLpipsNet | EfficientNetLite0


class RequiredFeatures(NamedTuple):
    """What loss terms ask of the teachers.

    `full` and `staged` are DINOv2 layers of the real images at full size and at their
    stage's; `dino`, `lpips`, `stlpips` and `lite0` say whether those networks are
    needed at all.
    """

    full: tuple[int, ...] = ()
    staged: tuple[int, ...] = ()
    lpips: bool = False
    stlpips: bool = False
    lite0: bool = False

    @property
    def dino(self) -> bool:
        """Whether any DINOv2 layer is asked for."""
        return bool(self.full or self.staged)


def union(required: Iterable[RequiredFeatures]) -> RequiredFeatures:
    """All that any of `required` asks for."""
    required = list(required)
    return RequiredFeatures(
        full=tuple(sorted({layer for one in required for layer in one.full})),
        staged=tuple(sorted({layer for one in required for layer in one.staged})),
        lpips=any(one.lpips for one in required),
        stlpips=any(one.stlpips for one in required),
        lite0=any(one.lite0 for one in required),
    )


class TargetFeatures(NamedTuple):
    """DINOv2 tokens [b, n, width] of real images by layer; `staged`: one a stage."""

    full: dict[int, Array] = {}
    staged: tuple[dict[int, Array], ...] = ()


@dataclasses.dataclass(kw_only=True)
class Teachers:
    """The frozen networks that loss terms look through.

    Their weights are loaded only where a term needs them, enter the training step as
    arguments, and are never part of a checkpoint.
    """

    dino: DinoV2 = dataclasses.field(default_factory=DinoV2)
    lpips: LpipsNet = dataclasses.field(default_factory=LpipsNet)
    stlpips: StLpipsNet = dataclasses.field(default_factory=StLpipsNet)
    lite0: EfficientNetLite0 = dataclasses.field(default_factory=EfficientNetLite0)

    def _needed(self, required: RequiredFeatures) -> dict[str, Teacher]:
        names = ("dino", "lpips", "stlpips", "lite0")
        return {name: getattr(self, name) for name in names if getattr(required, name)}

    def load(self, required: RequiredFeatures) -> dict:
        """The parameters of the needed networks, by name; WeightsError without."""
        return {name: net.load() for name, net in self._needed(required).items()}

    def shapes(self, required: RequiredFeatures) -> dict:
        """The same as shapes; reads nothing."""
        return {name: net.shapes() for name, net in self._needed(required).items()}

    def problems(
        self, required: RequiredFeatures, height: int, width: int
    ) -> list[str]:
        """What is wrong with the needed networks for images of that size."""
        return [
            f"teachers.{name}: {problem}"
            for name, net in self._needed(required).items()
            for problem in net.problems(height, width)
        ]

    def extract_targets(
        self,
        required: RequiredFeatures,
        frozen_params: dict,
        images: Array,
        staged: tuple[Array, ...],
    ) -> TargetFeatures:
        """DINOv2's features of the real images, computed once for each image.

        `images` [b, h, w, c] are full size, `staged` the same images at their stages'
        sizes. No gradient flows back.
        """
        if not required.dino:
            return TargetFeatures()
        images, staged = jax.lax.stop_gradient((images, staged))

        def features(images: Array, layers: tuple[int, ...]) -> dict[int, Array]:
            return self.dino.features(frozen_params["dino"], images, layers)

        if len(staged) == 1:  # a path of one stage: both are the same images
            layers = tuple(sorted({*required.full, *required.staged}))
            shared = features(images, layers)
            return TargetFeatures(shared, (shared,))
        full = features(images, required.full) if required.full else {}
        if not required.staged:
            return TargetFeatures(full)
        return TargetFeatures(
            full, tuple(features(part, required.staged) for part in staged)
        )
