"""PixNerd's official networks: on classes, its plain baseline, and on text."""

import dataclasses
import math

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.convert.architecture import Architecture, one_patch, with_text
from pixelflow_jax.convert.rows import (
    attention_rows,
    modulation_rows,
    stacks,
    text_trunk_rows,
    time_and_class_rows,
)
from pixelflow_jax.convert.sizes import (
    NORMS,
    Fields,
    InferredConfig,
    Sizes,
    class_trunk,
    feature_layer,
    patch_and_channels,
    text_trunk,
)
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.field import ENCODINGS
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.layouts import patch_inputs, patch_outputs, same
from pixelflow_jax.tensors.mapping import Row, linear_rows

CANVAS = (512, 512)  # on which the official program draws text images of every size


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on classes."""
    from_tensors = class_trunk(sizes) | _field(sizes)
    from_tensors["decoder.output_norm"] = "final_layer.norm.weight" in sizes or None
    assumed = {
        "feature_layer": feature_layer(PixNerd.feature_layer, from_tensors["depth"]),
        "decoder.encoding": _encoding(sizes, from_tensors["channels"]),
        "decoder.normalised": NeuralField().normalised,
    }
    return InferredConfig.of(from_tensors, assumed)


def infer_baseline(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of the plain DiT on pixels, PixNerd with a linear decoder."""
    from_tensors = class_trunk(sizes)
    inputs = sizes.axis(("final_layer.linear.bias", 0), ("x_embedder.proj.weight", 1))
    layer = feature_layer(PixNerd.feature_layer, from_tensors["depth"])
    assumed = patch_and_channels(inputs, given) | {"feature_layer": layer}
    return InferredConfig.of(from_tensors, assumed)


