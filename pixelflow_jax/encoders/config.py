"""What the configs of text encoders have in common: checks, files, identity."""

import dataclasses
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from pixelflow_jax.encoders.interface import Attention, Geometry, TextEncoder
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors.locate import Origin


def forward_only() -> StackConfig:
    """How the blocks of a frozen network run: no gradient passes, nothing is kept."""
    return StackConfig(remat="none")


def sizes_problems(geometry: Geometry, tokens: tuple[str, ...] = ()) -> list[str]:
    """Which sizes of a geometry are not positive, as a message.

    `tokens` are the fields that number a token.
    """
    sizes: dict[str, Any] = {
        field.name: getattr(geometry, field.name)
        for field in dataclasses.fields(typing.cast(Any, geometry))
    }
    numbers = {name: sizes.pop(name) for name in tokens}
    small = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    problems = [f"geometry.{', '.join(small)} must be at least 1"] if small else []
    return problems + [
        f"geometry.{name}={value} must be at least 0 and below geometry.vocabulary="
        f"{geometry.vocabulary}"
        for name, value in numbers.items()
        if not 0 <= value < geometry.vocabulary
    ]


def problems(config: TextEncoder, variants: Mapping[str, Geometry]) -> list[str]:
    """What is wrong with the fields that all encoders have."""
    if config.geometry is None and config.variant not in variants:
        known = ", ".join(variants)
        return [f"variant={config.variant!r} is not one of {known}: set geometry"]
    problems = list(config.sizes.problems())
    known = typing.get_args(Attention)
    if config.attention not in known:
        problems.append(
            f"attention={config.attention!r} is not one of {', '.join(known)}"
        )
    for part in (config.precision, config.stack):
        try:
            part.check()
        except ValueError as error:
            problems.append(str(error))
    return problems


def origin(
    config: TextEncoder, kind: str, repository: str, field: str, what: str = "weights"
) -> Origin:
    """Where the files of an encoder come from, for messages.

    `kind` is what to call a network of another geometry than the published ones,
    `field` the config field that names the files, `what` what they are.
    """
    if config.geometry is not None:
        source = "in a folder that transformers saved"
        return Origin(f"{kind} of the given geometry", source, field, what)
    source = f"hf://{repository}, or a folder that holds its files"
    return Origin(config.variant, source, field, what)


def identity(config: TextEncoder, **more: object) -> dict[str, object]:
    """What determines the states of an encoder: its class, sizes, files, precision.

    Files go by their own name or, where that says nothing, by their folder's, so that
    a folder may be moved. Speed does not count.
    """
    return {
        "class": type(config).__name__,
        "geometry": dataclasses.asdict(typing.cast(Any, config.sizes)),
        "weights": _telling_name(config.weights),
        "tokenizer": _telling_name(config.tokenizer),
        "precision": dataclasses.asdict(config.precision),
        **more,
    }


def _telling_name(files: str) -> str:
    path = pathlib.PurePath(files)
    nameless = path.stem in ("model", "pytorch_model", "tokenizer", "text_encoder")
    return path.parent.name if nameless else path.name
