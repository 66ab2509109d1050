"""The arguments of a pipeline, by call, with the range of each."""

import pathlib
from collections.abc import Sequence
from typing import Annotated, TypedDict

import numpy as np

from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.sampling.watching import Callback
from pixelflow_jax.values import (
    Count,
    Natural,
    Range,
    Scale,
    Seed,
    Shift,
    Steps,
    Time,
)

Side = Annotated[int, Range(low=1, high=16_384, also=(0,))]  # 0: as trained


class SamplingOptions(TypedDict, total=False):
    """How images are drawn: keyword arguments, all of which may be left away.

    Sizes default to the training size (0), `sampling` to the config's, and `solver`,
    `grid` and `guidance` to those of `sampling`. `preset` names the settings of a
    paper's table (`sampling.presets`), and `solver` may be a name as well ("heun").
    `steps` is one number, or one a stage; `shift` that of the times; `guidance` may be
    the scale alone, and `guidance_interval` are the two times between which it acts.
    `num_inference_steps` is another word for `steps`, `guidance_scale` for `guidance`.
    """

    height: Side
    width: Side
    sampling: Sampling | None
    preset: str | None
    solver: Solver | str | None
    grid: Grid | None
    steps: Steps | tuple[Steps, ...] | None
    num_inference_steps: Steps | tuple[Steps, ...] | None
    shift: Shift | None
    guidance: Guidance | Scale | None
    guidance_scale: Scale | None
    guidance_interval: tuple[Time, Time] | None


class DrawOptions(SamplingOptions, total=False):
    """How many images are drawn, from which noise, and what guidance leads away from.

    Each prompt or class is drawn `images_per_prompt` times (1), one after the other.
    Guidance leads away from `negative_prompt` (""), one for all or one for each prompt.
    Images are numbered from `first` (0) on; their noise depends on `seed` (0) and the
    number. With a list of seeds, one an image, each is number `first` of its own seed.
    `progress` (False) shows a bar. `callback(step, steps, images)` is called after
    every step, of which there are `steps` in the whole call, with what can be seen of
    all images, uint8 [n, height, width, 3]: what is drawn, the clean images that the
    network sees in those being drawn, and grey for those that wait. What it raises ends
    the call.
    """

    negative_prompt: str | Sequence[str]
    images_per_prompt: Count
    seed: Seed | tuple[Seed, ...] | list[Seed] | range | np.ndarray
    first: Natural
    progress: bool
    callback: Callback | None


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
