"""Who computes an operation, a kernel or the compiler: said once for a whole program.

A network says it where its functions are traced (`choose`); the operations ask
(`kernel_backend`). They ask once, in the forward pass: a gradient follows the choice of
the pass that it belongs to, wherever it is traced.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.backends import (
    BACKENDS,
    Backend,
    is_available,
    require,
)
from pixelflow_jax.nn.precision import check_word

Fusion = Literal["auto", "pallas", "mosaic", "xla"]
Attention = Literal["auto", "xla", "cudnn", "hopper", "splash"]
HALF = (jnp.bfloat16, jnp.float16)


@dataclasses.dataclass(kw_only=True)
class Kernels:
    """Which operations run as kernels of their own; changes speed, never results.

    `blocks`: what lies between a block's matrix products; `field`: the MLPs of a neural
    field. "pallas" insists on our kernels, "mosaic" on those that need no Triton (on
    GPUs fewer operations have one), "xla" leaves all to the compiler; "auto" takes the
    kernels that gain, on GPUs and TPUs in half precision, for the sizes they know. On
    Hopper GPUs "auto" and "mosaic" have an MLP's first products with their activation,
    where that gains.
    `attention`: "cudnn" insists on cuDNN's flash attention, "hopper" on our kernels for
    Hopper GPUs, "splash" on the one that JAX ships for TPUs, "xla" on the compiler;
    "auto" takes "hopper" where it gains, cuDNN's where it is available and right, and
    "splash" where it has fewer bytes to move.
    """

    blocks: Fusion = "auto"
    field: Fusion = "auto"
    attention: Attention = "auto"

    def check(self) -> None:
        """Raises ValueError for values that do not exist."""
        check_word("kernels.blocks", self.blocks, Fusion)
        check_word("kernels.field", self.field, Fusion)
        check_word("kernels.attention", self.attention, Attention)


_chosen: contextvars.ContextVar[Kernels] = contextvars.ContextVar("kernels")


@contextlib.contextmanager
def choose(kernels: Kernels) -> Iterator[None]:
    """All that is traced inside, in this thread, is computed as `kernels` says.

    What `jax.jit` has traced before is not traced again: jit what enters this, rather
    than enter this and call what is jitted.
    """
    kernels.check()
    token = _chosen.set(kernels)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Kernels:
    """The choice in force where this is called: "auto" for all outside `choose`."""
    return _chosen.get(Kernels())


class Version(NamedTuple):
    """An operation's kernel for one backend.

    `supported`: it knows the operation's sizes; `needs` says which those are, and
    which are given.
    """

    supported: bool
    needs: str


def versions(
    kernels: dict[Backend, Any], aligned: bool, sizes: tuple, shape: object
) -> dict[Backend, Version]:
    """An operation's kernels, of arrays of that shape.

    Each has `supports(*sizes)` and `SIZES`, the same in words. `aligned`: groups of
    tokens have alike batches.
    """
    return {
        name: Version(
            aligned and kernel.supports(*sizes), f"{kernel.SIZES}, not {shape}"
        )
        for name, kernel in kernels.items()
    }


def kernel_backend(
    part: Literal["blocks", "field"], versions: dict[Backend, Version], dtype: jnp.dtype
) -> Backend | None:
    """Who runs the kernel of an operation of that part of a network; None: no one.

    `versions` are the kernels that the operation has. Raises ValueError where a word
    other than "auto" insists on sizes that its kernel does not know, or on kernels that
    this jax cannot run.
    """
    choice: Fusion = getattr(chosen(), part)
    backend = BACKENDS.get(backends.platform(), BACKENDS["cpu"]).get(choice)
    if backend is None or backend not in versions:
        return None
    supported, needs = versions[backend]
    if choice == "auto":
        suits = supported and dtype in HALF and is_available(backend)
        return backend if suits else None
    if not supported:
        raise ValueError(
            f'kernels.{part}="{choice}" needs {needs}: set kernels.{part}="auto".'
        )
    require(backend, f'kernels.{part}="{choice}"')
    return backend


def is_half_on_gpu(dtype: jnp.dtype) -> bool:
    """Whether there is a GPU, and its fast units take this type."""
    return backends.platform() == "gpu" and dtype in HALF
