"""How official tensors are laid out anew to be ours, each way its own inverse."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one tensor is laid out anew, official -> ours and back."""

    load: Callable[[np.ndarray], np.ndarray]
    export: Callable[[np.ndarray], np.ndarray]


same = Layout(lambda a: a, lambda a: a)
# Linear layers: [out, in] <-> [in, out].
transpose = Layout(np.transpose, np.transpose)
# Convolutions: [out, in, h, w] <-> [h, w, in, out].
convolution = Layout(
    lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)
# A parameter of one more axis there, of length 1: [1, ...] <-> [...].
leading = Layout(lambda a: a[0], lambda a: a[None])


def negated(layout: Layout) -> Layout:
    """The same with the other sign."""

    def other(a: np.ndarray) -> np.ndarray:
        # Where only shapes are asked for, arrays of booleans stand for tensors.
        return a if a.dtype == bool else -a

    return Layout(lambda a: other(layout.load(a)), lambda a: other(layout.export(a)))


def patch_inputs(channels: int, patch: int) -> Layout:
    """Linear layer on patches: [out, (c, ph, pw)] <-> [(ph, pw, c), out]."""

    def load(a: np.ndarray) -> np.ndarray:
        a = a.reshape(-1, channels, patch, patch).transpose(2, 3, 1, 0)
        return a.reshape(-1, a.shape[-1])

    def export(a: np.ndarray) -> np.ndarray:
        a = a.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)
        return a.reshape(a.shape[0], -1)

    return Layout(load, export)


def patch_outputs(channels: int, patch: int) -> Layout:
    """Linear layer to patches, or its bias: rows (c, ph, pw) <-> columns (ph, pw, c)"""

    def load(a: np.ndarray) -> np.ndarray:
        rest = a.shape[1:]
        a = a.reshape(channels, patch, patch, *rest)
        return np.moveaxis(a, 0, 2).reshape(-1, *rest).transpose()

    def export(a: np.ndarray) -> np.ndarray:
        a = a.transpose()
        rest = a.shape[1:]
        a = a.reshape(patch, patch, channels, *rest)
        return np.moveaxis(a, 2, 0).reshape(-1, *rest)

    return Layout(load, export)


def patch_convolution(channels: int, patch: int) -> Layout:
    """Convolution with a stride of `patch`: [out, c, ph, pw] <-> [(ph, pw, c), out]."""
    flat = patch_inputs(channels, patch)

    def export(a: np.ndarray) -> np.ndarray:
        return flat.export(a).reshape(-1, channels, patch, patch)

    return Layout(flat.load, export)
