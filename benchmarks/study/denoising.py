"""How well averages denoise drawings, those trained on and those held out.

The mean squared error of the velocity at ten fixed times, with noise that depends on a
drawing's number alone, as the project measures it of any run: the same for networks of
all sizes, and nothing of it is drawn at random in training.
"""

import dataclasses
import functools

import jax
import numpy as np

from benchmarks.study.data import Pictures
from pixelflow_jax import build
from pixelflow_jax.data.transforms import normalise
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import CONSTANTS


@dataclasses.dataclass(frozen=True)
class Denoising:
    """Measures averages of a family on one device; compiled when first asked."""

    config: Experiment
    batch: int = 128
    noise: int = 0  # its seed

    def __call__(self, average: dict, constants: dict, pictures: Pictures) -> list:
        """The loss of each seed, of an average whose leaves are [seeds, ...]."""
        seeds = len(jax.tree.leaves(average)[0])
        states = [jax.tree.map(lambda a, i=i: a[i], average) for i in range(seeds)]
        frozen_params = {CONSTANTS: constants} if constants else {}
        return [self._loss(one, frozen_params, pictures) for one in states]

    def _loss(self, params: dict, frozen_params: dict, pictures: Pictures) -> float:
        """Mean over drawings and times."""
        count, errors = len(pictures.labels), []
        with jax.set_mesh(self._mesh):
            for first in range(0, count, self.batch):
                index = first + np.arange(self.batch)
                batch = {
                    "image": normalise(pictures.images[index % count]),
                    "label": pictures.labels[index % count],
                    "weight": (index < count).astype(np.float32),
                }
                found = self._program(params, batch, np.int32(first), frozen_params)
                errors.append(np.asarray(found[0])[:, index < count])
        return float(np.concatenate(errors, 1).mean(dtype=np.float64))

    @functools.cached_property
    def _mesh(self) -> jax.sharding.Mesh:
        return self.config.mesh.build(jax.devices()[:1])

    @functools.cached_property
    def _program(self) -> jax.stages.Wrapped:
        config = self.config
        loss = HeldoutLoss(
            network=build.network(config),
            stages=build.stages(config),
            prediction=config.prediction,
            conditioner=config.conditioner,
            seed=self.noise,
        )
        return loss.program(self._mesh)


def as_many(pictures: Pictures, count: int) -> Pictures:
    """`count` of the pictures, evenly chosen; all where there are no more."""
    total = len(pictures.labels)
    places = np.linspace(0, total - 1, min(count, total)).round().astype(int)
    return Pictures(pictures.images[places], pictures.labels[places])
