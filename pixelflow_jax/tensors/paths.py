"""Nested dicts of parameters by path, "/" between names, and back."""

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def by_path(tree: dict) -> dict[str, Any]:
    """The leaves of nested dicts, by their path."""
    leaves: Any = traverse_util.flatten_dict(tree, sep="/")
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_path`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")
