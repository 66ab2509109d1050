"""XLA's flags: what tests are compiled with, and the commands that they start."""

import importlib.metadata
import importlib.util
import os

# A flag that is not known ends the process: of CPUs for the compiler for TPUs, where it
# is installed, and of older compilers for newer ones.
WITHOUT_LIBTPU = importlib.util.find_spec("libtpu") is None
HAS_EMITTERS = importlib.metadata.version("jaxlib").startswith("0.10.")
# Three times as fast to compile.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": "true",
}
if WITHOUT_LIBTPU:
    QUICK["xla_cpu_parallel_codegen_split_count"] = 1
if WITHOUT_LIBTPU and HAS_EMITTERS:
    QUICK["xla_cpu_use_fusion_emitters"] = "false"
# Options of one program, for a bound that only an optimised one keeps.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if HAS_EMITTERS:
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True


def add_xla_flags(environment: os._Environ | dict[str, str], **added: object) -> None:
    """Add flags to its $XLA_FLAGS, but for those it holds. Before jax starts."""
    flags = environment.get("XLA_FLAGS", "")
    for name, value in added.items():
        flags += "" if name in flags else f" --{name}={value}"
    environment["XLA_FLAGS"] = flags.strip()
