"""PixelFlow's official networks, for classes and for text."""

import dataclasses

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.convert.architecture import Architecture
from pixelflow_jax.convert.rows import stacks
from pixelflow_jax.convert.sizes import Fields, InferredConfig, Sizes, feature_layer
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree, stage_ramp
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.layouts import patch_convolution, same
from pixelflow_jax.tensors.mapping import Row, linear_rows

BLOCKS = "transformer_blocks"
HEAD_WIDTH = 72  # of the released model, whose tensors do not tell it
KICKOFF = 8  # tokens along a side of the first stage


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config, for classes or text."""
    patches, first, second = "patch_embed.proj.weight", f"{BLOCKS}.0.attn1", "attn2"
    second = f"{BLOCKS}.0.{second}"
    width = sizes.axis(("patch_embed.proj.bias", 0), (f"{BLOCKS}.0.norm3.weight", 0))
    rows = sizes.axis(("class_embedder.embedding_table.weight", 0))
    text = sizes.axis((f"{second}.k_proj.weight", 1), (f"{second}.v_proj.weight", 1))
    depth = sizes.layers(BLOCKS, "norm3.weight", "mlp.fc1.bias")
    biases = (f"{first}.{name}_proj.bias" for name in "qkvo")
    from_tensors = {
        "num_classes": rows - 1 if rows else 0 if text else None,
        "channels": sizes.axis((patches, 1)),
        "patch": sizes.axis((patches, 2), (patches, 3)),
        "width": width,
        "depth": depth,
        "text_width": text or 0,
        "attention_bias": any(bias in sizes for bias in biases),
    }
    assumed = {
        "heads": width // HEAD_WIDTH if width and not width % HEAD_WIDTH else None,
        "feature_layer": feature_layer(PixelFlow.feature_layer, depth),
    }
    return InferredConfig.of(from_tensors, assumed)


def table(config: PixelFlow) -> list[Row]:
    """The mapping table of a model of this config."""
    convolution = patch_convolution(config.channels, config.patch)
    rows = [
        *linear_rows("patch_embed", "patch_embed.proj", layout=convolution),
        *linear_rows("time_embed/hidden", "timestep_embedder.linear_1"),
        *linear_rows("time_embed/out", "timestep_embedder.linear_2"),
        *linear_rows("size_embed/hidden", "latent_size_embedder.linear_1"),
        *linear_rows("size_embed/out", "latent_size_embedder.linear_2"),
        *linear_rows("decoder/modulation", "proj_out_1"),
        # Its outputs are (row, column, channel), like ours.
        *linear_rows("decoder/linear", "proj_out_2"),
    ]
    if config.num_classes:
        rows.append(Row("class_embed/table", "class_embedder.embedding_table.weight"))
    for stack, layers in stacks(0, config.feature_layer, config.depth).items():
        rows += _blocks(config, stack, layers)
    return rows


def _blocks(config: PixelFlow, stack: str, layers: range) -> list[Row]:
    ours, theirs = f"{stack}/blocks", f"{BLOCKS}.{{i}}"

    def linear(a: str, *b: str, bias: bool = True) -> list[Row]:
        official = tuple(f"{theirs}.{name}" for name in b)
        return linear_rows(f"{ours}/{a}", official, layers, bias=bias)

    def norm(a: str, b: str) -> Row:
        return Row(f"{ours}/{a}/weight", f"{theirs}.{b}.weight", same, layers)

    def attention(a: str, b: str, *fused: str) -> list[Row]:
        """Each of `fused` holds the letters of projections that are one with us."""
        rows = [norm(f"{a}/{n}_norm", f"{b}.{n}_norm") for n in "qk"]
        for name, letters in [("out", "o"), *zip(fused, fused, strict=True)]:
            official = [f"{b}.{letter}_proj" for letter in letters]
            rows += linear(f"{a}/{name}", *official, bias=config.attention_bias)
        return rows

    rows = [
        *linear("modulation", "norm1.linear"),
        *attention("attention", "attn1", "qkv"),
        norm("norm3", "norm3"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
    ]
    if config.text_width:
        rows.append(norm("norm2", "norm2"))
        rows += attention("cross_attention", "attn2", "q", "kv")
    return rows


def released(
    experiment: Experiment, model: PixelFlow, size: int, family: str
) -> Experiment:
    """Dopri5 and a growing guidance for classes, ten steps of Euler for text."""
    num_stages = max(1, (size // (model.patch * KICKOFF)).bit_length())
    if model.num_classes:
        conditioner, sampling = ClassLabels(), presets.dopri5_stagewise24()
        assert isinstance(sampling.guidance, ClassifierFree)
        sampling.guidance.ramp = stage_ramp(num_stages)
    else:
        conditioner, sampling = Text(), presets.euler10_cfg4()
    return dataclasses.replace(
        experiment,
        conditioner=conditioner,
        path=Pyramid(num_stages=num_stages),
        time=Uniform(levels=1000),
        sampling=sampling,
    )


ARCHITECTURES = (
    Architecture(
        families=("pixelflow",),
        model=PixelFlow(),
        marks=(
            "patch_embed.proj.weight",
            "timestep_embedder.linear_1.weight",
            f"{BLOCKS}.0.norm1.linear.weight",
            "proj_out_2.weight",
        ),
        infer=infer,
        table=table,
        image_size=lambda model: 256,
        released=released,
    ),
)
