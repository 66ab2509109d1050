"""AsymFlow's prediction: the clean image less the noise's part in a small subspace.

Chen et al. 2026, "Asymmetric Flow Models". A network that predicts x - P e, for the
projection P of a patch on a few directions that the data fills, has to carry full-rank
data and low-rank noise. Rank 0 is clean prediction, full rank is velocity prediction.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax.errors import ConfigError
from pixelflow_jax.flow.basis import BASIS, Gram, read_basis
from pixelflow_jax.flow.path import Point, Stage, per_image
from pixelflow_jax.flow.prediction import PLAIN, Images, Prediction, Times
from pixelflow_jax.values import (
    Count,
    OptionalWidth,
    Pixels,
    Place,
    Positive,
    PositiveShare,
)

Timestep = Literal["data", "noise"]


@dataclasses.dataclass(kw_only=True)
class PredictAsymmetric(Prediction):
    """The network outputs x - P e, patch by patch; A of P = A A^T has `rank` columns.

    With an output o the velocity is P o + (I - P)(o - x_t) / max(1 - t, tau), with
    `sampling_tau` in the place of `tau` in samplers. `patch` is the side of the patches
    that P acts on, that of the model in the paper. `basis` names a file that `pixelflow
    prepare basis` wrote; "": A comes from the first `images` training images. Either
    way A becomes one of the run's constants: it is saved with the run and published
    with the weights, so that nothing reads the file, or the images, again.

    `scale` s other than 1 is for networks taken over from another space: they are given
    k x_t and the time of k (1 - t), for k = 1 / (s + (1 - s)(1 - t)), and predict x / s
    - P e. `timestep` "noise" tells the network 1 - t, as the official code's are told.
    The squared error of the velocity is weighed by ((1 - t) / max(1 - t, loss_tau))^2,
    the clamp of JiT's loss. Source: arXiv 2605.12964.
    """

    rank: OptionalWidth = 8
    patch: Pixels = 16
    basis: Place = ""
    images: Count = 10_000
    scale: Positive = 1.0
    tau: PositiveShare = 1e-6
    sampling_tau: PositiveShare = 0.04
    loss_tau: PositiveShare = 0.05
    timestep: Timestep = "data"

    def velocity(
        self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> Images:
        """See `bind`: alone, it knows the ends of the family, rank 0 and full rank."""
        return self.bind({}).velocity(out, x_t, t, stage)

    def clean(self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN) -> Images:
        """See `velocity`."""
        return self.bind({}).clean(out, x_t, t, stage)

    def target(self, point: Point) -> Images:
        """end - start."""
        return point.end - point.start

    def inputs(
        self, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> tuple[Images, Times]:
        """k x_t, and the timestep of 1 - k (1 - t), or of k (1 - t)."""
        k = self._shrink(1 - t)
        x = x_t if self.scale == 1 else per_image(k, x_t) * x_t
        told = t if self.scale == 1 else 1 - k * (1 - t)
        return x, stage.timestep(1 - told if self.timestep == "noise" else told)

    def loss_weight(self, point: Point) -> Float[Array, " b"]:
        """((1 - t) / max(1 - t, loss_tau))^2."""
        remaining = 1 - point.t
        return jnp.square(remaining / jnp.maximum(remaining, self.loss_tau))

    def for_sampling(self) -> Prediction:
        """The same with the clamp of sampling."""
        return dataclasses.replace(self, tau=self.sampling_tau)

    def problems(self, stages: tuple[Stage, ...]) -> list[str]:
        """Why stages that end below 1 do not fit."""
        if all(stage.end == 1 for stage in stages):
            return []
        return [
            "PredictAsymmetric needs stages that end at the data: where a stage ends "
            "with noise in it, the output's part outside the subspace does not tell "
            "the blurred image that the stage began with. Take one stage "
            "(path=Straight()), or PredictClean for the cascade"
        ]

    def constants(self, images: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """The basis, from the file or from the first images; none at the ends."""
        if self.rank == 0:
            return {}
        if self.basis:
            return self._chosen(read_basis(self.basis))
        gram = Gram(self.patch)
        for batch in images:
            if not self._needs_basis(batch.shape[-1]):
                return {}
            gram.add(batch[: self.images - gram.images])
            if gram.images == self.images:
                break
        return self._chosen(gram.directions()[1])

    def _chosen(self, directions: np.ndarray) -> dict[str, np.ndarray]:
        """The last `rank` columns, float32; ConfigError where there are fewer."""
        numbers, count = directions.shape
        if numbers % self.patch**2 or not 0 < self.rank <= count:
            raise ConfigError(
                f"prediction.basis={self.basis!r} holds {count} directions of "
                f"{numbers} numbers a patch, but prediction.rank={self.rank} and "
                f"patch={self.patch} ask for others: run `pixelflow prepare basis` "
                f"with --patch={self.patch}, or change these fields."
            )
        return {BASIS: directions[:, count - self.rank :].astype(np.float32)}

    def constant_shapes(self, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The basis [numbers of a patch, rank]; none at the ends.

        Raises ConfigError where a patch has not so many numbers.
        """
        numbers = self.patch**2 * channels
        if self.rank > numbers:
            raise ConfigError(
                f"prediction.rank={self.rank} is larger than the {numbers} numbers of "
                f"a patch of {self.patch} with {channels} channels."
            )
        if not self._needs_basis(channels):
            return {}
        return {BASIS: jax.ShapeDtypeStruct((numbers, self.rank), np.float32)}

    def _needs_basis(self, channels: int) -> bool:
        return 0 < self.rank < self.patch**2 * channels

    def bind(self, constants: dict[str, Array]) -> "BoundAsymmetric":
        """The prediction with its basis, for one program."""
        return BoundAsymmetric(self, constants.get(BASIS))

    def init(self, params: dict, constants: dict[str, Array]) -> dict:
        """The first channels of a bottleneck of the patches begin as the basis.

        Those are A times sqrt(2 d / (d + bottleneck)), for a patch of d numbers: as
        large as Xavier's. Models without such a bottleneck begin as they are.
        """
        basis, expand = constants.get(BASIS), params.get("patch_expand")
        if basis is None or expand is None:
            return params
        kernel = params["patch_embed"]["kernel"]
        numbers, width = kernel.shape
        if numbers != len(basis) or width < self.rank:
            raise ConfigError(
                f"The model embeds patches of {numbers} numbers through {width} "
                f"channels, but prediction.patch={self.patch} and rank={self.rank} "
                f"stand for {basis.shape[1]} directions of {len(basis)}: patch must be "
                "the model's, and its bottleneck not narrower than rank."
            )
        size = math.sqrt(2 * numbers / (numbers + width))
        kernel = jnp.asarray(kernel).at[:, : self.rank].set(size * basis)
        return {**params, "patch_embed": {**params["patch_embed"], "kernel": kernel}}

    def _shrink(self, remaining: Times) -> Times:
        """k, by which the network's input is smaller, from 1 - t."""
        return 1 / (self.scale + (1 - self.scale) * remaining)


