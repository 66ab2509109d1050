"""What transformers on patches share: conditions, packed tokens, stacks, decoding.

A model keeps its layers as attributes of its own, because their names are the paths of
its parameters. The functions here make and run them.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import Condition, Inputs
from pixelflow_jax.nn.decoder import Patches
from pixelflow_jax.nn.dropout import DropoutKeys
from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed, pack_patches, pack_tables
from pixelflow_jax.nn.layers import linear, xavier, zeros
from pixelflow_jax.nn.packing import PackedText, Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import (
    JoinedModulations,
    Modulations,
    Stack,
    StackConfig,
    layer_modulations,
)

Images = tuple[Array, ...]  # [b_i, h_i, w_i, c], one array a resolution
# The rotary table of a grid of tokens, cosines and sines, from its rows and columns.
Table = Callable[[int, int], tuple[np.ndarray, ...]]
Extra = TypeVar("Extra")


class Config(Protocol):
    """The fields that the configs of all transformers on patches have."""

    channels: int
    patch: int
    width: int
    heads: int
    depth: int
    feature_layer: int
    stack: StackConfig


class Tokens(NamedTuple):
    """The tokens of all images, packed, on their way through the blocks."""

    array: Array  # [rows, n, width]
    packing: Packing
    rope: tuple[Array, Array]  # where they are, as cosines and sines


class Precomputed(NamedTuple, Generic[Extra]):
    """What timestep and condition make, an array a resolution, whatever the image is.

    `modulations` holds, for every stack, what its blocks make of `cond` where it is
    written out; `extra` is what a model adds.
    """

    time: tuple[Array, ...]  # embeddings of the timesteps, [b_i, width]
    cond: tuple[Array, ...]  # what modulates blocks and decoder, [b_i, width]
    modulations: tuple[Modulations | JoinedModulations | None, ...]
    extra: Extra


def patch_linear(
    config: Patches,
    outputs: int,
    rngs: nnx.Rngs,
    precision: Precision,
    *,
    bias: bool = True,
) -> nnx.Linear:
    """The linear layer on a patch's pixels."""
    inputs = config.channels * config.patch**2
    return linear(
        inputs, outputs, precision, rngs, bias=bias, init=xavier, bias_init=zeros
    )


def make_stacks(
    config: Config,
    block: Callable[[nnx.Rngs], nnx.Module],
    rngs: nnx.Rngs,
    cuts: tuple[int, ...] | None = None,
) -> list[Stack | None]:
    """The layers as stacks that end at `cuts`, None where there is no layer between.

    Without `cuts` there are two, the early and the late one.
    """
    ends = 0, *((config.feature_layer,) if cuts is None else cuts), config.depth
    depths = [end - start for start, end in itertools.pairwise(ends)]
    return [Stack(block, n, rngs, config.stack) if n else None for n in depths]


def images_of(batch: tuple[Inputs, ...]) -> Images:
    """The images of every resolution."""
    return tuple(inputs.image for inputs in batch)


