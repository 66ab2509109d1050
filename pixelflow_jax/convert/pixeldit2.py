"""PixelDiT2's official network, on classes; its encoder lies in a file of its own."""

import dataclasses
import math

from pixelflow_jax.conditioning.grounded import GroundedLabels
from pixelflow_jax.convert.architecture import Architecture
from pixelflow_jax.convert.rows import (
    attention_rows,
    modulation_rows,
    stacks,
    time_and_class_rows,
)
from pixelflow_jax.convert.sizes import (
    NORMS,
    Fields,
    InferredConfig,
    Sizes,
    feature_layer,
    patch_and_channels,
)
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.sampling import presets
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.dinov3 import VARIANTS, DinoV3
from pixelflow_jax.tensors.layouts import leading, patch_inputs
from pixelflow_jax.tensors.mapping import Row, linear_rows

BLOCKS, GROUND = "patch_blocks", "dino_conditioner.dino_proj"
CONTEXT = "in_context_posemb"


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of a model on classes."""
    width = sizes.axis(("t_embedder.mlp.2.bias", 0))
    head = sizes.axis((f"{BLOCKS}.0.attn.q_norm.weight", 0))
    ground_head = sizes.axis((f"{GROUND}.blocks.0.attn.q_norm.weight", 0))
    heads = width // head if width and head else None
    hidden = sizes.axis((f"{BLOCKS}.0.mlp.w1.weight", 0))
    inputs = sizes.axis(("s_embedder.proj.weight", 1), ("final_layer.linear.bias", 0))
    from_tensors: Fields = {
        "width": width,
        "heads": heads,
        "num_classes": sizes.num_classes(),
        "depth": sizes.layers(BLOCKS, *NORMS),
        "ground_depth": sizes.layers(f"{GROUND}.blocks", *NORMS),
        "ground_heads": width // ground_head if width and ground_head else None,
        "context_length": sizes.axis((CONTEXT, 1)) or 0,
    }
    plain = PixelDiT2(width=width or PixelDiT2.width).mlp_width
    depth = from_tensors["depth"]
    rounded = bool(hidden) and hidden != plain
    assumed = patch_and_channels(inputs, given) | {
        "feature_layer": feature_layer(PixelDiT2.feature_layer, depth),
        "context_start": min(PixelDiT2.context_start, max(depth - 1, 0)),
        "encoder": _encoder(sizes.axis((f"{GROUND}.input_proj.weight", 1))),
        "mlp_multiple": _multiple(hidden, plain) if hidden and rounded else 0,
        # Of the two released models, that for 512 pixels has both.
        "single_silu": rounded,
        "dropout": 0.2,  # that both were trained with
    }
    return InferredConfig.of(from_tensors, assumed)


def _encoder(width: int | None) -> DinoV3 | None:
    """The DINOv3 whose tokens are that wide; where none is published, a block of it."""
    if width is None:
        return None
    for variant, geometry in VARIANTS.items():
        if geometry.width == width:
            return DinoV3(variant=variant)
    return DinoV3(geometry=Geometry(width=width, heads=1, depth=1, patch=16))


def _multiple(hidden: int, plain: int) -> int:
    """The largest power of two that rounds `plain` up to `hidden`."""
    powers = [2**k for k in range(20) if hidden % 2**k == 0 and hidden - plain < 2**k]
    return max(powers, default=math.gcd(hidden, 2**20))


def table(config: PixelDiT2) -> list[Row]:
    """The mapping table, of all but the encoder."""
    layout = patch_inputs(config.channels, config.patch)
    rows = [
        *linear_rows("patch_embed", "s_embedder.proj", layout=layout),
        *time_and_class_rows(),
        *linear_rows("ground/proj", f"{GROUND}.input_proj"),
        *linear_rows("ground/time_embed/hidden", f"{GROUND}.t_embedder.mlp.0"),
        *linear_rows("ground/time_embed/out", f"{GROUND}.t_embedder.mlp.2"),
        *linear_rows("ground/out", f"{GROUND}.output_proj"),
        Row("decoder/norm/weight", "final_layer.norm.weight"),
        *linear_rows("decoder/modulation", "final_layer.adaLN_modulation.1"),
        *linear_rows("decoder/linear", "final_layer.linear"),
    ]
    if config.context_length:
        rows.append(Row("context", CONTEXT, leading))
    if config.ground_depth:
        adapter = range(config.ground_depth)
        rows += _block_rows("ground/stack", adapter, f"{GROUND}.blocks")
    for stack, layers in stacks(0, *config.cuts, config.depth).items():
        rows += _block_rows(stack, layers, BLOCKS)
    return rows


def _block_rows(stack: str, layers: range, official: str) -> list[Row]:
    rows = attention_rows(stack, layers, bias=False, official=official)
    for a, b in {"gate": "w1", "up": "w3", "down": "w2"}.items():
        ours, theirs = f"{stack}/blocks/mlp/{a}", f"{official}.{{i}}.mlp.{b}"
        rows += linear_rows(ours, theirs, layers, bias=False)
    return rows + modulation_rows(stack, layers, 1, official)


def released(
    experiment: Experiment, model: PixelDiT2, size: int, family: str
) -> Experiment:
    """50 steps of Heun; the weaker branch has neither class nor grounding.

    At 512 pixels the noise is twice as large, as JiT's.
    """
    large = size > 256
    sampling = presets.pixeldit2_heun50_512() if large else presets.pixeldit2_heun50()
    return dataclasses.replace(
        experiment,
        path=Straight(noise_scale=2.0 if large else 1.0),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.8, std=0.8),
        conditioner=GroundedLabels(),
        sampling=sampling,
    )


ARCHITECTURES = (
    Architecture(
        families=("pixeldit2",),
        model=PixelDiT2(),
        marks=(
            *("s_embedder.proj.weight", "y_embedder.embedding_table.weight"),
            *(f"{BLOCKS}.0.mlp.w1.weight", f"{GROUND}.input_proj.weight"),
            *(f"{GROUND}.output_proj.weight", "final_layer.norm.weight"),
        ),
        infer=infer,
        table=table,
        image_size=lambda model: 512 if model.single_silu else 256,
        released=released,
    ),
)
