"""What runs Pallas kernels where: the platform of a program, and its backends.

Triton and Mosaic GPU on GPUs, Mosaic TPU on TPUs; on CPUs kernels are interpreted.
Pallas is imported where the first kernel is traced: all else runs without it.
"""

import functools
import importlib
import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import jax

LOG = logging.getLogger(__name__)

Backend = Literal["triton", "mosaic_gpu", "mosaic_tpu"]
# Who runs the kernels of a platform, by the word that asks for them. What is "auto" has
# gained where it was measured; the others run for who insists.
BACKENDS: dict[str, dict[str, Backend]] = {
    "gpu": {"auto": "triton", "pallas": "triton", "mosaic": "mosaic_gpu"},
    "tpu": {"auto": "mosaic_tpu", "pallas": "mosaic_tpu", "mosaic": "mosaic_tpu"},
    "cpu": {"pallas": "triton", "mosaic": "mosaic_tpu"},
}
PALLAS = "jax.experimental.pallas"
HOPPER = ("H100", "H200", "H800", "H20", "GH200")
HOPPER_MULTIPROCESSORS = 132
OLDEST = (0, 11, 2)  # jax whose Mosaic knows all that our kernels for Hopper use
MODULES = {
    "triton": (f"{PALLAS}.triton", "Pallas' Triton backend"),
    "mosaic_gpu": (f"{PALLAS}.mosaic_gpu", "Pallas' Mosaic GPU backend"),
    "mosaic_tpu": (f"{PALLAS}.tpu", "Pallas' TPU backend"),
}


class LazyModule:
    """A module that is imported where something of it is first asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu
    from jax.experimental.pallas import triton

    plgpu: Any  # differs from one jax to the next
else:
    pl = LazyModule(PALLAS)
    plgpu = LazyModule(MODULES["mosaic_gpu"][0])
    pltpu = LazyModule(MODULES["mosaic_tpu"][0])
    triton = LazyModule(MODULES["triton"][0])


def platform() -> str:
    """What the program that is being traced will run on: "cpu", "gpu" or "tpu".

    The devices of the mesh in use, which need not be there; without one, the default.
    """
    described = _described()
    return jax.default_backend() if described is None else described.platform


def is_hopper() -> bool:
    """Whether the program runs on GPUs of compute capability 9.0."""
    kind = getattr(_device(), "device_kind", "")
    return platform() == "gpu" and any(name in kind for name in HOPPER)


def multiprocessors() -> int:
    """How many multiprocessors a GPU of the program has; those of an H100 if unknown.

    Where the program's devices are not there, their description says it.
    """
    found = (getattr(_device(), name, None) for name in ("core_count", "num_cores"))
    return next((n for n in found if n), HOPPER_MULTIPROCESSORS)


def busy(tiles: float, at_once: int) -> float:
    """The share of places that have work, where so many tiles run so many at once.

    The last round is as long as the others, however few tiles it has.
    """
    rounds = tiles / at_once
    return rounds / math.ceil(rounds) if tiles else 0.0


def _device() -> Any:
    """A device of the mesh in use, which need not be there; without one, the first."""
    described = _described()
    return jax.local_devices()[0] if described is None else described


def _described() -> Any:
    """The description of the devices of the mesh in use; None without one."""
    return getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)


def is_interpreted() -> bool:
    """Whether kernels run as plain operations, for want of a GPU or TPU."""
    return platform() not in ("gpu", "tpu")


def missing_hopper() -> str:
    """Why our kernels for Hopper GPUs cannot run here; empty where they can."""
    if not is_hopper():
        return "there is no Hopper GPU (H100, H200)"
    if jax.__version_info__ < OLDEST:
        return f"jax {jax.__version__} is older than {'.'.join(map(str, OLDEST))}"
    return missing("mosaic_gpu")


def missing(backend: Backend = "triton") -> str:
    """Why a backend cannot launch kernels; empty where it can.

    Interpreted, Triton's need Pallas alone.
    """
    if backend == "triton" and is_interpreted():
        return unimportable(PALLAS, "Pallas")
    return unimportable(*MODULES[backend])


@functools.cache
def unimportable(module: str, what: str) -> str:
    """Why a module cannot be imported, which has `what`; empty where it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"jax {jax.__version__} lacks {what} ({error})"
    return ""


@functools.cache  # one line a process
def is_available(backend: Backend = "triton") -> bool:
    """Whether a backend can launch kernels; says so once where it cannot."""
    why = missing(backend)
    if why:
        LOG.warning("%s: the compiler does the work of its kernels.", why)
    return not why


def require(backend: Backend, asked: str) -> None:
    """Raises ValueError where kernels that were `asked` for cannot be launched."""
    why = missing(backend)
    if why:
        raise ValueError(f'{asked} cannot be had: {why}; set it to "auto".')
