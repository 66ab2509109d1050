"""The frozen networks of a run: which are needed, their weights, what they see."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax import Array

from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.lpips import LpipsNet

SMALLEST = 32  # pixels; smaller images give the networks nothing to see


class Needs(NamedTuple):
    """What loss terms ask of the teachers.

    `full` and `staged` are DINOv2 layers of the real images at full size and at their
    stage's; `dino` and `lpips` say whether the networks are needed at all.
    """

    full: tuple[int, ...] = ()
    staged: tuple[int, ...] = ()
    lpips: bool = False

    @property
    def dino(self) -> bool:
        """Whether any DINOv2 layer is asked for."""
        return bool(self.full or self.staged)


def together(needs: Iterable[Needs]) -> Needs:
    """All that any of `needs` asks for."""
    needs = list(needs)
    return Needs(
        full=tuple(sorted({layer for n in needs for layer in n.full})),
        staged=tuple(sorted({layer for n in needs for layer in n.staged})),
        lpips=any(n.lpips for n in needs),
    )


class Seen(NamedTuple):
    """DINOv2 tokens [b, n, width] of real images by layer; `staged`: one a stage."""

    full: dict[int, Array] | None = None
    staged: tuple[dict[int, Array], ...] = ()


@dataclasses.dataclass(kw_only=True)
class Teachers:
    """The frozen networks that loss terms look through.

    Their weights are loaded only where a term needs them, enter the training step as
    arguments, and are never part of a checkpoint.
    """

    dino: DinoV2 = dataclasses.field(default_factory=DinoV2)
    lpips: LpipsNet = dataclasses.field(default_factory=LpipsNet)

    def _needed(self, needs: Needs) -> dict[str, DinoV2 | LpipsNet]:
        chosen = {"dino": needs.dino, "lpips": needs.lpips}
        return {name: getattr(self, name) for name, yes in chosen.items() if yes}

    def load(self, needs: Needs) -> dict:
        """The parameters of the needed networks, by name; TeacherError without."""
        return {name: net.load() for name, net in self._needed(needs).items()}

    def shapes(self, needs: Needs) -> dict:
        """The same as shapes; reads nothing."""
        return {name: net.shapes() for name, net in self._needed(needs).items()}

    def problems(self, needs: Needs, height: int, width: int) -> list[str]:
        """What is wrong with the needed networks for images of that size."""
        nets = self._needed(needs).items()
        return [
            f"teachers.{name}: {problem}"
            for name, net in nets
            for problem in net.problems(max(height, SMALLEST), max(width, SMALLEST))
        ]

    def observe(
        self, needs: Needs, frozen: dict, images: Array, staged: tuple[Array, ...]
    ) -> Seen:
        """What DINOv2 sees in the real images, looking at each image once.

        `images` [b, h, w, c] are full size, `staged` the same images at their stages'
        sizes. No gradient flows back.
        """
        if not needs.dino:
            return Seen()
        images, staged = jax.lax.stop_gradient((images, staged))

        def look(images: Array, layers: tuple[int, ...]) -> dict[int, Array]:
            return self.dino.features(frozen["dino"], enlarged(images), layers)

        if len(staged) == 1:  # a path of one stage: both are the same images
            found = look(images, tuple(sorted({*needs.full, *needs.staged})))
            return Seen(found, (found,))
        full = look(images, needs.full) if needs.full else None
        if not needs.staged:
            return Seen(full)
        return Seen(full, tuple(look(part, needs.staged) for part in staged))


def enlarged(images: Array) -> Array:
    """Images [b, h, w, c] whose shorter side is below 32 pixels, enlarged to that.

    Early stages of a cascade are that small.
    """
    b, height, width, c = images.shape
    shorter = min(height, width)
    if shorter >= SMALLEST:
        return images
    size = (b, height * SMALLEST // shorter, width * SMALLEST // shorter, c)
    return jax.image.resize(images, size, "linear")
