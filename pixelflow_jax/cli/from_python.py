"""What commands do, as functions for a notebook or a script: training."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from pixelflow_jax import backend, config_overrides
from pixelflow_jax.cli.train import run_training
from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.paths import local_path
from pixelflow_jax.pretrained.pipeline import Pipeline


def train(
    config: str | Experiment,
    workdir: str | os.PathLike[str],
    changes: Sequence[str] | Mapping[str, object] = (),
    *,
    yes: bool = False,
) -> Pipeline:
    """Train as `pixelflow train` does, and load what came of it.

        own = pf.train("emoji", "runs/mine", {"steps": 500})
        own("flags").grid()

    `config` is an experiment, or what `load_config` takes: a name, NAME:VARIANT, or a
    file. `changes` set single fields, by their path or as flags. A run that lies in
    `workdir` goes on from its newest checkpoint; Ctrl-C saves and ends it. `yes` lets
    what takes very long begin. Raises what the command would say.
    """
    backend.configure()
    folder = local_path(os.fspath(workdir), "workdir", ConfigError)
    flags = config_overrides.as_flags(changes)
    if isinstance(config, str):
        config = load_config(config, flags)
    elif not isinstance(config, Experiment):
        raise ConfigError(
            f"config={config!r:.100} must be a name such as 'emoji', the path of a "
            "config file, or an Experiment."
        )
    elif flags:
        config = config_overrides.apply(config, flags)
    run_training(config, pathlib.Path(folder), yes=yes)
    return Pipeline.from_pretrained(folder)
