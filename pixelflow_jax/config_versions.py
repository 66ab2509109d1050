"""Configs that earlier versions wrote, in today's words.

The root of a config says its format's version beside its class; a config without one is
of version 1. What was renamed since is in `renamed`.
"""

from collections.abc import Callable
from typing import Any

from pixelflow_jax import renamed
from pixelflow_jax.config_io import CLASS
from pixelflow_jax.errors import ConfigError

FORMAT = "version"  # the key beside the root's class
VERSION = 2

INTERVALS = {"neither": "()", "low": "[)", "high": "(]", "both": "[]"}
Values = dict[str, Any]


def migrate(data: Values) -> Values:
    """A config's dict of any version in today's words; it says no version any more.

    Raises ConfigError for one of a later version, or with a choice that is no more.
    """
    values = dict(data)
    version = values.pop(FORMAT, 1)
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ConfigError(
            f"This config has the format version {str(version)[:20]}, and this version "
            f"of pixelflow_jax reads those up to {VERSION}: update pixelflow_jax."
        )
    for step in STEPS[version - 1 :]:
        values = step(values)
    return _kept(values)


def _kept(values: Values) -> Values:
    """A run once could keep one checkpoint alone; it alters no step."""
    policy = _part(values, "checkpoint")
    if policy.get("keep") != 1:
        return values
    return {**values, "checkpoint": {**policy, "keep": 2}}


FIELD_KERNELS = {"einsum": "xla"}  # the products of a neural field, apart


def _from_1(values: Values) -> Values:
    """The words of version 0.1 of the package, and what it had in another place."""
    model = _part(values, "model")
    field_kernel = str(_part(model, "decoder").get("kernel", "auto"))
    kernels = {
        CLASS: "Kernels",
        "blocks": _part(model, "loop").get("kernels", "auto"),
        "field": FIELD_KERNELS.get(field_kernel, field_kernel),
        "attention": model.get("attention", "auto"),
    }
    return {**_renamed(values), "kernels": kernels}


def _part(values: Values, name: str) -> Values:
    part = values.get(name)
    return part if isinstance(part, dict) else {}


def _renamed(value: Any) -> Any:
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get(CLASS)
    values = {renamed.FIELDS.get(k) or str(k): _renamed(v) for k, v in value.items()}
    if isinstance(name, str):
        values[CLASS] = renamed.CLASSES.get(name, name)
        change = CHANGES.get(name)
        values = change(values) if change else values
    return values


def _stack(values: Values) -> Values:
    """0 blocks an iteration stood for a stack that is not scanned."""
    unroll = values.get("unroll", 1)
    values = {**values, "scan": unroll != 0, "unroll": unroll or 1}
    return _without(values, "kernels")


def _guidance(values: Values) -> Values:
    """The ends of an interval had names."""
    interval = str(values.get("interval", "neither"))
    return {**values, "interval": INTERVALS.get(interval, interval)}


def _sampling(values: Values) -> Values:
    """Twins of images were for comparisons with the official sampler alone."""
    if values.get("doubled"):
        raise ConfigError(
            "This config sets sampling.doubled, twins of images that no sampler draws "
            "any more: set it to false."
        )
    return _without(values, "doubled")


def _model(values: Values) -> Values:
    return _without(values, "attention")


def _field(values: Values) -> Values:
    return _without(values, "kernel")


def _without(values: Values, name: str) -> Values:
    return {k: v for k, v in values.items() if k != name}


# What changed in a class but its words, by the name it had then.
CHANGES: dict[str, Callable[[Values], Values]] = {
    "Loop": _stack,
    "ClassifierFree": _guidance,
    "AutoGuidance": _guidance,
    "Sampling": _sampling,
    "NeuralField": _field,
    **dict.fromkeys(
        ("PixNerd", "PixNerdText", "PixelFlow", "PixelGen", "PixelGenText"), _model
    ),
}
STEPS = (_from_1,)
