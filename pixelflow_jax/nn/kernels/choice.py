"""Who computes an operation, a kernel or the compiler: said once for a whole program.

A network says it where its functions are traced (`choose`); the operations ask
(`use_kernel`). They ask once, in the forward pass: a gradient follows the choice of the
pass that it belongs to, wherever it is traced.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp

from pixelflow_jax.nn.kernels import launch
from pixelflow_jax.nn.precision import check_word

Fusion = Literal["auto", "pallas", "xla"]
Attention = Literal["auto", "xla", "cudnn"]


@dataclasses.dataclass(kw_only=True)
class Kernels:
    """Which operations run as kernels of their own; changes speed, never results.

    `blocks`: what lies between a block's matrix products; `field`: the MLPs of a neural
    field. "pallas" insists on our kernels, "xla" leaves all to the compiler; "auto"
    takes the kernels on GPUs in half precision, for the sizes they know.
    `attention`: "cudnn" insists on cuDNN's flash attention, "xla" on the compiler;
    "auto" takes cuDNN's where it is available and right.
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


def use_kernel(
    part: Literal["blocks", "field"], supported: bool, needs: str, dtype: jnp.dtype
) -> bool:
    """Whether an operation of that part of a network shall run as its kernel.

    `supported`: the kernel knows the operation's sizes; `needs` says which those are,
    and which are given. Raises ValueError where "pallas" insists on other sizes, or on
    kernels that this jax cannot run.
    """
    choice: Fusion = getattr(chosen(), part)
    if choice == "pallas":
        if not supported:
            raise ValueError(
                f'kernels.{part}="pallas" needs {needs}: set kernels.{part}="auto".'
            )
        launch.require(f'kernels.{part}="pallas"')
        return True
    suits = choice == "auto" and supported and is_half_on_gpu(dtype)
    return suits and launch.is_available()


def is_half_on_gpu(dtype: jnp.dtype) -> bool:
    """Whether there is a GPU, and its fast units take this type."""
    return jax.default_backend() == "gpu" and dtype in (jnp.bfloat16, jnp.float16)
