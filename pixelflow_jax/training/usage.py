"""How much memory a run has taken."""

import pathlib
import resource
import sys

import jax

GB = 1e9


def memory() -> dict[str, float]:
    """The most that this process has held, in GB (1e9 bytes).

    "device_memory" is of the fullest of its devices, and absent where they do not say;
    "host_memory" of the process itself, without its data workers.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    host = {"host_memory": host_peak() / GB}
    return host | ({"device_memory": max(peaks) / GB} if peaks else {})


def host_peak() -> float:
    """The most bytes of the machine's memory that this process has held."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # ru_maxrss is inherited from whoever started the process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
