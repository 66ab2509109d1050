"""The arguments of a pipeline, by call, with the range of each."""

import pathlib
from collections.abc import Sequence
from typing import Annotated, TypedDict

from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.values import Count, Natural, Range, Seed

Side = Annotated[int, Range(low=1, high=16_384, also=(0,))]  # 0: as trained


class SamplingOptions(TypedDict, total=False):
    """How images are drawn: keyword arguments, all of which may be left away.

    Sizes default to the training size (0), `sampling` to the config's, and `solver`,
    `grid` and `guidance` to those of `sampling`.
    """

    height: Side
    width: Side
    sampling: Sampling | None
    solver: Solver | None
    grid: Grid | None
    guidance: Guidance | None


class DrawOptions(SamplingOptions, total=False):
    """How many images are drawn, from which noise, and what guidance leads away from.

    Each prompt or class is drawn `images_per_prompt` times (1), one after the other.
    Guidance leads away from `negative_prompt` (""), one for all or one for each prompt.
    Images are numbered from `first` (0) on; their noise depends on `seed` (0) and the
    number. `progress` (False) shows a bar.
    """

    negative_prompt: str | Sequence[str]
    images_per_prompt: Count
    seed: Seed
    first: Natural
    progress: bool


class Loading(TypedDict, total=False):
    """The arguments that say which files weights are read from, besides their path."""

    ema: str | float
    revision: str | None
    text_encoder: str | pathlib.Path
    tokenizer: str | pathlib.Path
    allow_nonfinite: bool


class Publishing(TypedDict, total=False):
    """The arguments that say how weights are written."""

    dtype: str
    samples: Sequence[int | str]
    name: str
    private: bool | None
    revision: str | None
    commit_message: str
    token: str | None


class Calling(TypedDict, total=False):
    """The other arguments of calls."""

    record: bool
    batch_size: Count
