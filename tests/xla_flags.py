"""XLA's flags: what tests are compiled with, and the commands that they start."""

import os

# Twice as fast to compile. What mostly runs, or has a bound that only an optimised
# program keeps, goes without.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": "true",
}


def add_xla_flags(environment: os._Environ | dict[str, str], **added: object) -> None:
    """Add flags to its $XLA_FLAGS, but for those it holds. Before jax starts."""
    flags = environment.get("XLA_FLAGS", "")
    for name, value in added.items():
        flags += "" if name in flags else f" --{name}={value}"
    environment["XLA_FLAGS"] = flags.strip()
