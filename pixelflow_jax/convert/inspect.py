"""A weight file as a table: names, shapes, types, and the model they make."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping

from pixelflow_jax.convert import actions, checkpoints, families
from pixelflow_jax.errors import ConvertError
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.tensors import reader
from pixelflow_jax.tensors.lazy import LazyTensor

LAYER = re.compile(r"(?<=blocks\.)\d+(?=\.)")  # its number, inside a name


def report(path: pathlib.Path, *, every: bool = False) -> Iterator[str]:
    """The lines of a report on a file or folder; `every` tensor in a line of its own.

    Otherwise layers of equal shapes share a line. Raises ConvertError and
    WeightsError for what cannot be read.
    """
    if published.is_ours(path):
        own = published.find(path)
        config = own.description.config
        yield from table(own.open(own.choose("")), every)
        yield f"ours: {actions.described(config.model)}"
        yield f"config: {json.dumps(config.to_dict())}"
        return
    if not path.exists():
        raise ConvertError(f"There is no file {path}.")
    content = reader.tensors(path) if path.is_dir() else reader.opened(path)
    yield from table(flat(content), every)
    checkpoint = checkpoints.checkpoint(content)
    for weights in checkpoint.weights.values():
        architecture = families.guess(weights.tensors)
        size = sum(tensor.size for tensor in weights.tensors.values())
        place = weights.place or "the tensors of the file"
        yield f"weights {weights.name} ({place}): {size:,} parameters"
        if architecture is None:
            yield "  of no known family"
            continue
        yield f"  family: {' or '.join(architecture.families)}"
        try:
            inferred = families.infer(architecture, weights.tensors, {}, "")
            yield f"  model: {actions.described(inferred.model)}"
            yield from (f"  assumed: {k}={v!r}" for k, v in inferred.assumed.items())
        except ConvertError as error:
            yield f"  {error}"
    yield from (f"besides: {note}" for note in checkpoint.notes)


def flat(content: object) -> dict[str, LazyTensor]:
    """All tensors of nested dicts and lists, by the path that leads to each.

    A dict or list that stands in several places is looked into once.
    """
    tensors: dict[str, LazyTensor] = {}
    waiting, seen = [("", content)], set()
    while waiting:
        prefix, one = waiting.pop()
        if isinstance(one, LazyTensor):
            tensors[prefix] = one
        elif id(one) not in seen and isinstance(one, Mapping | list):
            seen.add(id(one))
            items = one.items() if isinstance(one, Mapping) else enumerate(one)
            named = [(f"{prefix}: {k}" if prefix else str(k), v) for k, v in items]
            waiting += reversed(named)
    return tensors


def table(tensors: Mapping[str, LazyTensor], every: bool) -> Iterator[str]:
    """A line for each tensor, or for the tensors that differ in their layer alone."""
    groups: dict[tuple, list[str]] = {}
    for key, tensor in tensors.items():
        name = key if every else LAYER.sub("*", key)
        sort = (name, tensor.shape, str(tensor.dtype))
        groups.setdefault(sort, []).append(key)
    wide = max((len(name) for name, _, _ in groups), default=0)
    for (name, shape, dtype), keys in groups.items():
        times = f" x {len(keys)}" if len(keys) > 1 else ""
        yield f"{name:{wide}}  {dtype:8}  {list(shape)}{times}"
    parameters = sum(tensor.size for tensor in tensors.values())
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    yield f"{len(tensors)} tensors, {parameters:,} numbers, {size:,.1f} MB"
