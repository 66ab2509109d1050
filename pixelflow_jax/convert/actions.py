"""What the converter does: official weights to ours, back, and to safetensors."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from pixelflow_jax.atomic import PARTIAL
from pixelflow_jax.convert import checkpoints, families
from pixelflow_jax.convert.architecture import Architecture, keep_size
from pixelflow_jax.convert.sizes import Fields
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import CONSTANTS, Prediction
from pixelflow_jax.models.interface import DenoiserConfig, count
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.tensors import finite, mapping, reader
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors import torch_files as pytorch
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.paths import by_path

Progress = Callable[[int], object]  # is told bytes that were written
# What tells models of one class apart.
SIZES = "width heads depth text_depth patch context_length num_classes".split()
UNKNOWN = "data and batch of the training are not known, the config's are defaults"


@dataclasses.dataclass(frozen=True)
class Understood:
    """A model in an official file that fits its table.

    `family` is the one whose sampler it has, `notes` what a user should know, in lines,
    `prediction` what the network predicts, where the tensors tell.
    """

    model: DenoiserConfig
    architecture: Architecture
    family: str
    tensors: Mapping[str, LazyTensor]
    table: list[mapping.Row]
    origin: str
    step: int
    notes: tuple[str, ...]
    prediction: Prediction | None = None


def understood(
    source: pathlib.Path,
    *,
    family: str = "",
    weights: str = "",
    given: Fields | None = None,
    given_by: str = "--set",
    image_size: int = 0,
    allow_nonfinite: bool = False,
) -> Understood:
    """The model in an official file or folder.

    `given` are fields of its config that tensors cannot tell, `image_size` another size
    than that of its stored positions (0: the same), which are then computed as the
    official code does. NaN and infinities are refused as they are read, unless
    `allow_nonfinite`. Raises ConvertError with everything that does not fit,
    WeightsError for files that cannot be read.
    """
    if published.is_ours(source):
        raise ConvertError(
            f"{source} is already in the format of pixelflow_jax: `to-torch` converts "
            "it to an official one."
        )
    checkpoint = checkpoints.checkpoint(_content(source))
    chosen = checkpoint.chosen(weights)
    architecture = families.architecture_of(chosen.tensors, family)
    inferred = families.infer(architecture, chosen.tensors, given or {}, given_by)
    resize = architecture.resize if image_size else keep_size
    resized = resize(inferred.model, chosen.tensors, image_size)
    model = resized.model
    prediction = architecture.prediction(model, resized.tensors)
    table, buffers = architecture.table(model), architecture.buffers(model, prediction)
    tensors = {k: a for k, a in resized.tensors.items() if k not in buffers}
    problems = mapping.problems(table, tensors, _shapes(model, prediction))
    problems += _differing(buffers, resized.tensors)
    problems += [f"unexpected: {key}" for key in checkpoint.stray]
    _refuse_unlike(f"{source} ({chosen.place or 'its tensors'})", model, problems)
    family = family or architecture.family(chosen.place)
    notes = (
        f"{described(model)}, {count(_shapes(model, None)):,} parameters",
        f"family: {family}",
        *_left_out(checkpoint, chosen),
        *(f"assumed: {k}={v!r}" for k, v in inferred.assumed.items()),
        *resized.notes,
    )
    return Understood(
        model=model,
        architecture=architecture,
        family=family,
        tensors=finite.checked(tensors, str(source), allow_nonfinite),
        table=table,
        prediction=prediction,
        origin=" ".join(filter(None, [source.name, chosen.place])),
        step=checkpoint.step,
        notes=notes,
    )


def _refuse_unlike(where: str, model: DenoiserConfig, problems: list[str]) -> None:
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise ConvertError(
            f"{where} does not hold the weights of {described(model)}:{listed}"
        )


def _left_out(
    checkpoint: checkpoints.Checkpoint, chosen: checkpoints.Weights
) -> list[str]:
    """What is taken of a checkpoint and what is not, in lines."""
    others = [name for name in checkpoint.weights if name != chosen.name]
    return [
        f"weights: {chosen.name} ({chosen.place or 'the tensors of the file'})",
        *(f"left out: the weights {name}" for name in others),
        *(f"left out: {note}" for note in checkpoint.notes),
    ]


def _shapes(model: DenoiserConfig, prediction: Prediction | None) -> dict:
    """The parameters' shapes, and those of the prediction's constants."""
    shapes = families.shapes_of(model)
    if prediction is not None:
        shapes[CONSTANTS] = prediction.constant_shapes(model.channels)
    return shapes


def _differing(
    buffers: Mapping[str, np.ndarray], tensors: Mapping[str, LazyTensor]
) -> list[str]:
    """Stored buffers that are absent, or not what model and prediction make them."""
    lines = [f"missing: {key}" for key in sorted(set(buffers) - set(tensors))]
    for key in sorted(set(buffers) & set(tensors)):
        stored = np.asarray(tensors[key].read(), np.float32)
        # Tables of angles were rounded elsewhere, perhaps in half precision.
        if stored.shape != buffers[key].shape or not np.allclose(
            stored, buffers[key], atol=1e-2
        ):
            lines.append(f"differs: {key} is not what this model's sizes make it")
    return lines


def _content(source: pathlib.Path) -> object:
    """What a file or a folder's files hold; WeightsError, ConvertError."""
    if not source.exists():
        raise ConvertError(f"There is no file {source}.")
    return reader.tensors(source) if source.is_dir() else reader.opened(source)


