"""The sizes of a model, from the names and shapes of its official tensors.

Each is read from the first tensor at hand that tells it, so that a checkpoint with a
wrong key is still understood, and the key named. A part that released models have is
not left out because its tensors are: only a given field says so.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping

from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.field import ENCODINGS

Fields = dict[str, object]  # of a model's config, "decoder.depth" for those inside
Shape = tuple[int, ...]

HEAD_WIDTH = 72  # of the released PixelFlow, whose tensors do not tell it
CHANNELS = 3  # where only the product of channels and a patch's pixels shows
# PixelGen's and JiT's released models, by depth and width: the block before which class
# tokens enter, and the dropout they were trained with.
RELEASED_JIT = {
    (12, 768): (4, 0.0),
    (24, 1024): (8, 0.0),
    (28, 1152): (8, 0.1),
    (32, 1280): (10, 0.2),
}


@dataclasses.dataclass(frozen=True)
class InferredConfig:
    """What tensors say of a model: `told` for certain, `assumed` where they cannot.

    Fields that are in neither have the default of the model's class.
    """

    told: Fields
    assumed: Fields


class Sizes:
    """The shapes of a state dict."""

    def __init__(self, shapes: Mapping[str, Shape]):
        self.shapes = shapes

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def axis(self, *places: tuple[str, int]) -> int | None:
        """The length of an axis, from the first of several tensors that is there."""
        for key, axis in places:
            shape = self.shapes.get(key, ())
            if len(shape) > axis and shape[axis]:
                return shape[axis]
        return None

    def layers(self, stack: str, *names: str) -> int:
        """How many blocks of a stack, counted from its first, have one of `names`."""

        def there(i: int) -> bool:
            return any(f"{stack}.{i}.{name}" in self for name in names)

        firsts = (i for i in itertools.count() if there(i) or i > len(self.shapes))
        first = next(firsts)
        return sum(1 for _ in itertools.takewhile(there, itertools.count(first)))


def pixelflow(sizes: Sizes, given: Fields) -> InferredConfig:
    """PixelFlow, for classes or text."""
    blocks, patches = "transformer_blocks", "patch_embed.proj.weight"
    first, second = f"{blocks}.0.attn1", f"{blocks}.0.attn2"
    width = sizes.axis(("patch_embed.proj.bias", 0), (f"{blocks}.0.norm3.weight", 0))
    rows = sizes.axis(("class_embedder.embedding_table.weight", 0))
    text = sizes.axis((f"{second}.k_proj.weight", 1), (f"{second}.v_proj.weight", 1))
    depth = sizes.layers(blocks, "norm3.weight", "mlp.fc1.bias")
    biases = (f"{first}.{name}_proj.bias" for name in "qkvo")
    told = {
        "num_classes": rows - 1 if rows else 0 if text else None,
        "channels": sizes.axis((patches, 1)),
        "patch": sizes.axis((patches, 2), (patches, 3)),
        "width": width,
        "depth": depth,
        "text_width": text or 0,
        "attention_bias": any(bias in sizes for bias in biases),
    }
    heads = width // HEAD_WIDTH if width and not width % HEAD_WIDTH else None
    return _sorted(told, {"heads": heads, "feature_layer": _tap(PixelFlow(), depth)})


def pixnerd(sizes: Sizes, given: Fields) -> InferredConfig:
    """PixNerd on classes."""
    told = _trunk(sizes) | _field(sizes)
    rows = sizes.axis(("y_embedder.embedding_table.weight", 0))
    depth = sizes.layers("blocks", "norm1.weight", "norm2.weight")
    told |= {"num_classes": rows and rows - 1, "depth": depth}
    told["decoder.output_norm"] = "final_layer.norm.weight" in sizes or None
    encoding = _encoding(sizes, told["channels"])
    field = {"encoding": encoding, "normalised": NeuralField().normalised}
    return _sorted(told, {"feature_layer": _tap(PixNerd(), depth)} | _decoder(field))


def baseline(sizes: Sizes, given: Fields) -> InferredConfig:
    """The plain DiT on pixels, PixNerd with a linear decoder."""
    told = _trunk(sizes)
    rows = sizes.axis(("y_embedder.embedding_table.weight", 0))
    depth = sizes.layers("blocks", "norm1.weight", "norm2.weight")
    told |= {"num_classes": rows and rows - 1, "depth": depth}
    inputs = sizes.axis(("final_layer.linear.bias", 0), ("x_embedder.proj.weight", 1))
    assumed = _patch(inputs, given) | {"feature_layer": _tap(PixNerd(), depth)}
    return _sorted(told, assumed)


def pixnerd_text(sizes: Sizes, given: Fields) -> InferredConfig:
    """PixNerd on text."""
    told = _trunk(sizes) | _text(sizes) | _field(sizes)
    field = {"encoding": "cosine", "normalised": ("first",), "output_norm": False}
    assumed = {"feature_layer": _tap(PixNerdText(), told["depth"]), "mask_text": False}
    # The official program draws every size on the canvas of its released weights.
    assumed["canvas"] = (512, 512) if told["patch"] == PixNerdText.patch else ()
    return _sorted(told, assumed | _decoder(field))


def pixelgen(sizes: Sizes, given: Fields) -> InferredConfig:
    """PixelGen on classes, and JiT."""
    told = _trunk(sizes)
    patches, neck = "x_embedder.proj1.weight", "x_embedder.proj2.weight"
    rows = sizes.axis(("y_embedder.embedding_table.weight", 0))
    depth = sizes.layers("blocks", "norm1.weight", "norm2.weight")
    necked = neck in sizes or "x_embedder.proj2.bias" in sizes
    bottleneck = sizes.axis((patches, 0), (neck, 1)) if necked else 0
    patch = sizes.axis((patches, 2), (patches, 3))
    hidden = sizes.axis(("blocks.0.mlp.w3.weight", 1))
    told |= {
        "num_classes": rows and rows - 1,
        "channels": sizes.axis((patches, 1)),
        "patch": patch,
        "image_size": _image_size(sizes, patch),
        "depth": depth,
        "mlp_ratio": _mlp_ratio(told["width"], hidden),
        "bottleneck": bottleneck,
        "context_length": sizes.axis(("in_context_posemb", 1)),
    }
    start, dropout = RELEASED_JIT.get((depth, told["width"]), (depth // 3, 0.0))
    assumed = {
        "context_start": start,
        "feature_layer": start or depth // 2,
        "dropout": dropout,
    }
    return _sorted(told, assumed | {"attention_dropout": 0.0})


def pixelgen_text(sizes: Sizes, given: Fields) -> InferredConfig:
    """PixelGen on text."""
    told = _trunk(sizes) | _text(sizes)
    inputs = sizes.axis(("final_layer.linear.bias", 0), ("x_embedder.proj1.weight", 1))
    patch = _patch(inputs, given)
    told |= {
        "image_size": _image_size(sizes, patch.get("patch")),
        "bottleneck": sizes.axis(
            ("x_embedder.proj1.weight", 0), ("x_embedder.proj2.weight", 1)
        ),
    }
    tap = _tap(PixelGenText(), told["depth"])
    return _sorted(told, patch | {"feature_layer": tap, "mask_text": False})


def _trunk(sizes: Sizes) -> Fields:
    """Width and heads of PixNerd's and PixelGen's blocks."""
    width = sizes.axis(("t_embedder.mlp.2.bias", 0), ("blocks.0.norm1.weight", 0))
    norms = ((f"blocks.0.attn.{name}_norm.weight", 0) for name in "qk")
    head = sizes.axis(*norms)
    heads = width // head if width and head and not width % head else None
    return {"width": width, "heads": heads}


def _text(sizes: Sizes) -> Fields:
    """What the text models have in common."""
    names = ("norm1.weight", "norm2.weight")
    return {
        "depth": sizes.layers("blocks", *names),
        "text_depth": sizes.layers("text_refine_blocks", *names),
        "text_width": sizes.axis(("y_embedder.proj.weight", 1)),
        "text_length": sizes.axis(("y_pos_embedding", 1)),
    }


def _field(sizes: Sizes) -> Fields:
    """The neural field, and the patches it is for."""
    last = ("final_layer.linear.bias", 0), ("final_layer.linear.weight", 0)
    channels, inputs = sizes.axis(*last), sizes.axis(("s_embedder.proj.weight", 1))
    embed = ("x_embedder.embedder.0.bias", 0), ("x_embedder.embedder.0.weight", 0)
    width = sizes.axis(*embed)
    generator = "param_generator1.0"
    depth = sizes.layers("blocks", f"{generator}.weight", f"{generator}.bias")
    layer = sizes.layers("blocks", "norm1.weight", "norm2.weight")
    outputs = sizes.axis((f"blocks.{layer}.{generator}.bias", 0))
    ratio = outputs // (2 * width**2) if outputs and width else None
    patch = math.isqrt(inputs // channels) if inputs and channels else None
    found = {"width": width, "ratio": ratio or None, "depth": depth}
    return {"channels": channels, "patch": patch or None} | _decoder(found)


def _encoding(sizes: Sizes, channels: int | None) -> str:
    """The first coordinate encoding of that many features, or the published one."""
    inputs = sizes.axis(("x_embedder.embedder.0.weight", 1))
    counts = {name: encode(1).shape[-1] for name, encode in ENCODINGS.items()}
    fitting = [n for n, count in counts.items() if inputs == count + (channels or 0)]
    return fitting[0] if fitting else NeuralField().encoding


def _decoder(fields: Fields) -> Fields:
    return {f"decoder.{name}": value for name, value in fields.items()}


def _patch(inputs: int | None, given: Fields) -> Fields:
    """Channels and patch from their product, one of them given or assumed."""
    if inputs is None:
        return {}
    patch, channels = given.get("patch"), given.get("channels")
    if isinstance(patch, int) and patch > 0:
        return {"patch": patch, "channels": inputs // patch**2}
    if not isinstance(channels, int) or channels < 1:  # refused later, with its name
        channels = CHANNELS
    return {"patch": math.isqrt(inputs // channels), "channels": channels}


def _image_size(sizes: Sizes, patch: int | None) -> int | None:
    count = sizes.axis(("pos_embed", 1))
    return math.isqrt(count) * patch if count and patch else None


def _mlp_ratio(width: int | None, hidden: int | None) -> float | None:
    """The MLP's ratio, whose hidden width is cut to two thirds and rounded down."""
    if not width or not hidden:
        return None
    whole = PixelGen.mlp_ratio
    if PixelGen(width=width, mlp_ratio=whole).mlp_width == hidden:
        return whole
    return math.ceil(hidden * 3 / 2) / width


def _tap(default: object, depth: int) -> int:
    """The published tap, in the middle of a model that is as shallow."""
    return default.feature_layer if default.feature_layer < depth else depth // 2


def _sorted(told: Fields, assumed: Fields) -> InferredConfig:
    return InferredConfig(
        *({k: v for k, v in f.items() if v is not None} for f in (told, assumed))
    )
