"""XLA's flags: what tests are compiled with, and the commands that they start."""

import importlib.util
import os

# A compiler for TPUs that is installed ends the process at a flag it does not know.
WITHOUT_LIBTPU = importlib.util.find_spec("libtpu") is None
# Three times as fast to compile.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": "true",
}
if WITHOUT_LIBTPU:
    QUICK |= {
        "xla_cpu_use_fusion_emitters": "false",
        "xla_cpu_parallel_codegen_split_count": 1,
    }
# Options of one program, for a bound that only an optimised one keeps.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


def add_xla_flags(environment: os._Environ | dict[str, str], **added: object) -> None:
    """Add flags to its $XLA_FLAGS, but for those it holds. Before jax starts."""
    flags = environment.get("XLA_FLAGS", "")
    for name, value in added.items():
        flags += "" if name in flags else f" --{name}={value}"
    environment["XLA_FLAGS"] = flags.strip()
