"""The official architectures: how to tell them apart, their configs and tables."""

import dataclasses
from collections.abc import Callable, Mapping

from flax import nnx

from pixelflow_jax.config_io import type_errors
from pixelflow_jax.convert import (
    infer,
    pixelflow,
    pixelgen,
    pixelgen_text,
    pixnerd,
    pixnerd_text,
)
from pixelflow_jax.convert.infer import Fields, InferredConfig, Sizes
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import LinearDecoder, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row

# How a model is computed: no tensor tells, and no result depends on it.
EXECUTION = ("attention", "stack", "decoder.stack", "decoder.kernel")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One architecture: `families` that have it, `model` with its defaults.

    `marks` are tensors of its first block and its ends, which only together are its
    own; `read` reads sizes, `table` maps names.
    """

    families: tuple[str, ...]
    model: DenoiserConfig
    marks: tuple[str, ...]
    read: Callable[[Sizes, Fields], InferredConfig]
    table: Callable[..., list[Row]]

    def likeness(self, keys: Mapping[str, object]) -> float:
        """The share of the marks that is there."""
        return sum(mark in keys for mark in self.marks) / len(self.marks)


CLASSES, TEXTS = "y_embedder.embedding_table.weight", "y_embedder.proj.weight"
BLOCK = "blocks.0"
VARIANTS = (
    Variant(
        ("pixelflow",),
        PixelFlow(),
        (
            "patch_embed.proj.weight",
            "timestep_embedder.linear_1.weight",
            "transformer_blocks.0.norm1.linear.weight",
            "proj_out_2.weight",
        ),
        infer.pixelflow,
        pixelflow.table,
    ),
    Variant(
        ("pixnerd",),
        PixNerd(),
        (
            "s_embedder.proj.weight",
            "x_embedder.embedder.0.weight",
            CLASSES,
            f"{BLOCK}.mlp.w1.weight",
        ),
        infer.pixnerd,
        pixnerd.table,
    ),
    Variant(
        ("pixnerd", "pixelgen"),
        PixNerd(decoder=LinearDecoder()),
        (
            "x_embedder.proj.weight",
            "final_layer.adaLN_modulation.0.weight",
            CLASSES,
            f"{BLOCK}.mlp.w1.weight",
        ),
        infer.baseline,
        pixnerd.table,
    ),
    Variant(
        ("pixnerd",),
        PixNerdText(),
        (
            "s_embedder.proj.weight",
            "x_embedder.embedder.0.weight",
            TEXTS,
            f"{BLOCK}.attn.kv_y.weight",
        ),
        infer.pixnerd_text,
        pixnerd_text.table,
    ),
    Variant(
        ("pixelgen", "jit"),
        PixelGen(),
        (
            "x_embedder.proj1.weight",
            "final_layer.norm_final.weight",
            CLASSES,
            f"{BLOCK}.attn.qkv.bias",
        ),
        infer.pixelgen,
        pixelgen.table,
    ),
    Variant(
        ("pixelgen",),
        PixelGenText(),
        (
            "x_embedder.proj1.weight",
            "x_embedder.proj2.weight",
            TEXTS,
            f"{BLOCK}.attn.kv_y.weight",
        ),
        infer.pixelgen_text,
        pixelgen_text.table,
    ),
)
FAMILIES = tuple(dict.fromkeys(name for one in VARIANTS for name in one.families))


def guess(keys: Mapping[str, object]) -> Variant | None:
    """The variant whose marks are there; None where fewer than half of any are."""
    best = max(VARIANTS, key=lambda variant: variant.likeness(keys))
    return best if best.likeness(keys) > 0.5 else None


def table_of(model: DenoiserConfig) -> list[Row]:
    """The mapping table of a model of ours."""
    return next(v for v in VARIANTS if type(v.model) is type(model)).table(model)


def shapes_of(model: DenoiserConfig) -> dict:
    """The shapes of a model's parameters; like `Network.shapes`, in half the time."""
    abstract = nnx.eval_shape(lambda: model.build(nnx.Rngs(params=0), Precision()))
    return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))


def variant_of(tensors: Mapping[str, LazyTensor], family: str) -> Variant:
    """The variant of a state dict; ConvertError for none, or one of another family."""
    found = guess(tensors)
    if found is None:
        some = ", ".join(sorted(tensors)[:4])
        raise ConvertError(
            f"These tensors are of none of the families {', '.join(FAMILIES)}: they "
            f"are called {some} and so on. Look at the file with `inspect`."
        )
    if family and family not in found.families:
        there = ", ".join(mark for mark in found.marks if mark in tensors)
        raise ConvertError(
            f"The weights are {type(found.model).__name__}'s, of the family "
            f"{' or '.join(found.families)}, not {family}: they hold {there}. Give "
            f"--family={found.families[0]}, or leave it away."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Inferred:
    """The model of a state dict, and the fields that had to be assumed."""

    model: DenoiserConfig
    assumed: Fields


def inferred(
    variant: Variant, tensors: Mapping[str, LazyTensor], given: Fields, source: str
) -> Inferred:
    """The config of a state dict's model; `given` fields go before assumed ones.

    Raises ConvertError with every given field (from `source`) that does not exist, is
    of a wrong type, says something else than the tensors, or makes no model.
    """
    sizes = Sizes({key: tensor.shape for key, tensor in tensors.items()})
    read = variant.read(sizes, given)
    known = fields(variant.model)
    problems = []
    if unknown := [name for name in given if name not in known]:
        problems.append(
            f"{', '.join(unknown)} in {source}: the weights are "
            f"{type(variant.model).__name__}'s, whose fields are {', '.join(known)}"
        )
    problems += [
        f"{name}={value!r} in {source}, but the tensors say {read.told[name]!r}"
        for name, value in given.items()
        if name in read.told and read.told[name] != value
    ]
    if not problems:
        model = replaced(variant.model, {**read.assumed, **given, **read.told})
        problems = type_errors(model)
        if given and not problems:  # what is assumed need not make a model that runs
            canvas = getattr(model, "canvas", ())
            smallest = canvas if len(canvas) == 2 else (model.patch, model.patch)
            problems = model.problems(*smallest)
    if problems:
        raise ConvertError(
            "The model these weights and the given fields describe cannot be:\n  "
            + "\n  ".join(problems)
        )
    fixed = {*given, *read.told, *EXECUTION}
    return Inferred(model, {k: v for k, v in fields(model).items() if k not in fixed})


def fields(model: DenoiserConfig) -> Fields:
    """A model's fields, flat: those of its decoder are called "decoder.NAME"."""
    found: Fields = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name == "decoder":
            inside = dataclasses.fields(value)
            found |= {f"decoder.{f.name}": getattr(value, f.name) for f in inside}
        else:
            found[field.name] = value
    return found


def replaced(model: DenoiserConfig, values: Fields) -> DenoiserConfig:
    """The model with other values of flat fields."""
    own = {name: value for name, value in values.items() if "." not in name}
    prefix = "decoder."
    inside = {k.removeprefix(prefix): v for k, v in values.items() if k not in own}
    if inside:
        own["decoder"] = dataclasses.replace(model.decoder, **inside)
    return dataclasses.replace(model, **own)
