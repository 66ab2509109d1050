"""What a program sets once, before the first use of JAX."""

import logging
import os

from absl import logging as absl_logging

# XLA's Triton matrix products crashed some programs on Hopper GPUs, and cuBLAS was
# faster than they were for transformers of these sizes. Other backends ignore the flag.
FLAGS = {"--xla_gpu_enable_triton_gemm": "false"}


def configure() -> None:
    """Add our XLA flags to XLA_FLAGS, except those the user has set; hush libraries."""
    given = os.environ.get("XLA_FLAGS", "")
    added = [f"{name}={value}" for name, value in FLAGS.items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
    absl_logging.set_verbosity(absl_logging.WARNING)
    # Orbax's warnings are about Orbax; what goes wrong reaches us as an exception.
    absl_logging.get_absl_logger().setLevel(logging.CRITICAL)
