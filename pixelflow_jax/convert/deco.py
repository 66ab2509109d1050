"""DeCo's official network, on classes."""

import dataclasses
import math

from pixelflow_jax.convert.architecture import Architecture
from pixelflow_jax.convert.rows import (
    attention_rows,
    modulation_rows,
    stacks,
    time_and_class_rows,
)
from pixelflow_jax.convert.sizes import (
    Fields,
    InferredConfig,
    Sizes,
    class_trunk,
    feature_layer,
)
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.deco import DeCo
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.layouts import patch_inputs, same
from pixelflow_jax.tensors.mapping import Row, linear_rows

BLOCKS = "dec_net.res_blocks"


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on classes."""
    last = "dec_net.final_layer.linear"
    channels = sizes.axis((f"{last}.bias", 0), (f"{last}.weight", 0))
    inputs = sizes.axis(("s_embedder.proj.weight", 1))
    patch = math.isqrt(inputs // channels) if inputs and channels else None
    from_tensors = class_trunk(sizes) | {
        "channels": channels,
        "patch": patch or None,
        "decoder.width": sizes.axis(
            ("dec_net.input_proj.bias", 0), (f"{last}.weight", 1)
        ),
        "decoder.depth": sizes.layers(BLOCKS, "in_ln.weight", "mlp.0.weight"),
    }
    layer = feature_layer(DeCo.feature_layer, from_tensors["depth"])
    return InferredConfig.of(from_tensors, {"feature_layer": layer})


def table(config: DeCo) -> list[Row]:
    """The mapping table."""
    layout = patch_inputs(config.channels, config.patch)
    rows = linear_rows("patch_embed", "s_embedder.proj", layout=layout)
    rows += time_and_class_rows()
    for stack, layers in stacks(0, config.feature_layer, config.depth).items():
        rows += attention_rows(stack, layers, bias=False)
        for a, b in {"gate": "w1", "up": "w3", "down": "w2"}.items():
            ours, theirs = f"{stack}/blocks/mlp/{a}", f"blocks.{{i}}.mlp.{b}"
            rows += linear_rows(ours, theirs, layers, bias=False)
        rows += modulation_rows(stack, layers, 0)
    return rows + _decoder_rows(range(config.decoder.depth))


def _decoder_rows(layers: range) -> list[Row]:
    ours, theirs = "decoder/stack/blocks", f"{BLOCKS}.{{i}}"
    return [
        *linear_rows("decoder/embed/proj", "x_embedder.embedder.0"),
        *linear_rows("decoder/proj", "dec_net.input_proj"),
        *linear_rows("decoder/condition", "dec_net.cond_embed"),
        Row(f"{ours}/weight", f"{theirs}.in_ln.weight", same, layers),
        Row(f"{ours}/bias", f"{theirs}.in_ln.bias", same, layers),
        *linear_rows(f"{ours}/hidden", f"{theirs}.mlp.0", layers),
        *linear_rows(f"{ours}/out", f"{theirs}.mlp.2", layers),
        *linear_rows(f"{ours}/modulation", f"{theirs}.adaLN_modulation.1", layers),
        *linear_rows("decoder/linear", "dec_net.final_layer.linear"),
    ]


def released(experiment: Experiment, model: DeCo, size: int, family: str) -> Experiment:
    """Euler, 100 steps, with the guidance of the size."""
    large = size > 256
    sampling = presets.deco_euler100_512() if large else presets.deco_euler100()
    return dataclasses.replace(experiment, sampling=sampling)


ARCHITECTURES = (
    Architecture(
        families=("deco",),
        model=DeCo(),
        marks=(
            *("s_embedder.proj.weight", "x_embedder.embedder.0.weight"),
            *("y_embedder.embedding_table.weight", "blocks.0.mlp.w1.weight"),
            *("dec_net.cond_embed.weight", "dec_net.input_proj.weight"),
            *(f"{BLOCKS}.0.mlp.0.weight", "dec_net.final_layer.linear.weight"),
        ),
        infer=infer,
        table=table,
        image_size=lambda model: 256,
        released=released,
    ),
)
