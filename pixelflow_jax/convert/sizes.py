"""The sizes of a model, from the names and shapes of its official tensors.

Each is read from the first tensor at hand that tells it, so that a checkpoint with a
wrong key is still understood, and the key named. Most parts that released models have
are not left out because their tensors are: the strict comparison then names these.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]  # of a model's config, "decoder.depth" for those inside
Shape = tuple[int, ...]

CHANNELS = 3  # where only the product of channels and a patch's pixels shows
NORMS = ("norm1.weight", "norm2.weight")  # of every block of PixNerd and PixelGen


@dataclasses.dataclass(frozen=True)
class InferredConfig:
    """What is known of a model's config: `from_tensors` for certain, `assumed` else.

    Fields that are in neither have the default of the model's class. Those in `unused`
    mean nothing in this model, whatever they say.
    """

    from_tensors: Fields
    assumed: Fields
    unused: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, from_tensors: Fields, assumed: Fields, unused: tuple[str, ...] = ()
    ) -> "InferredConfig":
        """The same without the fields that are None: nothing tells them."""
        known, likely = (
            {name: value for name, value in fields.items() if value is not None}
            for fields in (from_tensors, assumed)
        )
        return cls(known, likely, unused)


class Sizes:
    """The shapes of a state dict."""

    def __init__(self, shapes: Mapping[str, Shape]):
        self.shapes = shapes

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def axis(self, *places: tuple[str, int]) -> int | None:
        """The length of an axis, from the first of several tensors that is stored."""
        for key, axis in places:
            shape = self.shapes.get(key, ())
            if len(shape) > axis and shape[axis]:
                return shape[axis]
        return None

    def layers(self, stack: str, *names: str) -> int:
        """How many blocks of a stack, counted from its first, have one of `names`."""

        def is_stored(i: int) -> bool:
            return any(f"{stack}.{i}.{name}" in self for name in names)

        firsts = (i for i in itertools.count() if is_stored(i) or i > len(self.shapes))
        first = next(firsts)
        return sum(1 for _ in itertools.takewhile(is_stored, itertools.count(first)))

    def num_classes(self) -> int | None:
        """Of PixNerd's and PixelGen's table of classes, whose last one is none."""
        rows = self.axis(("y_embedder.embedding_table.weight", 0))
        return rows and rows - 1


def width_and_heads(sizes: Sizes) -> Fields:
    """Those of PixNerd's and PixelGen's blocks."""
    width = sizes.axis(("t_embedder.mlp.2.bias", 0), ("blocks.0.norm1.weight", 0))
    norms = ((f"blocks.0.attn.{name}_norm.weight", 0) for name in "qk")
    head = sizes.axis(*norms)
    heads = width // head if width and head and not width % head else None
    return {"width": width, "heads": heads}


def class_trunk(sizes: Sizes) -> Fields:
    """What the class-conditional models of PixNerd and PixelGen have in common."""
    return width_and_heads(sizes) | {
        "num_classes": sizes.num_classes(),
        "depth": sizes.layers("blocks", *NORMS),
    }


def text_trunk(sizes: Sizes) -> Fields:
    """What their text models have in common."""
    return width_and_heads(sizes) | {
        "depth": sizes.layers("blocks", *NORMS),
        "text_depth": sizes.layers("text_refine_blocks", *NORMS),
        "text_width": sizes.axis(("y_embedder.proj.weight", 1)),
        "text_length": sizes.axis(("y_pos_embedding", 1)),
    }


def patch_and_channels(inputs: int | None, given: Fields) -> Fields:
    """Both from their product, a patch's numbers; one of them is given or assumed."""
    if inputs is None:
        return {}
    patch, channels = given.get("patch"), given.get("channels")
    if isinstance(patch, int) and patch > 0:
        return {"patch": patch, "channels": inputs // patch**2}
    if not isinstance(channels, int) or channels < 1:  # refused later, with its name
        channels = CHANNELS
    return {"patch": math.isqrt(inputs // channels), "channels": channels}


def feature_layer(published: int, depth: int) -> int:
    """The published one; in the middle of a model that is not deeper than that."""
    return published if published < depth else depth // 2
