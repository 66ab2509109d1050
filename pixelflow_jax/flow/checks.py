"""What is wrong with settings, as messages, and the error that says so."""

from collections.abc import Iterable


def refuse(problems: list[str]) -> None:
    """Raise ValueError with all messages, where there are any."""
    if problems:
        raise ValueError("; ".join(problems))


def unknown(name: str, value: object, choices: Iterable[object]) -> list[str]:
    """A message where the field called `name` has none of the values it may have."""
    if value in choices:
        return []
    *others, last = map(repr, choices)
    return [f"{name} must be {', '.join(others)} or {last}, not {value!r}"]
