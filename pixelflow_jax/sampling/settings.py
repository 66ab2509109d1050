"""How images are drawn, as a node of the config."""

import dataclasses

from pixelflow_jax.flow.guidance import ClassifierFree, Guidance
from pixelflow_jax.flow.solver import Euler, Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.values import Batch


@dataclasses.dataclass(kw_only=True)
class Sampling:
    """How images are drawn; the defaults are PixNerd's (Euler, 50 steps, CFG 3.5).

    `batch_size` is the number of images that a GPU or TPU draws at a time, at most.
    """

    solver: Solver = dataclasses.field(default_factory=Euler)
    grid: Grid = dataclasses.field(default_factory=Grid)
    guidance: Guidance = dataclasses.field(
        default_factory=lambda: ClassifierFree(scale=3.5, low=0.1, high=1.0)
    )
    batch_size: Batch = 64
