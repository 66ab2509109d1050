"""What a program sets once, before it computes."""

import hashlib
import logging
import os
import pathlib
import platform
import re
import sys
import tempfile
import warnings
from typing import Any, cast

import jax
from absl import logging as absl_logging
from jax.experimental.compilation_cache import compilation_cache

LOG = logging.getLogger(__name__)

# XLA's flags by backend. Those of libtpu have a variable of their own: jaxlib ends the
# program where XLA_FLAGS holds a flag that it does not know.
FLAGS = {
    # XLA's Triton matrix products crashed some programs on Hopper GPUs, and cuBLAS was
    # faster than they were for transformers of these sizes.
    "gpu": {
        "--xla_gpu_enable_triton_gemm": "false",
        # Products that share an input are not made one: putting their matrices side by
        # side, again in every step, costs more than it spares.
        "--xla_gpu_dot_merger_threshold_mb": "0",
    },
    "tpu": {},
}
COMMAND_BUFFER = "--xla_gpu_enable_command_buffer"
# What a GPU launches as one graph: XLA's own choice, and whole loops.
COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
LOOPS = "CONDITIONAL,WHILE"
VARIABLES = {"gpu": "XLA_FLAGS", "tpu": "LIBTPU_INIT_ARGS"}
# "off", or the folder of compiled programs.
CACHE = "PIXELFLOW_COMPILE_CACHE"
CPU_FACTS = pathlib.Path("/proc/cpuinfo")


def configure() -> None:
    """Set what must be set before JAX starts, and hush libraries.

    The flags of `FLAGS` are added to the variable that their backend reads, except
    those that the user has set there; a backend that is absent ignores its own.
    """
    for backend, flags in FLAGS.items():
        variable = VARIABLES[backend]
        given = os.environ.get(variable, "").split()
        named = {flag.partition("=")[0] for flag in given}
        added = [
            f"{name}={value}" for name, value in flags.items() if name not in named
        ]
        if added:
            os.environ[variable] = " ".join([*given, *added])
    _hush()


def loop_options() -> dict[str, str]:
    """XLA's options for a program that is one long loop, as a sampler is.

    On GPUs the loop is launched as a whole, and the host has no part in its steps.
    Empty elsewhere, and where XLA_FLAGS says what is launched so. Starts JAX.
    """
    said = COMMAND_BUFFER in os.environ.get("XLA_FLAGS", "")
    if said or jax.default_backend() != "gpu":
        return {}
    return {COMMAND_BUFFER.removeprefix("--"): f"{COMMANDS},{LOOPS}"}


def _hush() -> None:
    """Silence what libraries say about themselves."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    # These are Orbax's, about itself; what goes wrong reaches us as an exception.
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", "coroutine 'async_serialize.* never awaited")


def keep_programs() -> None:
    """Keep compiled programs on disk for the next process.

    The folder is that of PIXELFLOW_COMPILE_CACHE ("off": none), or else the one that
    JAX has been given (JAX_COMPILATION_CACHE_DIR), or else `pixelflow_jax/programs` in
    $XDG_CACHE_HOME or ~/.cache. Each kind of CPU has a folder of its own in it, as a
    program may ask for instructions that another one lacks; where the kind is not known
    nothing is kept. Starts JAX. Warns where the folder cannot be written.
    """
    named = os.environ.get(CACHE, "")
    known = cast(Any, jax.config).jax_compilation_cache_dir
    if named == "off" or (known and not named):
        return
    folder = named or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "pixelflow_jax", "programs"
    )
    if jax.default_backend() == "cpu":
        kind = cpu_kind()
        if kind is None:
            return
        folder = os.path.join(folder, f"cpu-{kind}")
    try:
        folder = pathlib.Path(folder).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError) as error:
        LOG.warning(
            "Compiled programs are not kept, as %s cannot be written (%s): name "
            "another folder in %s, or set it to off.",
            *(folder, error, CACHE),
        )
        return
    if str(folder) != known:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Whether there is a cache is decided when a process first compiles.
        compilation_cache.reset_cache()


def cpu_kind() -> str | None:
    """A digest of the instructions that this machine's CPU has; None where unknown."""
    try:
        text = CPU_FACTS.read_text("utf-8", "replace")
    except OSError:
        return None
    # "flags" on x86, "Features" on ARM.
    facts = re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.MULTILINE)
    if not facts:
        return None
    whole = "\n".join([platform.machine(), *sorted(set(facts))])
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Python's usual report, except for what a failed save or restore leaves behind.

    For every array TensorStore tells an event loop that is no longer there how it went,
    a traceback each; the failure itself has been reported.
    """
    known = ("Event loop is closed", "Encountered error while reading array index")
    if not str(unraisable.exc_value).startswith(known):
        sys.__unraisablehook__(unraisable)
