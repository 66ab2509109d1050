"""Which numbers are computed in which precision: one object, handed to every layer."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(kw_only=True)
class Precision:
    """Parameters, optimizer, EMA, norms, softmax, time and losses are always float32.

    `compute` is the type of activations and matrix products ("bfloat16" or "float32");
    `matmul` is JAX's matmul precision ("default", or "highest" for parity tests).
    """

    compute: str = "bfloat16"
    matmul: str = "default"

    def check(self) -> None:
        """Raises ValueError for values that do not exist."""
        if self.compute not in ("bfloat16", "float32"):
            raise ValueError(
                'precision.compute must be "bfloat16" or "float32", not '
                f"{self.compute!r}."
            )
        if self.matmul not in ("default", "high", "highest"):
            raise ValueError(
                'precision.matmul must be "default", "high" or "highest", not '
                f"{self.matmul!r}."
            )

    @property
    def dtype(self) -> jnp.dtype:
        """The type of activations."""
        return jnp.dtype(self.compute)

    def cast(self, params: dict) -> dict:
        """Matrices cast to the compute type once; vectors (norms, biases) as they are.

        Doing this before the layer scan keeps the cast out of it: each matrix is read
        in float32 once a step and not once in every pass.
        """

        def one(path: tuple, leaf: Array) -> Array:
            # Where a stack's layers are apart, their numbers end the path.
            name = next(k.key for k in reversed(path) if hasattr(k, "key"))
            return leaf.astype(self.dtype) if is_matrix(name) else leaf

        return jax.tree_util.tree_map_with_path(one, params)


def is_matrix(name: str) -> bool:
    """Whether a parameter of that name, the last of its path, is cast."""
    return name == "kernel"
