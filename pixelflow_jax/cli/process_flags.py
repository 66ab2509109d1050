"""What the flags of several processes say; loads no jax, for commands without any."""

import argparse

from pixelflow_jax.cli.parser import at_least

SHORTEST = 5  # seconds of silence that may end the others
COORDINATOR = (
    "HOST:PORT of process 0, at which several processes meet. Default: what Open MPI, "
    "SLURM, a TPU pod or Kubernetes says, or JAX_COORDINATOR_ADDRESS."
)
NUM_PROCESSES = "Number of all processes. 1: alone, whatever started it."
PROCESS_ID = "Number of this process, from 0; process 0 writes and reports."
HEARTBEAT = (
    "Seconds of silence after which a process counts as lost, and the others end."
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `cli.processes`, for a command that reads its own."""
    add = parser.add_argument_group("several processes").add_argument
    add("--coordinator", metavar="HOST:PORT", help=COORDINATOR)
    add("--num_processes", type=at_least(1), metavar="N", help=NUM_PROCESSES)
    add("--process_id", type=at_least(0), metavar="N", help=PROCESS_ID)
    seconds = at_least(SHORTEST)
    add("--heartbeat_timeout", type=seconds, metavar="SECONDS", help=HEARTBEAT)