def described(model: DenoiserConfig) -> str:
    """A model's class and main sizes in words."""
    known = families.fields(model)
    named = [f"{name} {known[name]}" for name in SIZES if name in known]
    return f"{type(model).__name__} of {', '.join(named)}"


def from_torch(
    weights: Understood,
    out: pathlib.Path,
    *,
    config: Experiment | None = None,
    image_size: int = 0,
    overwrite: bool = False,
    advance: Progress = lambda count: None,
) -> None:
    """Write official weights as a published folder.

    Without a `config` of its own, it gets the settings that the released weights of
    its family are sampled with, at `image_size` (0: the released one).
    """
    _check_folder(out, overwrite)
    model, origin = weights.model, weights.origin
    if config is None:
        size = image_size or weights.architecture.image_size(model)
        config = families.released_experiment(
            weights.architecture, weights.family, model, size, out.absolute().name
        )
        origin += f", converted; {UNKNOWN}"
    else:
        model = families.replaced(model, families.execution(config.model))
        size = image_size or config.data.image_size
        data = dataclasses.replace(config.data, image_size=size)
        config = dataclasses.replace(config, model=model, data=data)
        origin += ", converted"
    if weights.prediction is not None:
        config = dataclasses.replace(config, prediction=weights.prediction)
    description = Description(
        config=config,
        class_names=tuple(map(str, range(model.num_classes))),
        step=weights.step,
        origin=origin,
    )
    flat = mapping.imported(weights.table, weights.tensors)
    published.write_folder(out, flat, description, advance=advance)


def to_safetensors(
    weights: Understood,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    advance: Progress = lambda count: None,
) -> None:
    """Write official weights under their official names, without any pickle."""
    _check_file(out, (".safetensors",), overwrite)
    safe.write(out, weights.tensors, {"format": "pt"}, advance)


def to_torch(
    source: pathlib.Path,
    out: pathlib.Path,
    *,
    layout: str = "",
    ema: str = "",
    overwrite: bool = False,
    advance: Progress = lambda count: None,
) -> tuple[str, ...]:
    """Write weights of ours as an official file; returns notes.

    `layout` is one of `checkpoints.LAYOUTS`; "" is Lightning's for `.ckpt` and
    plain otherwise. `ema` chooses an average of a training run.
    """
    _check_file(out, (".pt", ".pth", ".bin", ".ckpt", ".safetensors"), overwrite)
    weights = published.find(source)
    config = weights.description.config
    model, params = config.model, dict(weights.open(weights.choose(ema)))
    params |= by_path({CONSTANTS: weights.constants()})
    architecture = families.architecture_for(model, config.prediction)
    buffers = architecture.buffers(model, config.prediction)
    tensors = mapping.exported(architecture.table(model), params)
    tensors |= {name: LazyTensor.of(array) for name, array in buffers.items()}
    layout = layout or ("lightning" if out.suffix == ".ckpt" else "plain")
    note = f"{described(model)}, {len(tensors)} tensors, layout {layout}"
    if out.suffix != ".safetensors":
        pytorch.write(
            out, checkpoints.LAYOUTS[layout](tensors, weights.description.step)
        )
        advance(sum(tensor.nbytes for tensor in tensors.values()))
        return (note,)
    if layout != "plain":
        raise ConvertError(
            "A .safetensors file holds the bare state dict: leave --layout away, or "
            "write a .ckpt or .pth file."
        )
    safe.write(out, tensors, {"format": "pt"}, advance)
    return (note,)


def _check_file(out: pathlib.Path, suffixes: tuple[str, ...], overwrite: bool) -> None:
    if out.suffix not in suffixes:
        raise ConvertError(f"{out} must end in {', '.join(suffixes)}.")
    if out.exists() and not overwrite:
        raise ConvertError(f"{out} exists: give another name, or --overwrite.")
    if not out.absolute().parent.is_dir():
        raise ConvertError(f"There is no folder {out.parent} to write to.")


def _check_folder(out: pathlib.Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConvertError(f"{out} is a file: name a folder to write to.")
    taken = out.is_dir() and any(p.name != PARTIAL for p in out.iterdir())
    if taken and not overwrite:
        raise ConvertError(
            f"{out} is not empty: give another folder, or --overwrite to replace its "
            f"{published.CONFIG}, {published.WEIGHTS} and {published.CARD}."
        )
