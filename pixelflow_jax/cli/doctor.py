"""`pixelflow doctor`: does all that training needs work here, and how fast?"""

import functools
import pathlib

from absl import flags

from pixelflow_jax import distributed
from pixelflow_jax.doctor import kernels, machine, page
from pixelflow_jax.doctor.run import Patient
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment

DEFAULT = "emoji:demo"
ONLY = flags.DEFINE_list(
    "only", [], "Names of checks, as the page shows them: these alone, in its order."
)


def run_doctor(config: Experiment, folder: pathlib.Path | None, only: list[str]) -> int:
    """Examine this machine, all processes and a config; returns the exit code.

    The first process prints a page to standard output. `folder` is where a checkpoint
    is tried (`doctor.run.Patient`), `only` names checks (none: all).
    """
    checks = chosen(only, checks_of(config, folder))
    outcomes = []
    say(f"pixelflow doctor, config {config.name}")
    for outcome in page.examine(checks):
        say(page.shown(outcome))
        outcomes.append(outcome)
    say(page.summary(outcomes))
    return int(any(outcome.state == "FAILED" for outcome in outcomes))


def checks_of(config: Experiment, folder: pathlib.Path | None) -> list[page.Check]:
    """All checks in their order; each takes over what earlier ones have made."""
    patient, mesh = Patient(config, folder), config.mesh.build
    dtype = config.precision.compute
    return [
        page.Check("versions", machine.versions),
        page.Check("devices", lambda: machine.devices(mesh())),
        page.Check("rates", functools.partial(machine.rates, dtype)),
        page.Check("kernels", functools.partial(kernels.check, dtype)),
        page.Check("collectives", lambda: machine.collectives(mesh())),
        page.Check("config", patient.built),
        page.Check("loader", patient.loader),
        page.Check("steps", patient.steps),
        page.Check("checkpoint", patient.checkpoint),
    ]


# What a check takes over from others.
NEEDS = {
    "loader": ("config",),
    "steps": ("config",),
    "checkpoint": ("config", "steps"),
}


def chosen(names: list[str], checks: list[page.Check]) -> list[page.Check]:
    """The checks of these names, with those that they need; all if there are none."""
    known = [check.name for check in checks]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"--only={','.join(names)}: there is no check {unknown[0]}; there are "
            f"{', '.join(known)}."
        )
    wanted = {*names, *(need for name in names for need in NEEDS.get(name, ()))}
    return [check for check in checks if not names or check.name in wanted]


def say(text: str) -> None:
    """Print to standard output at once, in the first process."""
    if distributed.is_main():
        print(text, flush=True)
