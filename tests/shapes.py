"""The shapes that annotations promise, checked while tests run."""

import functools
import inspect
import types
import typing
from collections.abc import Callable

import jax
import jaxtyping
import numpy as np
from beartype import beartype

# Whose functions are checked in every call; what is jitted, while it is traced.
MODULES = [
    *(
        f"pixelflow_jax.flow.{name}"
        for name in ("dopri5", "guidance", "path", "prediction", "solver", "time")
    ),
    "pixelflow_jax.losses.flow_matching",
    "pixelflow_jax.losses.points",
    "pixelflow_jax.sampling.fields",
    "pixelflow_jax.sampling.sampler",
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
    jaxtyping.jaxtyped = functools.partial(sparing, jaxtyping.jaxtyped)
    jaxtyping.install_import_hook(MODULES, f"{__name__}.check")


def sparing(jaxtyped: Callable, *, typechecker: Callable) -> Callable:
    """jaxtyping's decorator, which leaves functions alone that promise no shapes.

    It would bind the arguments of their every call, which made tracing a fifth slower.
    """

    def decorated(thing: Callable) -> Callable:
        if inspect.isfunction(thing):
            hints = thing.__annotations__.values()
            if not any(isinstance(hint, str) or has_shape(hint) for hint in hints):
                return thing
        return jaxtyped(typechecker=typechecker)(thing)

    return decorated


def check(function: Callable) -> Callable:
    """What `jaxtyping` calls for every function: other types are pyright's to check."""
    hints = function.__annotations__
    function.__annotations__ = {k: widen(h) for k, h in hints.items() if has_shape(h)}
    return beartype(function)


def widen(hint: object) -> object:
    """The same shape of an array of JAX or of numpy, which JAX takes as well."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        either = [hint.dtype[kind, hint.dim_str] for kind in (jax.Array, np.ndarray)]
        return typing.Union[tuple(either)]  # noqa: UP007
    parts = tuple(map(widen, typing.get_args(hint)))
    if not parts:
        return hint
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.Union[parts]  # noqa: UP007
    return typing.get_origin(hint)[parts]


def has_shape(hint: object) -> bool:
    """Whether an annotation speaks of an array's shape."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(hint)))
