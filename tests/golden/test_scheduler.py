"""PixelFlow's scheduler against the official tables."""

import re

import jax.numpy as jnp
import numpy as np

from pixelflow_jax.flow.path import block_noise, pyramid
from pixelflow_jax.flow.time import Grid, Uniform
from tests.golden import harness


def names(fixture) -> list[str]:
    return list(fixture.config["schedulers"])


def stages_of(options: dict):
    known = {"num_train_timesteps": 1000, "num_stages": None, "gamma": -1 / 3}
    known["set_timesteps"] = []
    o = harness.take(options, known)
    return pyramid(o["num_stages"], o["gamma"], o["num_train_timesteps"])


@harness.parametrize("pixelflow_scheduler", None, names)
def test_stages(fixture, case):
    options = fixture.config["schedulers"][case]
    stages, recorded = stages_of(options), fixture.under(f"out/{case}")
    close = lambda ours, name: np.testing.assert_allclose(
        ours, recorded[name], atol=1e-6, err_msg=name
    )
    close([stage.start for stage in stages], "start_t")
    close([stage.end for stage in stages], "end_t")
    close([0.0, *(stage.end for stage in stages[:-1])], "original_start_t")
    if len(stages) > 1:
        close([stage.jump for stage in stages[1:]], "renoise_alpha_beta")
    for stage, table in zip(stages, recorded["Timesteps_per_stage"], strict=True):
        t = np.arange(len(table)) / len(table)
        np.testing.assert_allclose(stage.timestep(t), table, atol=1e-6)


@harness.parametrize("pixelflow_scheduler", None, names)
def test_discrete_times_are_those_of_the_table(fixture, case):
    levels = fixture.config["schedulers"][case]["num_train_timesteps"]
    index = np.arange(levels)
    law = Uniform(levels=levels)
    t = law.transform(jnp.asarray((index + 0.5) / levels, jnp.float32))
    np.testing.assert_allclose(t, index / levels, atol=1e-7)


@harness.parametrize("pixelflow_scheduler", None, names)
def test_sampling_grids(fixture, case):
    recorded = fixture.under(f"out/{case}/set_timesteps")
    options = fixture.config["schedulers"][case]
    stages, tiny = stages_of(options), 1 / options["num_train_timesteps"]
    for name, theirs in recorded.items():
        steps, shift, stage = re.fullmatch(
            r"steps(\d+)_shift([\d.]+)/stage(\d+)/\w+", name
        ).groups()
        grid = Grid(steps=int(steps), shift=float(shift), last_step=tiny)
        ours = grid.times(int(stage))
        if name.endswith("Timesteps"):
            ours = stages[int(stage)].timestep(ours[:-1])
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=2e-7, err_msg=name)


@harness.parametrize("pixelflow_scheduler", None, names)
def test_block_noise(fixture, case):
    """Every unit vector through our linear map: its covariance is the official one."""
    gamma = fixture.config["schedulers"][case]["gamma"]
    basis = jnp.eye(4).reshape(4, 2, 2, 1)
    factor = np.asarray(block_noise(basis, gamma), np.float64).reshape(4, 4)
    recorded = fixture.under(f"out/{case}")
    jitter = 1e-6  # with which the official code makes its matrix definite
    ours = factor.T @ factor + jitter * np.eye(4)
    np.testing.assert_allclose(ours, recorded["block_noise_covariance"], atol=3e-7)
    tril = recorded["block_noise_scale_tril"].astype(np.float64)
    np.testing.assert_allclose(ours, tril @ tril.T, atol=1e-6)
