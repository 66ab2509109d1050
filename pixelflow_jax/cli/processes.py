"""The flags by which several processes find each other, and what verbs do with them."""

from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from pixelflow_jax import distributed, peers, sharding
from pixelflow_jax.cli import process_flags, verbs
from pixelflow_jax.experiment import Experiment

COORDINATOR = flags.DEFINE_string("coordinator", None, process_flags.COORDINATOR)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, process_flags.NUM_PROCESSES)
PROCESS_ID = flags.DEFINE_integer("process_id", None, process_flags.PROCESS_ID)
HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_timeout",
    peers.HEARTBEAT,
    process_flags.HEARTBEAT,
    lower_bound=process_flags.SHORTEST,
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
    given = {name: flags.FLAGS[name].value for name in verbs.VERBS[verb].flags()}
    meet(verb, given, saves=verb == "train")


def meet(verb: str, given: Mapping[str, Any], saves: bool = False) -> None:
    """The same for a command that has read its flags by itself, into `given`.

    One that `saves` at SIGTERM is told of it by JAX.
    """
    joining = distributed.find(
        given["coordinator"], given["num_processes"], given["process_id"]
    )
    if joining is None:
        return
    heartbeat = given["heartbeat_timeout"] or peers.HEARTBEAT
    distributed.join(joining, heartbeat=heartbeat, saves=saves)
    _found[:] = [joining]
    alike = {f"--{name}": value for name, value in given.items() if name not in OWN}
    distributed.agree({"the verb": verb, **distributed.versions(), **alike})


def agree(config: Experiment) -> None:
    """Compare the config over the processes and say which these are; alone: nothing."""
    if not _found:
        return
    distributed.agree(dict(_leaves(config.to_dict(), "config")))
    try:
        mesh = config.mesh.build()
    except ValueError:  # said in full where the config is checked
        return
    sharding.connect(mesh)
    listed = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
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