class BoundAsymmetric(Prediction):
    """`PredictAsymmetric` with its basis [numbers, rank], None at the family's ends."""

    def __init__(self, config: PredictAsymmetric, basis: Array | None):
        self.config = config
        self.basis = basis

    def inputs(
        self, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> tuple[Images, Times]:
        """The config's."""
        return self.config.inputs(x_t, t, stage)

    def loss_weight(self, point: Point) -> Float[Array, " b"]:
        """The config's."""
        return self.config.loss_weight(point)

    def target(self, point: Point) -> Images:
        """The config's."""
        return self.config.target(point)

    def velocity(
        self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> Images:
        """s k P o + ((I - P)(s o - x_t) - (1 - s k) P x_t) / max(1 - t, tau).

        For a scale of 1 that is P o + (I - P)(o - x_t) / max(1 - t, tau). What lies
        outside is taken of the difference: the division enlarges its rounding alone.
        """
        s, remaining = self.config.scale, per_image(1 - t, x_t)
        clamped = jnp.maximum(remaining, self.config.tau)
        if s == 1:
            return self.inside(out) + self.outside(out - x_t) / clamped
        k = self.config._shrink(remaining)
        # 1 - s k, without its cancellation.
        noisy = (1 - s) * remaining * k * self.inside(x_t)
        away = self.outside(s * out - x_t) - noisy
        return s * k * self.inside(out) + away / clamped

    def clean(self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN) -> Images:
        """x_t + (1 - t) v, with no clamp on 1 - t."""
        return x_t + per_image(1 - t, x_t) * self.velocity(out, x_t, t, stage)

    def inside(self, images: Images) -> Images:
        """P: what lies in the subspace, of every patch."""
        if self.basis is not None:
            return project(images, self.basis, self.config.patch)
        return self._all_or_nothing(images)[0]

    def outside(self, images: Images) -> Images:
        """I - P."""
        if self.basis is not None:
            return images - self.inside(images)
        return self._all_or_nothing(images)[1]

    def _all_or_nothing(self, images: Images) -> tuple[Images, Images]:
        rank, numbers = self.config.rank, self.config.patch**2 * images.shape[-1]
        nothing = jnp.zeros_like(images)
        if rank not in (0, numbers):
            raise ValueError(
                f"PredictAsymmetric of rank {rank} asks for its basis: bind it first."
            )
        return (images, nothing) if rank else (nothing, images)


def project(images: Images, basis: Float[Array, "numbers rank"], patch: int) -> Images:
    """A A^T of every patch of images, its numbers ordered (row, column, channel)."""
    b, height, width, channels = images.shape
    if height % patch or width % patch:
        raise ConfigError(
            f"prediction.patch={patch} does not divide images of {height} x {width}: "
            "take the model's patch."
        )
    cut = (b, height // patch, patch, width // patch, patch, channels)
    directions = basis.reshape(patch, patch, channels, -1)
    patches = images.reshape(cut)
    weights = jnp.einsum("brpcqk,pqkn->brcn", patches, directions, precision="highest")
    inside = jnp.einsum("brcn,pqkn->brpcqk", weights, directions, precision="highest")
    return inside.reshape(images.shape)
