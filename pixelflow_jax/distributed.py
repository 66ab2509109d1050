"""How the processes of one run find each other, and whether they were given the same.

A launcher says in environment variables who takes part: they are looked for in JAX's
own order, or flags say it. Nothing here starts JAX's devices before the processes are
joined; one process alone is left as it is.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax import peers
from pixelflow_jax.errors import LOST, STOPPED, StartError, UserError

Result = TypeVar("Result")

ADDRESS = "JAX_COORDINATOR_ADDRESS"
DEVICES = "JAX_LOCAL_DEVICE_IDS"
# What JAX asks of SLURM: a shell of `salloc`, or a batch script, lacks some of them.
SLURM_STEP = (
    *("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS"),
    *("SLURM_PROCID", "SLURM_LOCALID"),
)
PACKAGES = (
    *("pixelflow_jax", "jax", "jaxlib", "flax", "optax"),
    *("orbax-checkpoint", "grain"),
)
WAIT = 300  # seconds for all processes to come
FAREWELL = 10  # seconds that a process which failed waits for the others
ALONE = "or --num_processes=1 to run as one process"


class Joining(NamedTuple):
    """Where processes meet: what is None is for JAX to find out.

    `launcher` names who started them, `local_device` is this process's one device.
    """

    launcher: str
    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    local_device: int | None = None


def find(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Joining | None:
    """How this process finds the others; None where it runs alone.

    The arguments are those of --coordinator (host:port of process 0), --num_processes
    and --process_id; they win over the environment (default: os.environ). Raises
    StartError for what is incomplete, contradicts itself, or lacks its launcher.
    """
    environment = os.environ if environment is None else environment
    address = coordinator or environment.get(ADDRESS)
    _check(address, processes, index)
    if processes == 1:
        return None
    if address and processes and index is not None:
        return Joining("flags", address, processes, index)
    found = _launched(environment)
    if found is None:
        if address or processes or index is not None:
            raise _incomplete(address, processes, index)
        _refuse_allocation(environment)
        return None
    found = found._replace(
        coordinator=address,
        processes=processes or found.processes,
        index=found.index if index is None else index,
    )
    if found.processes == 1:
        return None
    _check(found.coordinator, found.processes, found.index)
    _refuse_unknown_coordinator(found, environment)
    return found


def _check(address: str | None, processes: int | None, index: int | None) -> None:
    """Refuse numbers out of range, and an address without a port."""
    if processes is not None and processes < 1:
        raise StartError(
            f"--num_processes={processes} must be 1 or more: give the number of all "
            "processes, on all hosts."
        )
    if index is not None and not 0 <= index < (processes or index + 1):
        last = "" if processes is None else f" to {processes - 1}"
        raise StartError(
            f"--process_id={index} is out of range: the processes are numbered from 0"
            f"{last}, each number once."
        )
    host, _, port = (address or "host:1").rpartition(":")
    if (
        not host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 2**16
    ):
        raise StartError(
            f"The coordinator {address!r} is no HOST:PORT: give the name of the host "
            "of process 0 and a free port there, as in --coordinator=node1:12345."
        )


def _launched(environment: Mapping[str, str]) -> Joining | None:
    """What a launcher says of this process, in JAX's own order."""
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return Joining(
            "Open MPI",
            processes=_number(environment, "OMPI_COMM_WORLD_SIZE"),
            index=_number(environment, "OMPI_COMM_WORLD_RANK"),
            local_device=_device(environment, "OMPI_COMM_WORLD_LOCAL_RANK"),
        )
    if all(name in environment for name in SLURM_STEP):
        return Joining(
            "SLURM",
            processes=_number(environment, "SLURM_NTASKS"),
            index=_number(environment, "SLURM_PROCID"),
            local_device=_device(environment, "SLURM_LOCALID"),
        )
    if _on_tpu(environment):
        return Joining("Cloud TPU")
    if "KUBERNETES_SERVICE_HOST" in environment:
        # Every pod has that variable: those of an indexed job are numbered.
        if "JOB_COMPLETION_INDEX" not in environment:
            return None
        return Joining("Kubernetes", index=_number(environment, "JOB_COMPLETION_INDEX"))
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError) as error:
        raise StartError(
            f"{name}={environment.get(name)!r} of the launcher is no number: say it by "
            "--coordinator, --num_processes and --process_id."
        ) from error