def infer_text(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on text."""
    from_tensors = text_trunk(sizes) | _field(sizes)
    layer = feature_layer(PixNerdText.feature_layer, from_tensors["depth"])
    assumed = {
        "feature_layer": layer,
        "mask_text": False,
        "canvas": CANVAS if from_tensors["patch"] == PixNerdText.patch else (),
        "decoder.encoding": "cosine",
        "decoder.normalised": ("first",),
        "decoder.output_norm": False,
    }
    return InferredConfig.of(from_tensors, assumed)


def _field(sizes: Sizes) -> Fields:
    """The neural field, and the patches it is for."""
    last = ("final_layer.linear.bias", 0), ("final_layer.linear.weight", 0)
    channels, inputs = sizes.axis(*last), sizes.axis(("s_embedder.proj.weight", 1))
    embed = ("x_embedder.embedder.0.bias", 0), ("x_embedder.embedder.0.weight", 0)
    width = sizes.axis(*embed)
    generator = "param_generator1.0"
    depth = sizes.layers("blocks", f"{generator}.weight", f"{generator}.bias")
    layer = sizes.layers("blocks", *NORMS)
    outputs = sizes.axis((f"blocks.{layer}.{generator}.bias", 0))
    ratio = outputs // (2 * width**2) if outputs and width else None
    patch = math.isqrt(inputs // channels) if inputs and channels else None
    return {
        "channels": channels,
        "patch": patch or None,
        "decoder.width": width,
        "decoder.ratio": ratio or None,
        "decoder.depth": depth,
    }


def _encoding(sizes: Sizes, channels: int | None) -> str:
    """The first coordinate encoding of that many features, or the published one."""
    inputs = sizes.axis(("x_embedder.embedder.0.weight", 1))
    counts = {name: encode(1).shape[-1] for name, encode in ENCODINGS.items()}
    fitting = [n for n, count in counts.items() if inputs == count + (channels or 0)]
    return fitting[0] if fitting else NeuralField().encoding


def table(config: PixNerd) -> list[Row]:
    """The mapping table of a model on classes, or of the baseline."""
    field = config.decoder if isinstance(config.decoder, NeuralField) else None
    embedder = "s_embedder.proj" if field else "x_embedder.proj"
    layout = patch_inputs(config.channels, config.patch)
    rows = linear_rows("patch_embed", embedder, layout=layout) + time_and_class_rows()
    for stack, layers in stacks(0, config.feature_layer, config.depth).items():
        rows += attention_rows(stack, layers, bias=False)
        for a, b in {"gate": "w1", "up": "w3", "down": "w2"}.items():
            ours, theirs = f"{stack}/blocks/mlp/{a}", f"blocks.{{i}}.mlp.{b}"
            rows += linear_rows(ours, theirs, layers, bias=False)
        rows += modulation_rows(stack, layers, 0)
    return rows + (_field_rows(config.depth, field) if field else _token_rows(config))


def text_table(config: PixNerdText) -> list[Row]:
    """The mapping table of a model on text."""
    layout = patch_inputs(config.channels, config.patch)
    return [
        *linear_rows("patch_embed", "s_embedder.proj", layout=layout),
        *text_trunk_rows(config),
        *_field_rows(config.depth, config.decoder),
    ]


def _field_rows(depth: int, field: NeuralField) -> list[Row]:
    """Rows of a field behind `depth` blocks of the transformer."""
    layers = range(depth, depth + field.depth)
    ours = "decoder/field/blocks"
    rows = [
        *linear_rows("decoder/embed/proj", "x_embedder.embedder.0"),
        Row(f"{ours}/norm/weight", "blocks.{i}.norm.weight", same, layers),
        *linear_rows(f"{ours}/generator", "blocks.{i}.param_generator1.0", layers),
        *linear_rows("decoder/linear", "final_layer.linear"),
    ]
    if field.output_norm:
        rows.append(Row("decoder/norm/weight", "final_layer.norm.weight"))
    return rows


def _token_rows(config: PixNerd) -> list[Row]:
    layout = patch_outputs(config.channels, config.patch)
    return [
        *linear_rows("decoder/modulation", "final_layer.adaLN_modulation.0"),
        Row("decoder/linear/kernel", "final_layer.linear.weight", layout),
        Row("decoder/linear/bias", "final_layer.linear.bias", layout),
    ]


def released(
    experiment: Experiment, model: PixNerd, size: int, family: str
) -> Experiment:
    """100 steps of Euler for large images, 50 for others."""
    large = size > 256
    sampling = presets.pixnerd_euler100_512() if large else presets.pixnerd_euler50()
    return dataclasses.replace(experiment, conditioner=ClassLabels(), sampling=sampling)


def released_text(
    experiment: Experiment, model: PixNerdText, size: int, family: str
) -> Experiment:
    """25 steps of Adams-Bashforth, and Qwen3."""
    return with_text(experiment, model.text_length)


CLASSES, TEXTS = "y_embedder.embedding_table.weight", "y_embedder.proj.weight"
ARCHITECTURES = (
    Architecture(
        families=("pixnerd",),
        model=PixNerd(),
        marks=(
            *("s_embedder.proj.weight", "x_embedder.embedder.0.weight"),
            *(CLASSES, "blocks.0.mlp.w1.weight"),
        ),
        infer=infer,
        table=table,
        image_size=lambda model: 256,
        released=released,
    ),
    Architecture(
        families=("pixnerd", "pixelgen"),
        model=PixNerd(decoder=LinearDecoder()),
        marks=(
            *("x_embedder.proj.weight", "final_layer.adaLN_modulation.0.weight"),
            *(CLASSES, "blocks.0.mlp.w1.weight"),
        ),
        infer=infer_baseline,
        table=table,
        image_size=lambda model: 256,
        released=released,
    ),
    Architecture(
        families=("pixnerd",),
        model=PixNerdText(),
        marks=(
            *("s_embedder.proj.weight", "x_embedder.embedder.0.weight"),
            *(TEXTS, "blocks.0.attn.kv_y.weight"),
        ),
        infer=infer_text,
        table=text_table,
        image_size=lambda model: 512,
        released=released_text,
        some_size=lambda model: (
            model.canvas if len(model.canvas) == 2 else one_patch(model)
        ),
    ),
)
