"""What a program sets once, before the first use of JAX."""

import logging
import os
import sys
import warnings

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
    # These are Orbax's, about itself; what goes wrong reaches us as an exception.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", "coroutine 'async_serialize.* never awaited")


def _unraisable(unraisable: object) -> None:
    """Python's usual report, except for what a failed save or restore leaves behind.

    For every array TensorStore tells an event loop that is no longer there how it went,
    a traceback each; the failure itself has been reported.
    """
    known = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(known):
        sys.__unraisablehook__(unraisable)
