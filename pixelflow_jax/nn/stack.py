"""`depth` equal blocks whose parameters carry a leading layer axis, run as one scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import Array

from pixelflow_jax.sharding import constrain_batch

# Names that blocks give (by `checkpoint_name`) to what "names" keeps for the backward
# pass; everything else between them is cheap to compute again.
SAVED = ("qkv", "attention", "mlp_hidden", "residual")


@dataclasses.dataclass(kw_only=True)
class Loop:
    """How a stack of blocks runs; changes speed and memory, never results.

    `remat`: what the backward pass keeps: "none" keeps every intermediate, "names" the
    named ones (projections, attention output, MLP hidden, middle residual), "full" only
    each block's input. `unroll`: blocks per scan iteration (0 = all).
    """

    remat: str = "names"
    unroll: int = 1

    def __post_init__(self) -> None:
        if self.remat not in ("none", "names", "full"):
            raise ValueError(
                f'loop.remat must be "none", "names" or "full", not {self.remat!r}.'
            )
        if self.unroll < 0:
            raise ValueError(f"loop.unroll must be 0 or more, not {self.unroll}.")


class Stack(nnx.Module):
    """Blocks in sequence: x -> block(x, *args), `args` the same for all blocks."""

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        depth: int,
        rngs: nnx.Rngs,
        loop: Loop,
    ):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs: nnx.Rngs) -> nnx.Module:
            return make(rngs)

        self.depth = depth
        self.unroll = min(loop.unroll or depth, depth)
        self.remat = loop.remat
        self.blocks = create(rngs)

    def __call__(self, x: Array, *args: Any) -> Array:
        """Run all blocks on x [batch, ...]."""
        graph, params = nnx.split(self.blocks)

        def body(x: Array, params: nnx.State) -> tuple[Array, None]:
            return constrain_batch(nnx.merge(graph, params)(x, *args)), None

        if self.remat == "full":
            body = jax.checkpoint(body, prevent_cse=False)
        elif self.remat == "names":
            policy = jax.checkpoint_policies.save_only_these_names(*SAVED)
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        return jax.lax.scan(body, constrain_batch(x), params, unroll=self.unroll)[0]
