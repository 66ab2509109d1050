"""How the token sequences of several image groups lie in one array.

Linear layers and norms run on all tokens at once; only attention and un-patching need
to know where one image ends. No padding and no masks: every shape is static.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Shaped


@dataclasses.dataclass(frozen=True)
class Packing:
    """Groups of `batches[i]` images with `lengths[i]` tokens each.

    Groups of equal batch lie side by side, one image of every group to a row, so that
    the row axis shards like the batch: [batch, sum(lengths), ...]. Unequal groups lie
    behind each other in a single row: [1, sum(batch * length), ...].
    """

    batches: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, groups: Sequence[Shaped[Array, "_ _ *rest"]]) -> "Packing":
        """The packing of these groups [b_i, n_i, ...]."""
        return cls(tuple(g.shape[0] for g in groups), tuple(g.shape[1] for g in groups))

    @property
    def aligned(self) -> bool:
        """Whether every group has the same batch."""
        return len(set(self.batches)) == 1

    def join(
        self, groups: Sequence[Shaped[Array, "_ _ *rest"]]
    ) -> Shaped[Array, "rows tokens *rest"]:
        """Groups [b_i, n_i, ...] as one array."""
        if len(groups) == 1:
            return groups[0]
        if not self.aligned:
            groups = [g.reshape(1, -1, *g.shape[2:]) for g in groups]
        return jnp.concatenate(groups, axis=1)

    def split(
        self, tokens: Shaped[Array, "rows tokens *rest"]
    ) -> list[Shaped[Array, "_ _ *rest"]]:
        """The inverse of `join`."""
        if len(self.batches) == 1:
            return [tokens]
        sizes = self.lengths
        if not self.aligned:
            pairs = zip(self.batches, self.lengths, strict=True)
            sizes = tuple(batch * length for batch, length in pairs)
        # Its gradient is one concatenation, where that of slices is a sum of paddings.
        parts = jax.lax.split(tokens, sizes, axis=1)
        groups = zip(parts, self.batches, self.lengths, strict=True)
        return [
            part.reshape(batch, length, *tokens.shape[2:])
            for part, batch, length in groups
        ]

    def broadcast(
        self, vectors: Sequence[Shaped[Array, "_ width"]]
    ) -> Shaped[Array, "rows tokens_or_1 width"]:
        """One vector an image, [b_i, width] a group, to be added to the tokens.

        [b, 1, width] for a single group, [rows, tokens, width] for several.
        """
        if len(vectors) == 1:
            return vectors[0][:, None]
        return self.join(
            [
                jnp.broadcast_to(v[:, None], (len(v), n, *v.shape[1:]))
                for v, n in zip(vectors, self.lengths, strict=True)
            ]
        )

    def tile(
        self, tables: Sequence[Shaped[Array, "_ width"]]
    ) -> Shaped[Array, "tokens width"]:
        """One table [n_i, width] a group as one for every row alike."""
        if len(tables) == 1:
            return tables[0]
        repeats = [1] * len(tables) if self.aligned else self.batches
        return jnp.concatenate(
            [jnp.tile(t, (r, 1)) for t, r in zip(tables, repeats, strict=True)]
        )


class PackedText(NamedTuple):
    """The texts of all groups as one array, and how to take it apart."""

    packing: Packing
    tokens: Float[Array, "rows tokens width"]
    masks: tuple[Bool[Array, "_ _"] | None, ...]  # a group each; None: all is text
