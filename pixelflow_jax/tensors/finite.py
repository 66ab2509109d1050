"""Numbers that are none, in weights: found, counted, and told by their tensor."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors.lazy import LazyTensor


def count_nonfinite(array: np.ndarray) -> int:
    """How many of an array's numbers are NaN or infinite; 0 for whole numbers."""
    if array.dtype.kind in "biu":
        return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def refuse(counts: Mapping[str, int], where: str, remedy: str) -> None:
    """Raise WeightsError where tensors hold such numbers; `counts` has them by name."""
    wrong = {name: count for name, count in counts.items() if count}
    if not wrong:
        return
    name, count = next(iter(wrong.items()))
    more = f", and so do {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
    raise WeightsError(
        f"{where}: {name} holds {count:,} numbers that are NaN or infinite{more}. A "
        "run that diverged leaves such weights, and they draw black images: take "
        f"others, or allow it ({remedy})."
    )


def checked(
    tensors: Mapping[str, LazyTensor], where: str, allowed: bool
) -> dict[str, LazyTensor]:
    """The same tensors, which raise WeightsError when such numbers are read.

    Not where they are `allowed`.
    """
    if allowed:
        return dict(tensors)

    def guarded(name: str, tensor: LazyTensor) -> LazyTensor:
        def fetch(i: int | None) -> np.ndarray:
            part = tensor.fetch(i)
            refuse({name: count_nonfinite(part)}, where, "--allow-nonfinite")
            return part

        return dataclasses.replace(tensor, fetch=fetch)

    return {name: guarded(name, tensor) for name, tensor in tensors.items()}
