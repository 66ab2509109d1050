"""PixelGen's official networks, on classes (JiT, too) and on text."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.convert.architecture import Architecture, Resized, with_text
from pixelflow_jax.convert.rows import (
    attention_rows,
    gated_mlp_rows,
    modulation_rows,
    stacks,
    text_trunk_rows,
    time_and_class_rows,
)
from pixelflow_jax.convert.sizes import (
    Fields,
    InferredConfig,
    Sizes,
    class_trunk,
    feature_layer,
    patch_and_channels,
    text_trunk,
)
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.layouts import (
    leading,
    patch_convolution,
    patch_inputs,
    patch_outputs,
)
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row, linear_rows

JIT = "jit"  # the family that shares the network on classes and not its sampler
POSITIONS = "pos_embed"  # the only tensor whose shape follows the image's
CONTEXT = "in_context_posemb"  # absent where no class tokens go ahead of the image's
# PixelGen's and JiT's released models, by depth and width: the block before which class
# tokens enter, and the dropout they were trained with.
RELEASED = {
    (12, 768): (4, 0.0),
    (24, 1024): (8, 0.0),
    (28, 1152): (8, 0.1),
    (32, 1280): (10, 0.2),
}


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on classes; how many tokens they have, tensors tell."""
    from_tensors: Fields = class_trunk(sizes)
    depth, width = from_tensors["depth"], from_tensors["width"]
    patches, neck = "x_embedder.proj1.weight", "x_embedder.proj2.weight"
    necked = neck in sizes or "x_embedder.proj2.bias" in sizes
    patch = sizes.axis((patches, 2), (patches, 3))
    length = sizes.axis((CONTEXT, 1)) or 0
    from_tensors |= {
        "channels": sizes.axis((patches, 1)),
        "patch": patch,
        "image_size": _image_size(sizes, patch),
        "mlp_ratio": _mlp_ratio(width, sizes.axis(("blocks.0.mlp.w3.weight", 1))),
        "bottleneck": sizes.axis((patches, 0), (neck, 1)) if necked else 0,
        "context_length": length,
    }
    start, dropout = RELEASED.get((depth, width), (depth // 3, 0.0))
    assumed = {
        "context_start": start if length else 0,
        "feature_layer": start or depth // 2,
        "dropout": dropout,
        "attention_dropout": 0.0,
    }
    unused = () if length else ("context_start",)
    return InferredConfig.of(from_tensors, assumed, unused)


def infer_text(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on text."""
    first, second = "x_embedder.proj1.weight", "x_embedder.proj2.weight"
    inputs = sizes.axis(("final_layer.linear.bias", 0), (first, 1))
    patch = patch_and_channels(inputs, given)
    from_tensors: Fields = text_trunk(sizes) | {
        "image_size": _image_size(sizes, patch.get("patch")),
        "bottleneck": sizes.axis((first, 0), (second, 1)),
    }
    layer = feature_layer(PixelGenText.feature_layer, from_tensors["depth"])
    assumed = patch | {"feature_layer": layer, "mask_text": False}
    return InferredConfig.of(from_tensors, assumed)


def _image_size(sizes: Sizes, patch: int | None) -> int | None:
    count = sizes.axis((POSITIONS, 1))
    return math.isqrt(count) * patch if count and patch else None


def _mlp_ratio(width: int | None, hidden: int | None) -> float | None:
    """The MLP's ratio, whose hidden width is cut to two thirds and rounded down."""
    if not width or not hidden:
        return None
    whole = PixelGen.mlp_ratio
    if PixelGen(width=width, mlp_ratio=whole).mlp_width == hidden:
        return whole
    return math.ceil(hidden * 3 / 2) / width


def table(config: PixelGen) -> list[Row]:
    """The mapping table of a model on classes."""
    rows = [
        *_patch_rows(config),
        *time_and_class_rows(),
        Row("position", POSITIONS, leading),
        Row("decoder/norm/weight", "final_layer.norm_final.weight"),
        *linear_rows("decoder/modulation", "final_layer.adaLN_modulation.1"),
        *linear_rows("decoder/linear", "final_layer.linear"),  # (row, column, channel)
    ]
    if config.context_length:
        rows.append(Row("context", CONTEXT, leading))
    for stack, layers in stacks(0, *config.cuts, config.depth).items():
        rows += attention_rows(stack, layers, bias=True)
        rows += gated_mlp_rows(stack, layers, bias=True)
        rows += modulation_rows(stack, layers, 1)
    return rows


def _patch_rows(config: PixelGen) -> list[Row]:
    """Two convolutions, of which only the second has a bias; or one with a bias."""
    whole, neck = patch_convolution(config.channels, config.patch), config.bottleneck
    first, second = "x_embedder.proj1", "x_embedder.proj2"
    if not neck:
        return linear_rows("patch_embed", first, layout=whole)
    return [
        *linear_rows("patch_embed", first, layout=whole, bias=False),
        *linear_rows("patch_expand", second, layout=patch_convolution(neck, 1)),
    ]


def text_table(config: PixelGenText) -> list[Row]:
    """The mapping table of a model on text."""
    whole = patch_inputs(config.channels, config.patch)
    pixels = patch_outputs(config.channels, config.patch)
    return [
        *linear_rows("patch_embed", "x_embedder.proj1", layout=whole, bias=False),
        *linear_rows("patch_expand", "x_embedder.proj2"),
        Row("position", POSITIONS, leading),
        *text_trunk_rows(config),
        Row("decoder/linear/kernel", "final_layer.linear.weight", pixels),
        Row("decoder/linear/bias", "final_layer.linear.bias", pixels),
    ]


def resize(
    model: PixelGen | PixelGenText, tensors: Mapping[str, LazyTensor], size: int
) -> Resized:
    """The model for images of another size, whose table of positions is computed."""
    if size == model.image_size:
        return Resized(model, tensors)
    if size % model.patch:
        raise ConvertError(
            f"--image-size={size} must be a multiple of the patch, {model.patch}."
        )
    stored, wanted = (side // model.patch for side in (model.image_size, size))
    values = sincos_table(wanted, wanted, model.width)[None]
    dtype = tensors[POSITIONS].dtype if POSITIONS in tensors else np.dtype(np.float32)
    note = (
        f"{POSITIONS} of {stored} x {stored} patches replaced by a computed one of "
        f"{wanted} x {wanted}, as the official code does at another resolution"
    )
    resized = {**tensors, POSITIONS: LazyTensor.of(values.astype(dtype))}
    return Resized(dataclasses.replace(model, image_size=size), resized, (note,))


def released(
    experiment: Experiment, model: PixelGen, size: int, family: str
) -> Experiment:
    """50 steps of Heun, by the rule of the family."""
    is_jit = family == JIT
    sampling = presets.jit_heun50(model.width) if is_jit else presets.pixelgen_heun50()
    clean = _clean_prediction(experiment, size, family)
    return dataclasses.replace(clean, conditioner=ClassLabels(), sampling=sampling)


def released_text(
    experiment: Experiment, model: PixelGenText, size: int, family: str
) -> Experiment:
    """25 steps of Adams-Bashforth, and Qwen3."""
    clean = _clean_prediction(experiment, size, family)
    return with_text(clean, model.text_length)


def _clean_prediction(experiment: Experiment, size: int, family: str) -> Experiment:
    # JiT scales its noise with the image: 2 at 512 pixels.
    noise_scale = size / 256 if family == JIT else 1.0
    return dataclasses.replace(
        experiment,
        path=Straight(noise_scale=noise_scale),
        time=LogitNormal(mean=-0.8, std=0.8),
        prediction=PredictClean(),
    )


ARCHITECTURES = (
    Architecture(
        families=("pixelgen", JIT),
        by_prefix={"net.": JIT},  # its training program's
        model=PixelGen(),
        marks=(
            *("x_embedder.proj1.weight", "final_layer.norm_final.weight"),
            *("y_embedder.embedding_table.weight", "blocks.0.attn.qkv.bias"),
        ),
        infer=infer,
        table=table,
        image_size=lambda model: model.image_size,
        resize=resize,
        released=released,
    ),
    Architecture(
        families=("pixelgen",),
        model=PixelGenText(),
        marks=(
            *("x_embedder.proj1.weight", "x_embedder.proj2.weight"),
            *("y_embedder.proj.weight", "blocks.0.attn.kv_y.weight"),
        ),
        infer=infer_text,
        table=text_table,
        image_size=lambda model: model.image_size,
        resize=resize,
        released=released_text,
    ),
)
