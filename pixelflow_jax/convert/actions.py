"""What the converter does: official weights to ours, back, and to safetensors."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from pixelflow_jax.convert import official, released, variants
from pixelflow_jax.convert.infer import Fields
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import DenoiserConfig, count
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.tensors import reader
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors import torch_files as pytorch
from pixelflow_jax.tensors.lazy import LazyTensor

Progress = Callable[[int], object]  # is told bytes that were written
UNKNOWN = "data and batch of the training are not known, the config's are defaults"
POSITIONS = "pos_embed"  # PixelGen's, the only tensor whose shape follows the image's


@dataclasses.dataclass(frozen=True)
class Understood:
    """A model in an official file that fits its table.

    `family` is the one whose sampler it has, `notes` what a user should know, in lines.
    """

    model: DenoiserConfig
    family: str
    tensors: Mapping[str, LazyTensor]
    table: list[tables.Row]
    origin: str
    step: int
    notes: tuple[str, ...]


def understood(
    source: pathlib.Path,
    *,
    family: str = "",
    weights: str = "",
    given: Fields | None = None,
    given_by: str = "--set",
    image_size: int = 0,
) -> Understood:
    """The model in an official file or folder.

    `given` are fields of its config that tensors cannot tell, `image_size` another size
    than that of its stored positions (0: the same), which are then computed as the
    official code does. Raises ConvertError with everything that does not fit,
    WeightsError for files that cannot be read.
    """
    if published.is_ours(source):
        raise ConvertError(
            f"{source} is already in the format of pixelflow_jax: `to-torch` converts "
            "it to an official one."
        )
    checkpoint = official.checkpoint(_content(source))
    chosen = checkpoint.chosen(weights)
    variant = variants.variant_of(chosen.tensors, family)
    found = variants.inferred(variant, chosen.tensors, given or {}, given_by)
    model, tensors, notes = found.model, chosen.tensors, []
    if image_size and image_size != getattr(model, "image_size", image_size):
        model, tensors, notes = _resized(model, tensors, image_size)
    table = variant.table(model)
    shapes = variants.shapes_of(model)
    problems = tables.problems(table, tensors, shapes)
    problems += [f"unexpected: {key}" for key in checkpoint.stray]
    if problems:
        raise ConvertError(
            f"{source} ({chosen.place or 'its tensors'}) does not hold the weights of "
            f"{described(model)}:" + "".join(f"\n  {problem}" for problem in problems)
        )
    others = [name for name in checkpoint.weights if name != chosen.name]
    family = family or _family(variant, chosen)
    return Understood(
        model=model,
        family=family,
        tensors=tensors,
        table=table,
        origin=" ".join(filter(None, [source.name, chosen.place])),
        step=checkpoint.step,
        notes=(
            f"{described(model)}, {count(shapes):,} parameters",
            f"family: {family}",
            f"weights: {chosen.name} ({chosen.place or 'the tensors of the file'})",
            *(f"left out: the weights {name}" for name in others),
            *(f"left out: {note}" for note in checkpoint.notes),
            *(f"assumed: {k}={v!r}" for k, v in found.assumed.items()),
            *notes,
        ),
    )


def _content(source: pathlib.Path) -> object:
    """What a file or a folder's files hold; WeightsError, ConvertError."""
    if not source.exists():
        raise ConvertError(f"There is no file {source}.")
    return reader.tensors(source) if source.is_dir() else reader.opened(source)


def _family(variant: variants.Variant, weights: official.Weights) -> str:
    """The variant's family; JiT where the names are its training program's."""
    is_jit = "net." in weights.place and released.JIT in variant.families
    return released.JIT if is_jit else variant.families[0]


