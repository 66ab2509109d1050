"""AsymFlow's official network: JiT on classes, with the basis of its prediction.

It differs from JiT's in four ways. It is told 1 - t (the prediction's `timestep`). Its
output is minus ours. Its table of positions has another name. And it stores buffers:
the basis, the scale, and rotary tables that follow from its sizes.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pixelflow_jax.convert import pixelgen
from pixelflow_jax.convert.architecture import Architecture
from pixelflow_jax.convert.sizes import (
    Fields,
    InferredConfig,
    Sizes,
    feature_layer,
)
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.basis import BASIS
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.embed import rotary_table
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.layouts import leading, negated
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row

POSITIONS = "x_embedder.pos_embed"
PROJECTION, SCALE = "proj_buffer", "scale_buffer"
ROTARY = ("feat_rope", "feat_rope_incontext")  # one behind the tokens of the class
ALIGNED = 8  # the block whose tokens REPA looks at
OUTPUT = ("final_layer.linear.weight",), ("final_layer.linear.bias",)


def infer(sizes: Sizes, given: Fields) -> InferredConfig:
    """The config of the model, JiT's, aligned behind another block."""
    shapes = dict(sizes.shapes)
    if POSITIONS in shapes:
        shapes[pixelgen.POSITIONS] = shapes[POSITIONS]
    inferred = pixelgen.infer(Sizes(shapes), given)
    layer = feature_layer(ALIGNED, inferred.from_tensors["depth"])
    assumed = inferred.assumed | {"feature_layer": layer}
    return dataclasses.replace(inferred, assumed=assumed)


def table(config: PixelGen) -> list[Row]:
    """The mapping table: JiT's, with another sign of the output, and the basis."""
    rows = []
    for row in pixelgen.table(config):
        if row.names() in OUTPUT:
            row = dataclasses.replace(row, layout=negated(row.layout))
        if row.names() == (pixelgen.POSITIONS,):
            row = Row("position", POSITIONS, leading)
        rows.append(row)
    return [*rows, Row(f"{CONSTANTS}/{BASIS}", PROJECTION)]


def prediction(model: PixelGen, tensors: Mapping[str, LazyTensor]) -> PredictAsymmetric:
    """The prediction that belongs to the weights."""
    scale = 1.0
    if SCALE in tensors:
        scale = float(np.asarray(tensors[SCALE].read(), np.float32).reshape(-1)[0])
    rank = tensors[PROJECTION].shape[-1] if PROJECTION in tensors else 0
    return PredictAsymmetric(
        rank=rank, patch=model.patch, scale=scale, timestep="noise"
    )


def buffers(model: PixelGen, settings: PredictAsymmetric) -> dict[str, np.ndarray]:
    """What is stored besides the parameters and the basis, by its official name.

    The rotary tables have a column for every number of a head, and rows for the tokens
    of the class, which do not turn, in none of them. Raises ConvertError for what the
    official network cannot be.
    """
    numbers = model.patch**2 * model.channels
    if settings.timestep != "noise" or settings.rank in (0, numbers):
        raise ConvertError(
            'The official network is told 1 - t (prediction.timestep="noise") and has '
            f"a basis of 1 to {numbers - 1} directions, not timestep="
            f"{settings.timestep!r} and rank={settings.rank}."
        )
    side, head = model.image_size // model.patch, model.width // model.heads
    cos, sin = rotary_table(side, side, head, None, halves=True, row_first=True)
    tables = {"freqs_cos": cos.repeat(2, -1), "freqs_sin": sin.repeat(2, -1)}
    found = {
        f"{name}.base_rope.{part}": a for name in ROTARY for part, a in tables.items()
    }
    return found | {SCALE: np.array([settings.scale], np.float32)}


def released(
    experiment: Experiment, model: PixelGen, size: int, family: str
) -> Experiment:
    """50 steps of Heun, guided on [0.12, 1] at each evaluation's own time."""
    return dataclasses.replace(
        experiment,
        time=LogitNormal(mean=-0.8, std=0.8),
        sampling=presets.asymflow_heun50(),
    )


ARCHITECTURES = (
    Architecture(
        families=("asymflow",),
        model=PixelGen(),
        marks=(
            *("x_embedder.proj1.weight", "final_layer.norm_final.weight"),
            *("y_embedder.embedding_table.weight", "blocks.0.attn.qkv.bias"),
            *(POSITIONS, PROJECTION, SCALE),
        ),
        infer=infer,
        table=table,
        image_size=lambda model: model.image_size,
        released=released,
        prediction=prediction,
        buffers=buffers,
    ),
)
