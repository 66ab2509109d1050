"""Compiler settings that must stand before the first use of JAX."""

import os

# XLA's Triton matrix products crashed some programs on Hopper GPUs, and cuBLAS was
# faster than they were for transformers of these sizes. Other backends ignore the flag.
FLAGS = {"--xla_gpu_enable_triton_gemm": "false"}


def configure() -> None:
    """Add our XLA flags to XLA_FLAGS, except those that the user has set."""
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
