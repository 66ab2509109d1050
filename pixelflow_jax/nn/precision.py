"""Which numbers are computed in which precision: one object, handed to every layer."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

Compute = Literal["bfloat16", "float32"]
Matmul = Literal["default", "high", "highest"]


@dataclasses.dataclass(kw_only=True)
class Precision:
    """Parameters, optimizer, EMA, norms, softmax, time and losses are always float32.

    `compute` is the type of activations and matrix products; `matmul` is JAX's matmul
    precision ("highest" for parity tests).
    """

    compute: Compute = "bfloat16"
    matmul: Matmul = "default"

    def check(self) -> None:
        """Raises ValueError for values that do not exist."""
        check_word("precision.compute", self.compute, Compute)
        check_word("precision.matmul", self.matmul, Matmul)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations."""
        return jnp.dtype(self.compute)

    def cast(self, params: dict) -> dict:
        """Matrices cast to the compute type once; vectors (norms, biases) as they are.

        Doing this before the layer scan keeps the cast out of it: each matrix is read
        in float32 once a step and not once in every pass.
        """

        def cast_leaf(path: tuple, leaf: Array) -> Array:
            # Where a stack's layers are unstacked, their numbers end the path.
            keys = (k for k in reversed(path) if isinstance(k, jax.tree_util.DictKey))
            return leaf.astype(self.dtype) if is_matrix(next(keys).key) else leaf

        return jax.tree_util.tree_map_with_path(cast_leaf, params)


def is_matrix(name: str) -> bool:
    """Whether a parameter of that name, the last of its path, is cast."""
    return name == "kernel"


def check_word(field: str, word: str, words: Any) -> None:
    """Raises ValueError where a field holds none of its type's (a Literal's) words."""
    known = get_args(words)
    if word not in known:
        raise ValueError(f"{field} must be one of {', '.join(known)}, not {word!r}.")
