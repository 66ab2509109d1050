"""The official networks of all families: which one a state dict is, and its config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from pixelflow_jax.config_types import type_errors
from pixelflow_jax.convert import (
    asymflow,
    deco,
    pixeldit2,
    pixelflow,
    pixelgen,
    pixnerd,
)
from pixelflow_jax.convert.architecture import Architecture
from pixelflow_jax.convert.sizes import Fields, Sizes
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.paths import printable
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row
from pixelflow_jax.validate import size_problems

ARCHITECTURES = (
    *pixelflow.ARCHITECTURES,
    *pixnerd.ARCHITECTURES,
    *asymflow.ARCHITECTURES,  # before PixelGen, whose model it has
    *pixelgen.ARCHITECTURES,
    *deco.ARCHITECTURES,
    *pixeldit2.ARCHITECTURES,
)
FAMILIES = tuple(dict.fromkeys(name for one in ARCHITECTURES for name in one.families))
# How a model is computed: no tensor tells, and no result depends on it.
EXECUTION = ("stack", "decoder.stack")


def guess(keys: Mapping[str, object]) -> Architecture | None:
    """The one most of whose marks are among some names; None for half of any or fewer.

    One may hold all marks of another and some more: the more are found, the surer.
    """
    likely = [one for one in ARCHITECTURES if one.likeness(keys) > 0.5]
    found = lambda one: (one.likeness(keys) * len(one.marks), one.likeness(keys))
    return max(likely, key=found, default=None)


def architecture_of(tensors: Mapping[str, LazyTensor], family: str) -> Architecture:
    """That of a state dict; ConvertError for none, or one of another family."""
    architecture = guess(tensors)
    if architecture is None:
        some = ", ".join(printable(name)[:100] for name in sorted(tensors)[:4])
        raise ConvertError(
            f"These tensors are of none of the families {', '.join(FAMILIES)}: they "
            f"are called {some} and so on. Look at the file with `inspect`."
        )
    if family and family not in architecture.families:
        marks = ", ".join(mark for mark in architecture.marks if mark in tensors)
        raise ConvertError(
            f"The weights are {type(architecture.model).__name__}'s, of the family "
            f"{' or '.join(architecture.families)}, not {family}: they hold {marks}. "
            f"Give --family={architecture.families[0]}, or leave it away."
        )
    return architecture


def table_of(model: DenoiserConfig) -> list[Row]:
    """The mapping table of a model of ours; ConvertError where no official code is."""
    return architecture_for(model).table(model)


def architecture_for(
    model: DenoiserConfig, prediction: Prediction | None = None
) -> Architecture:
    """The official network of a model of ours, that of its prediction where it has one.

    Raises ConvertError where there is no official code.
    """
    for architecture in ARCHITECTURES:
        if type(architecture.model) is not type(model):
            continue
        theirs = architecture.prediction(model, {})
        if theirs is None or type(theirs) is type(prediction):
            return architecture
    known = dict.fromkeys(type(one.model).__name__ for one in ARCHITECTURES)
    raise ConvertError(
        f"There is no official code of a {type(model).__name__} to write weights for: "
        f"only {', '.join(known)} have one."
    )


def shapes_of(model: DenoiserConfig) -> dict:
    """The shapes of a model's parameters; like `Network.shapes`, in half the time."""
    abstract = nnx.eval_shape(lambda: model.build(nnx.Rngs(params=0), Precision()))
    return nnx.to_pure_dict(nnx.state(abstract, nnx.Param))


@dataclasses.dataclass(frozen=True)
class InferredModel:
    """The model of a state dict, and the fields that had to be assumed."""

    model: DenoiserConfig
    assumed: Fields


def infer(
    architecture: Architecture,
    tensors: Mapping[str, LazyTensor],
    given: Fields,
    source: str,
) -> InferredModel:
    """The model of a state dict; `given` fields go before assumed ones.

    Raises ConvertError with every given field (from `source`) that does not exist, is
    of a wrong type, says something else than the tensors, or makes no model.
    """
    sizes = Sizes({key: tensor.shape for key, tensor in tensors.items()})
    inferred = architecture.infer(sizes, given)
    from_tensors, known = inferred.from_tensors, fields(architecture.model)
    problems = []
    if unknown := [name for name in given if name not in known]:
        problems.append(
            f"{', '.join(unknown)} in {source}: the weights are "
            f"{type(architecture.model).__name__}'s, whose fields are "
            f"{', '.join(known)}"
        )
    problems += [
        f"{name}={value!r} in {source}, but the tensors say {from_tensors[name]!r}"
        for name, value in given.items()
        if name in from_tensors and from_tensors[name] != value
    ]
    model = architecture.model
    if not problems:
        model = replaced(model, {**inferred.assumed, **given, **from_tensors})
        problems = type_errors(model)
        if given and not problems:  # what is assumed need not make a model that runs
            problems = model.problems(*architecture.some_size(model))
    if problems:
        raise ConvertError(
            "The model these weights and the given fields describe cannot be:\n  "
            + "\n  ".join(problems)
        )
    certain = {*given, *from_tensors, *EXECUTION, *inferred.unused}
    left = {k: v for k, v in fields(model).items() if k not in certain}
    return InferredModel(model, left)


def fields(model: DenoiserConfig) -> Fields:
    """A model's fields, flat: those of its decoder are called "decoder.NAME"."""
    flat: Fields = {}
    node: Any = model  # a dataclass, which its Protocol does not say
    for field in dataclasses.fields(node):
        value = getattr(model, field.name)
        if field.name == "decoder":
            inside = dataclasses.fields(value)
            flat |= {f"decoder.{f.name}": getattr(value, f.name) for f in inside}
        else:
            flat[field.name] = value
    return flat


def execution(model: DenoiserConfig) -> Fields:
    """Those of a model's fields that say how it is computed."""
    return {k: v for k, v in fields(model).items() if k in EXECUTION}


def replaced(model: DenoiserConfig, values: Fields) -> DenoiserConfig:
    """The model with other values of flat fields."""
    node: Any = model
    own = {name: value for name, value in values.items() if "." not in name}
    prefix = "decoder."
    inside = {k.removeprefix(prefix): v for k, v in values.items() if k not in own}
    if inside:
        own["decoder"] = dataclasses.replace(node.decoder, **inside)
    return dataclasses.replace(node, **own)


def released_experiment(
    architecture: Architecture, family: str, model: DenoiserConfig, size: int, name: str
) -> Experiment:
    """The config that a family's released weights are sampled with, at `size` pixels.

    Raises ConvertError where the model cannot draw images of that size.
    """
    data = Data(source=Tfds(), image_size=size)
    plain = Experiment(name=name, model=model, data=data)
    experiment = architecture.released(plain, model, size, family)
    if problems := size_problems(experiment, size, size):
        listed = "; ".join(problems)
        raise ConvertError(f"{listed}. Mend that with --set or --image-size.")
    return experiment
