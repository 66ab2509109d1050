"""The shapes that annotations promise, checked while tests run."""

import inspect
import typing
from collections.abc import Callable

import jaxtyping
from beartype import beartype

# Whose functions are checked in every call; what is jitted, while it is traced.
MODULES = [
    "pixelflow_jax.flow.prediction",
    "pixelflow_jax.flow.time",
    *(
        f"pixelflow_jax.nn.{name}"
        for name in (
            *("attention", "block", "decoder", "dropout", "embed", "field"),
            *("layers", "mlp", "packing", "patch", "stack"),
        )
    ),
]


def install() -> None:
    """Before any of the modules is imported."""
    jaxtyping.install_import_hook(MODULES, f"{__name__}.check")


def check(function: Callable) -> Callable:
    """What `jaxtyping` calls for every function: other types are pyright's to check."""
    hints = function.__annotations__
    function.__annotations__ = {k: h for k, h in hints.items() if has_shape(h)}
    return beartype(function)


def has_shape(hint: object) -> bool:
    """Whether an annotation speaks of an array's shape."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))
