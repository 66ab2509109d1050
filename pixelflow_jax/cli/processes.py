"""The flags by which several processes find each other, and what verbs do with them."""

from collections.abc import Iterator

from absl import flags

from pixelflow_jax import distributed, peers
from pixelflow_jax.cli import verbs
from pixelflow_jax.experiment import Experiment

COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, at which several processes meet. Default: what Open MPI, "
    "SLURM, a TPU pod or Kubernetes says, or JAX_COORDINATOR_ADDRESS.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of all processes. 1: alone, whatever started it."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0; process 0 writes and reports."
)

HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout",
    peers.HEARTBEAT,
    "Seconds of silence after which a process counts as lost, and the others end.",
    lower_bound=5,
)

OWN = ("process_id", "config")  # the number is each one's; configs are compared whole

# How the processes of this program found each other, once they have.
_found: list[distributed.Joining] = []


def start(verb: str) -> None:
    """Join the other processes, if there are any; StartError where that fails.

    Before anything touches devices. All must have the same versions and flags.
    """
    if "num_processes" not in verbs.VERBS[verb].flags():
        return
    joining = distributed.find(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if joining is None:
        return
    distributed.join(joining, heartbeat=HEARTBEAT.value, saves=verb == "train")
    _found[:] = [joining]
    given = {
        f"--{name}": flags.FLAGS[name].value
        for name in verbs.VERBS[verb].flags()
        if name not in OWN
    }
    distributed.agree({"the verb": verb, **distributed.versions(), **given})


def agree(config: Experiment) -> None:
    """Compare the config over the processes and say which these are; alone: nothing."""
    if not _found:
        return
    distributed.agree(dict(_leaves(config.to_dict(), "config")))
    try:
        shape = config.mesh.build().shape
    except ValueError:  # said in full where the config is checked
        return
    listed = ", ".join(f"{axis}={size}" for axis, size in shape.items())
    distributed.report(_found[0].launcher, listed)


def _leaves(data: object, path: str) -> Iterator[tuple[str, object]]:
    """The fields of a config as `to_dict` gives it, by their paths."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _leaves(value, f"{path}.{name}")
    elif isinstance(data, list):
        yield f"the length of {path}", len(data)
        for number, value in enumerate(data):
            yield from _leaves(value, f"{path}[{number}]")
    else:
        yield path, data