def _device(environment: Mapping[str, str], name: str) -> int | None:
    """The one device of a process, by its number on its host; None if that is said."""
    if environment.get(DEVICES):
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    # A launcher that shows each process one GPU alone: all of these are number 0.
    return 0 if visible and "," not in visible else _number(environment, name)


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether this is a host with TPUs that a program may use."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or not importlib.util.find_spec("libtpu"):
        return False
    devices = pathlib.Path("/dev")
    return bool([*devices.glob("accel[0-9]*"), *devices.glob("vfio/[0-9]*")])


def _incomplete(
    address: str | None, processes: int | None, index: int | None
) -> StartError:
    """That some of what processes must know is missing, and which."""
    values = (address, processes, index)
    names = ("--coordinator", "--num_processes", "--process_id")
    given = [
        name for name, value in zip(names, values, strict=True) if value is not None
    ]
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    said = " and ".join(given).replace(names[0], f"{names[0]} ({address})")
    return StartError(
        f"{said} alone do not say how several processes find each other: "
        f"{' and '.join(missing)} must be given too, as no launcher says it. Each "
        "process is given, as process 1 of 2, --coordinator=HOST:PORT "
        f"--num_processes=2 --process_id=1 (docs/launch.md); {ALONE[3:]} give that."
    )


def _refuse_allocation(environment: Mapping[str, str]) -> None:
    """Refuse a SLURM job of several tasks in which none has been started."""
    job, tasks = environment.get("SLURM_JOB_ID"), environment.get("SLURM_NTASKS", "1")
    if job is None or not tasks.isdigit() or int(tasks) == 1:
        return
    missing = next(name for name in SLURM_STEP if name not in environment)
    raise StartError(
        f"SLURM job {job} has {tasks} tasks, but this is none of them: {missing} is "
        "not set, as in a shell of `salloc` or a batch script. Put `srun` before the "
        f"command, {ALONE}."
    )


def _refuse_unknown_coordinator(found: Joining, environment: Mapping[str, str]) -> None:
    """Refuse a launcher from which JAX cannot learn where process 0 is."""
    if found.coordinator:
        return
    if found.launcher == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise StartError(
            f"Open MPI started {found.processes} processes but does not say where the "
            "first one runs (from its version 5 on): add --coordinator=HOST:PORT, with "
            f"that host and a free port, {ALONE}."
        )
    if found.launcher == "Kubernetes" and not importlib.util.find_spec("kubernetes"):
        raise StartError(
            f"This is pod {found.index} of an indexed Kubernetes job, and the others "
            "cannot be found without the package kubernetes: pip install 'jax[k8s]', "
            f"or give --coordinator and --num_processes, {ALONE}."
        )


def join(
    joining: Joining,
    wait: int = WAIT,
    heartbeat: int = peers.HEARTBEAT,
    saves: bool = False,
) -> None:
    """Join the other processes, which must come within `wait` seconds.

    Must run before anything asks for devices. On CPUs the processes exchange arrays by
    gloo. One that is silent for `heartbeat` seconds ends the others. A program that
    `saves` at SIGTERM is told of it by JAX; others end. Raises StartError where they do
    not find each other.
    """
    jax.config.update("jax_enable_preemption_service", saves)
    if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = joining.coordinator and joining.processes and joining.index is not None
    # JAX aborts the program where time is over: this says why before.
    clock = threading.Timer(wait, _give_up, [joining, wait])
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(
            joining.coordinator,
            joining.processes,
            joining.index,
            joining.local_device,
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=wait + FAREWELL,
            heartbeat_timeout_seconds=heartbeat,
        )
        peers.watch()
    except (ValueError, RuntimeError, OSError) as error:
        if joining.launcher == "Cloud TPU" and isinstance(error, ValueError):
            return  # a host with TPUs that belongs to no pod
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise StartError(_not_found(joining, wait, first[0][:200])) from error
    finally:
        clock.cancel()
    if jax.default_backend() == "cpu":
        # Not every process finds a program that is kept, and the others compile for
        # longer than the 30 s that gloo waits for them.
        jax.config.update("jax_enable_compilation_cache", False)


