"""What the arguments of a pipeline may be, told in one message before anything runs."""

import itertools
import os
import pathlib
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from pixelflow_jax import values
from pixelflow_jax.config_types import (
    alternatives,
    fits,
    is_node,
    is_node_type,
    type_errors,
    type_name,
    without_range,
)
from pixelflow_jax.errors import PipelineError

MOST = 2**22  # classes or prompts of one call
Wanted = int | str | Sequence[int | str]

# How a part is written, for those who gave the word or the number in it.
WRITTEN = {
    "sampling": "Sampling(batch_size=8)",
    "solver": "Heun() or 'heun'",
    "grid": "Grid(steps=50)",
    "guidance": "2.0 or ClassifierFree(scale=2.0)",
}


def checked(arguments: Mapping[str, Any], kinds: type) -> dict[str, Any]:
    """Arguments as the annotations of `kinds`, a class, say; numpy's integers as int.

    Raises PipelineError with all that is of another type or out of its range.
    """
    annotations = typing.get_type_hints(kinds, include_extras=True)
    problems = []
    for name, value in arguments.items():
        problems += _problems(name, value, annotations[name])
    refuse(problems)
    return {name: _plain(value) for name, value in arguments.items()}


def refuse(problems: Sequence[str]) -> None:
    """Raise PipelineError with all of the problems, where there are any."""
    if problems:
        raise PipelineError("; ".join(problems) + ".")


def listed(wanted: Any) -> list[int | str]:
    """What a call is asked to draw, one by one; PipelineError for what cannot be.

    Classes by name or number, or prompts: one alone, or several. Truth values and
    fractions are no numbers of classes, whatever `int` makes of them.
    """
    if fits(wanted, int | str):
        return [_plain(wanted)]
    each: Any = wanted
    if getattr(wanted, "ndim", None) == 0:  # of numpy or JAX: a number, not an array
        each = [each.item()]
    elif isinstance(wanted, bytes | Mapping | Set) or not isinstance(wanted, Iterable):
        each = [wanted]
    # Lazy ones, such as a range, may have no end.
    each = list(itertools.islice(each, MOST + 1))
    if len(each) > MOST:
        raise PipelineError(
            f"More than {MOST:,} images were asked for at once: draw them in several "
            "calls, with `first`."
        )
    wrong = [one for one in each if not fits(one, int | str)]
    if wrong:
        raise PipelineError(
            f"{values.show(wrong[0])} cannot be drawn: give names or numbers of "
            'classes, such as ["flags", 3], or prompts to a model that reads text.'
        )
    return [_plain(one) for one in each]


def path_of(name: str, value: object, suffix: str = "") -> pathlib.Path:
    """A path that was given as the argument `name`; PipelineError for what is none.

    With a `suffix` the path must end in it.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise PipelineError(f"{name}={values.show(value)} must be a path, or its text.")
    refuse(values.problems(name, text, values.Name))
    path = pathlib.Path(text).expanduser()
    if path.suffix != suffix and suffix:
        raise PipelineError(
            f"{name}={text!r} must end in {suffix}, the format that is written."
        )
    return path


def _problems(name: str, value: object, annotation: Any) -> list[str]:
    wanted = without_range(annotation)
    parts = [one for one in alternatives(wanted) if is_node_type(one)]
    if not fits(value, wanted):
        kinds = " or ".join(map(type_name, parts)) or type_name(wanted)
        such = f", such as {WRITTEN[name]}" if name in WRITTEN else ""
        return [f"{name}={values.show(value)} must be of type {kinds}{such}"]
    if is_node(value):
        return type_errors(value, name)
    return values.problems(name, value, annotation)


def _plain(value: Any) -> Any:
    """The same of Python's own types: numpy's integers overflow, and are not JSON."""
    if isinstance(value, bool) or not fits(value, int):
        return value
    return int(value)
