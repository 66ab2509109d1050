"""`depth` equal blocks whose parameters carry a leading layer axis, run as one scan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.nn.dropout import Dropping
from pixelflow_jax.sharding import constrain_batch

# Names that blocks give (by `checkpoint_name`) to what "names" keeps for the backward
# pass; everything else between them is cheap to compute again.
SAVED = ("qkv", "attention", "mlp_hidden", "residual", "generated")


@dataclasses.dataclass(kw_only=True)
class Loop:
    """How a stack of blocks runs; changes speed and memory, never results.

    `remat`: what the backward pass keeps: "none" keeps every intermediate, "names" the
    named ones (projections, attention output, MLP hidden, middle residual), "full" only
    each block's input. `unroll`: blocks per scan iteration; 0 writes all blocks out,
    which compiles several times longer and runs a little faster.
    """

    remat: str = "names"
    unroll: int = 1

    def check(self) -> None:
        """Raises ValueError for values that do not exist."""
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
        self.unroll = loop.unroll
        self.remat = loop.remat
        self.blocks = create(rngs)

    def __call__(
        self, x: Array, *args: Any, drops: list[Dropping | None] | None = None
    ) -> Array:
        """Run all blocks on x [batch, ...].

        `drops` holds one argument more for each block: its dropout, or None where it
        drops nothing.
        """
        graph, params = nnx.split(self.blocks)
        drops = drops or [None] * self.depth

        def body(x: Array, layer: tuple) -> tuple[Array, None]:
            params, drop = layer
            own = () if drop is None else (drop,)
            return constrain_batch(nnx.merge(graph, params)(x, *args, *own)), None

        body = self._remembering(body)
        x = constrain_batch(x)
        if self.unroll:
            unroll = min(self.unroll, self.depth)
            layers = (params, _stacked(drops))
            return jax.lax.scan(body, x, layers, unroll=unroll)[0]
        for layer in zip(_layers(params, self.depth), drops, strict=True):
            x, _ = body(x, layer)
        return x

    def _remembering(self, body: Callable) -> Callable:
        """`body` with the remat policy; inside a scan nothing can be merged anyway."""
        if self.remat == "none":
            return body
        policy = None
        if self.remat == "names":
            policy = jax.checkpoint_policies.save_only_these_names(*SAVED)
        return jax.checkpoint(body, prevent_cse=not self.unroll, policy=policy)


def _stacked(drops: list[Dropping | None]) -> Dropping | None:
    """One dropout a layer as one pytree for a scan; None where no layer drops.

    Only a flag can tell the layers of a scan apart; where it is False, no random bits
    are drawn.
    """
    given = [drop for drop in drops if drop is not None]
    if not given:
        return None
    filled = [given[0] if drop is None else drop for drop in drops]
    stacked = jax.tree.map(lambda *keys: jnp.stack(keys), *filled)
    if len(given) == len(drops):
        return stacked
    return stacked._replace(active=jnp.array([drop is not None for drop in drops]))


def _layers(params: nnx.State, depth: int) -> list[nnx.State]:
    """The parameters of each layer; their gradients meet in one concatenation."""
    leaves, structure = jax.tree.flatten(params)
    split = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
    layers = [[part[0] for part in parts] for parts in zip(*split, strict=True)]
    return [jax.tree.unflatten(structure, layer) for layer in layers]