def _give_up(joining: Joining, wait: int) -> None:
    """End a process that waits in vain; its main thread cannot, within JAX."""
    reason = f"{wait} s are over"
    print(f"\nStartError: {_not_found(joining, wait, reason)}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(LOST)


def _not_found(joining: Joining, wait: int, reason: str) -> str:
    who = "" if joining.index is None else f"Process {joining.index} of "
    many = "the processes" if joining.processes is None else str(joining.processes)
    text = (
        f"{who}{many} did not find the others by {joining.launcher}, at "
        f"{joining.coordinator or 'the coordinator that JAX chose'}: {reason}. All "
        f"must be started within {wait} s, each number once, and reach process 0 at "
        "that free port of its host (docs/launch.md)."
    )
    return text[0].upper() + text[1:]


def is_main() -> bool:
    """Whether this process is the one that writes and speaks; starts no devices."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def report(launcher: str, mesh: str) -> None:
    """Say in one line which processes and devices were found; nothing when alone."""
    if not jax.distributed.is_initialized():
        return
    name = hashlib.sha256(socket.gethostname().encode()).digest()[:8]
    hosts = len(np.unique(_gathered(np.frombuffer(name, np.uint8)), axis=0))
    if jax.process_index() == 0:
        kind = jax.devices()[0].device_kind
        print(
            f"{jax.process_count()} processes on {hosts} host{'s' * (hosts > 1)} "
            f"(found by {launcher}), {jax.device_count()} devices ({kind}), "
            f"{jax.local_device_count()} in each process; mesh {mesh}",
            file=sys.stderr,
            flush=True,
        )


def versions() -> dict[str, str]:
    """The versions that all processes must share, the package's own source included."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[f"version of {name}"] = importlib.metadata.version(name)
    root, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found | {"source of pixelflow_jax (sha256)": digest.hexdigest()[:12]}


def agree(facts: Mapping[str, object]) -> None:
    """Raise StartError, in every process, where their `facts` are not the same.

    `facts` are what JSON can hold, by what they are called. All processes must call
    this; a process alone has nothing to compare.
    """
    if not jax.distributed.is_initialized():
        return
    text = json.dumps(facts, sort_keys=True, default=str).encode()
    digests = _gathered(np.frombuffer(hashlib.sha256(text).digest(), np.uint8))
    if (digests == digests[0]).all():
        return
    raise StartError(difference(everyones(facts)))


def everyones(value: object) -> list:
    """What every process gives here, in their order; a list of one when alone.

    `value` is what JSON can hold. All processes must call this.
    """
    if not jax.distributed.is_initialized():
        return [value]
    text = json.dumps(value, default=str).encode()
    sizes = _gathered(np.array([len(text)], np.int32))[:, 0]
    padded = np.frombuffer(text.ljust(int(sizes.max())), np.uint8)
    return [json.loads(line.tobytes()) for line in _gathered(padded)]


def of_first(work: Callable[[], Result]) -> Result:
    """What `work` gives in process 0, in every process; it runs there alone.

    That must be what JSON can hold. A UserError of it is raised in every process, which
    all must call this.
    """
    value, problem, failure = None, "", None
    if is_main():
        try:
            value = work()
        except UserError as error:
            problem, failure = str(error), error
    value, problem = everyones([value, problem])[0]
    if problem:
        raise failure or UserError(problem)
    return cast(Result, value)


def _gathered(row: np.ndarray) -> np.ndarray:
    """The rows of all processes, [processes, ...]."""
    rows = np.asarray(multihost_utils.process_allgather(row))
    return rows.reshape(jax.process_count(), *row.shape)


def difference(every: Sequence[Mapping[str, object]]) -> str:
    """The first process that differs from process 0, and the first fact in which."""
    first = every[0]
    for index, facts in enumerate(every):
        for name in [*first, *(name for name in facts if name not in first)]:
            ours, theirs = first.get(name, "absent"), facts.get(name, "absent")
            if ours != theirs:
                return (
                    f"Process {index} of {len(every)} differs from process 0 in "
                    f"{name}: {str(theirs)[:80]} instead of {str(ours)[:80]}. Start "
                    "all processes by the same command, config and environment."
                )
    return "The processes differ, but not in what they were asked."


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """End a process that fails soon, though the others have not come to their end.

    JAX lets processes leave together: one that failed alone would wait for minutes for
    others, which wait for it.
    """
    try:
        yield
    except BaseException as failure:
        if jax.distributed.is_initialized():
            known = isinstance(failure, SystemExit | UserError)
            code = failure.code if known else 1
            if code not in (0, None, STOPPED):
                number = code if isinstance(code, int) else 1
                clock = threading.Timer(FAREWELL, os._exit, [number])
                clock.daemon = True
                clock.start()
        raise
