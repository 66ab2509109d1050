"""The same few samples again and again: what a run's progress looks like."""

import dataclasses

import numpy as np

from pixelflow_jax.data.images import captioned_grid, grid, to_uint8
from pixelflow_jax.sampling.batches import Generator, Weights

COLUMNS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """Draws samples of what the conditioner reads, `given`, from fixed noise.

    `prompts` are the texts to write below them, empty for classes.
    """

    generator: Generator
    given: dict[str, np.ndarray]
    prompts: tuple[str, ...]
    seed: int

    def __call__(self, params: dict, frozen_params: dict) -> np.ndarray:
        """A picture, uint8 [h, w, 3], from the denoiser's and the encoder's parameters.

        `frozen_params` may hold those of other networks, too.
        """
        weights = Weights(params, frozen_params)
        drawn = self.generator(weights, self.given, seed=self.seed)
        images = to_uint8(drawn.images)
        columns = min(COLUMNS, len(images))
        if self.prompts:
            return captioned_grid(images, self.prompts, columns)
        return grid(images, columns)