def _resized(
    model: DenoiserConfig, tensors: Mapping[str, LazyTensor], size: int
) -> tuple[DenoiserConfig, dict[str, LazyTensor], list[str]]:
    """The model for images of another size, whose table of positions is computed."""
    if size % model.patch:
        raise ConvertError(
            f"--image-size={size} must be a multiple of the patch, {model.patch}."
        )
    sides = [s // model.patch for s in (model.image_size, size)]
    values = sincos_table(sides[1], sides[1], model.width)[None]
    dtype = tensors[POSITIONS].dtype if POSITIONS in tensors else np.dtype(np.float32)
    note = (
        f"{POSITIONS} of {sides[0]} x {sides[0]} patches replaced by a computed one of "
        f"{sides[1]} x {sides[1]}, as the official code does at another resolution"
    )
    resized = {**tensors, POSITIONS: LazyTensor.of(values.astype(dtype))}
    return dataclasses.replace(model, image_size=size), resized, [note]


def described(model: DenoiserConfig) -> str:
    """A model's class and main sizes in words."""
    sizes = ("width", "heads", "depth", "text_depth", "patch", "num_classes")
    found = [f"{name} {getattr(model, name)}" for name in sizes if hasattr(model, name)]
    return f"{type(model).__name__} of {', '.join(found)}"


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
        size = image_size or released.image_size(model)
        config = released.experiment(weights.family, model, size, out.absolute().name)
        origin += f", converted; {UNKNOWN}"
    else:
        ways = variants.fields(config.model)
        ways = {name: ways[name] for name in variants.EXECUTION if name in ways}
        model = variants.replaced(model, ways)
        size = image_size or config.data.image_size
        data = dataclasses.replace(config.data, image_size=size)
        config = dataclasses.replace(config, model=model, data=data)
        origin += ", converted"
    description = Description(
        config=config,
        class_names=tuple(map(str, range(model.num_classes))),
        step=weights.step,
        origin=origin,
    )
    flat = tables.imported(weights.table, weights.tensors)
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


def plain(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """The bare state dict, as PixelFlow is released."""
    return dict(tensors)


def lightning(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """A checkpoint of PixNerd's and PixelGen's programs, both sets of weights equal."""
    prefixes = ("denoiser.", "ema_denoiser.")
    names = {prefix + k: t for prefix in prefixes for k, t in tensors.items()}
    # Lightning refuses checkpoints without its version.
    return {
        "state_dict": names,
        "global_step": step,
        "epoch": 0,
        "pytorch-lightning_version": "2.5.0",
    }


def training(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """What PixelFlow's training program resumes from, without the optimizer."""
    return {"model": dict(tensors), "ema": dict(tensors)}


def jit(tensors: Mapping[str, LazyTensor], step: int) -> dict:
    """What JiT's program samples from, the weights and both averages equal."""
    named = {f"net.{key}": tensor for key, tensor in tensors.items()}
    return {"model": named, "model_ema1": named, "model_ema2": named}


LAYOUTS: dict[str, Callable[[Mapping[str, LazyTensor], int], dict]] = {
    "plain": plain,
    "lightning": lightning,
    "pixelflow": training,
    "jit": jit,
}


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

    `layout` is one of `LAYOUTS`; "" is Lightning's for `.ckpt` and plain otherwise.
    `ema` chooses an average of a training run.
    """
    _check_file(out, (".pt", ".pth", ".bin", ".ckpt", ".safetensors"), overwrite)
    found = published.find(source)
    model, params = found.description.config.model, found.open(found.choose(ema))
    tensors = tables.exported(variants.table_of(model), params)
    layout = layout or ("lightning" if out.suffix == ".ckpt" else "plain")
    note = f"{described(model)}, {len(tensors)} tensors, layout {layout}"
    if out.suffix != ".safetensors":
        pytorch.write(out, LAYOUTS[layout](tensors, found.description.step))
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
    taken = out.is_dir() and any(p.name != published.PARTIAL for p in out.iterdir())
    if taken and not overwrite:
        raise ConvertError(
            f"{out} is not empty: give another folder, or --overwrite to replace its "
            f"{published.CONFIG}, {published.WEIGHTS} and {published.CARD}."
        )