def token_grids(images: Images, patch: int) -> list[tuple[int, int]]:
    """Rows and columns of the tokens of every resolution."""
    return [(image.shape[1] // patch, image.shape[2] // patch) for image in images]


def pack_images(images: Images, patch: int, dtype: jnp.dtype, table: Table) -> Tokens:
    """The images' patches, not yet embedded: [rows, n, patch * patch * channels]."""
    packing, patches = pack_patches(images, patch, dtype)
    rope = pack_rope(packing, token_grids(images, patch), table)
    return Tokens(patches, packing, rope)


def pack_rope(
    packing: Packing, grids: list[tuple[int, int]], table: Table
) -> tuple[Array, Array]:
    """The rotary tables of all grids, for packed tokens."""
    cos, sin = pack_tables(packing, [table(*grid) for grid in grids])
    return cos, sin


def pack_text(
    states: Sequence[Array], masks: tuple[Array | None, ...] | None = None
) -> PackedText:
    """The texts [b_i, length_i, width] as one array, with their masks."""
    packing = Packing.of(list(states))
    masks = masks or (None,) * len(states)
    return PackedText(packing, packing.join(list(states)), masks)


def labels_of(cond: Condition) -> Array:
    """The labels [b] of a condition; ValueError where it holds none."""
    if cond.labels is None:
        raise ValueError(
            "This model embeds classes, but the condition holds no labels: give "
            "Condition.labels (conditioner ClassLabels does), or set "
            "model.num_classes=0 where the model can do without."
        )
    return cond.labels


def text_of(cond: Condition) -> Array:
    """The text's states [b, length, width]; ValueError where a condition holds none."""
    if cond.text is None:
        raise ValueError(
            "This model reads text, but the condition holds none: give its states as "
            "Condition.text (conditioner Text does), or set model.text_width=0 where "
            "the model can do without."
        )
    return cond.text


def modulating(total: tuple[Array, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    """What modulates the blocks, made of the sum of all embeddings [b_i, width]."""
    return tuple(jax.nn.silu(one).astype(dtype) for one in total)


def precompute(
    time: tuple[Array, ...],
    cond: tuple[Array, ...],
    stacks: Sequence[Stack | None],
    extra: Extra = None,
) -> Precomputed[Extra]:
    """All that comes of the embedded timesteps and of what modulates the blocks."""
    modulations = tuple(layer_modulations(stack, cond) for stack in stacks)
    return Precomputed(time, cond, modulations, extra)


def precompute_classes(
    batch: tuple[Inputs, ...],
    time_embed: TimeEmbed,
    class_embed: ClassEmbed,
    stacks: Sequence[Stack | None],
    dtype: jnp.dtype,
) -> Precomputed[tuple[Array, ...]]:
    """The same for time and class; `extra` holds the classes' embeddings."""
    time = tuple(time_embed(inputs.timestep) for inputs in batch)
    classes = tuple(class_embed(labels_of(inputs.cond)) for inputs in batch)
    total = tuple(one + other for one, other in zip(time, classes, strict=True))
    return precompute(time, modulating(total, dtype), stacks, classes)


def run_stacks(
    stacks: Sequence[Stack | None],
    x: Tokens,
    pre: Precomputed,
    *,
    features_at: int = 1,
    before: dict[int, Callable[[Tokens], Tokens]] | None = None,
    dropouts: Sequence[DropoutKeys | None] | None = None,
    context: object = None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """The images' tokens at the end and before stack `features_at`, [b_i, n_i, width].

    `before[i]` changes the tokens before stack i and may put others ahead of each
    image's. `dropouts` holds one layer's keys each; `context` is for the attention of
    every block. One of the two is None.
    """
    lengths, features, first = x.packing.lengths, (), 0
    for number, stack in enumerate(stacks):
        if before and number in before:
            x = before[number](x)
        if number == features_at:
            features = image_tokens(x, lengths)
        if stack is None:
            continue
        also = () if context is None else (None, context)
        array = stack(
            x.array,
            *(pre.cond, x.packing, x.rope, *also),
            dropouts=dropouts and dropouts[first : first + stack.depth],
            modulation=pre.modulations[number],
        )
        x, first = x._replace(array=array), first + stack.depth
    return image_tokens(x, lengths), features


def image_tokens(x: Tokens, lengths: tuple[int, ...]) -> tuple[Array, ...]:
    """The last tokens of every sequence, `lengths` of them: the image's."""
    parts = zip(x.packing.split(x.array), lengths, strict=True)
    return tuple(part[:, -length:] for part, length in parts)


def decode(
    decoder: Callable[[Array, Array, Array, Array], Array],
    images: Images,
    tokens: tuple[Array, ...],
    pre: Precomputed,
) -> tuple[Array, ...]:
    """What the decoder makes of image, tokens, time and condition; float32 images."""
    parts = zip(images, tokens, pre.time, pre.cond, strict=True)
    return tuple(decoder(*part) for part in parts)


def problems(
    model: Config, height: int, width: int, also: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with these fields for images of `height` x `width`.

    Fields named in `also` must be at least 1, too.
    """
    sizes = (*also, "channels", "patch", "width", "heads", "depth")
    small = [f"{n}={getattr(model, n)}" for n in sizes if getattr(model, n) < 1]
    if small:
        return [f"model.{', '.join(small)} must be at least 1"]
    wrong = []
    if height % model.patch or width % model.patch:
        wrong.append(
            f"model.patch={model.patch} does not divide the image size {height} x "
            f"{width}: choose a multiple of {model.patch}"
        )
    if model.width % model.heads or (model.width // model.heads) % 4:
        wrong.append(
            f"model.heads={model.heads} must divide model.width={model.width} into "
            "heads whose width is a multiple of 4"
        )
    if not 0 <= model.feature_layer <= model.depth:
        wrong.append(
            f"model.feature_layer={model.feature_layer} must lie in "
            f"0..depth={model.depth}"
        )
    return wrong


def embed_flops(config: Config, pixels: int, bottleneck: int = 0) -> int:
    """Multiply-adds of embedding one image's patches and its timestep.

    Patches pass a `bottleneck` of channels; 0: they do not.
    """
    d = config.width
    tokens = pixels // config.patch**2
    patches = pixels * config.channels * (bottleneck or d) + tokens * bottleneck * d
    return patches + d * (TimeEmbed.features + d)


def decode_flops(width: int, channels: int, pixels: int) -> int:
    """Multiply-adds of `nn.decoder.TokenDecoder`, modulated, for one image."""
    return width * pixels * channels + 2 * width**2
