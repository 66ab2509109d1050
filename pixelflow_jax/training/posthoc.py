"""Averages chosen after training: snapshots of two widths, and all that they span.

Karras et al. 2024, section 3.2 and appendix C: a run keeps power-function averages of a
few widths, and stores them now and then. A weighted sum of what was stored has a
profile over the run's time of its own, and that sum whose profile comes closest to an
average's stands for it. Which width is best is only known at the end, and a sweep finds
it (`pixelflow evaluate --sweep=ema`).
"""

import dataclasses
import errno
import logging
import pathlib
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax.errors import CheckpointError, PipelineError
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.paths import by_path, nested
from pixelflow_jax.training.ema import (
    PREFIX,
    WIDEST,
    PowerFunction,
    average_called,
    gamma_of,
    posthoc_name,
)
from pixelflow_jax.values import Count, Range, Several

LOG = logging.getLogger(__name__)
FOLDER = "ema_snapshots"
FAR = 0.05  # of a profile from the wanted one, as a part of it: worth a warning
SigmaRel = Annotated[float, Range(low=0, high=WIDEST, interval="(]")]
# Directions in which stored profiles differ by less add noise, and no accuracy.
SMALLEST = 1e-10


@dataclasses.dataclass(kw_only=True)
class PostHocEMA:
    """Power-function averages kept in training, and stored for later.

    Each of the widths `sigma_rel` costs 4 bytes a parameter of memory and 8 of memory
    traffic a step (1.8 ms for 675M parameters on an H100), as every average does. All
    are stored in WORKDIR/ema_snapshots every `every` steps, as `dtype`; where that
    would be more than `keep` snapshots, every second one goes, so that those left are
    spread evenly over the run. XL in two widths takes 2.7 GB a snapshot in 16 bits.
    """

    sigma_rel: tuple[SigmaRel, ...] = (0.05, 0.1)
    every: Count = 5000
    keep: Several = 48
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if self.sigma_rel and len(set(self.names)) == len(self.sigma_rel):
            return []
        return [
            f"posthoc.sigma_rel={self.sigma_rel} must name at least one width, and "
            "none twice"
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """What its averages are called in the train state."""
        return tuple(map(posthoc_name, self.sigma_rel))

    def kept(self, step: int) -> list[int]:
        """The steps whose snapshots there are after `step` steps."""
        count, stride = step // self.every, 1
        while count // stride > self.keep:
            stride *= 2
        return [i * self.every for i in range(stride, count + 1, stride)]


class Profile(NamedTuple):
    """The weight k^gamma of the parameters after step k, up to step `end`."""

    end: int
    sigma_rel: float


def solve(stored: list[Profile], wanted: Profile) -> np.ndarray:
    """The factors [n] of stored averages whose sum comes closest to `wanted`.

    Least squares over the run's time (Karras et al. 2024, appendix C). A profile that
    is stored is taken as it is.
    """
    if wanted in stored:
        return np.eye(len(stored))[stored.index(wanted)]
    return np.linalg.lstsq(
        _products(stored, stored), _products(stored, [wanted])[:, 0], rcond=SMALLEST
    )[0]


def residual(stored: list[Profile], wanted: Profile) -> float:
    """The distance of what `solve` finds from `wanted`, relative to its norm."""
    factors = solve(stored, wanted)
    whole = _products([wanted], [wanted])[0, 0]
    cross = factors @ _products(stored, [wanted])[:, 0]
    square = whole - 2 * cross + factors @ _products(stored, stored) @ factors
    return float(np.sqrt(max(0.0, square / whole)))


def _products(rows: list[Profile], columns: list[Profile]) -> np.ndarray:
    """Inner products [rows, columns] of normalised profiles, in closed form.

    With the earlier end a and the later b: the integral of ((gamma_a + 1) / a) (t /
    a)^gamma_a ((gamma_b + 1) / b) (t / b)^gamma_b over [0, a].
    """
    (t, g), (u, h) = (
        np.array([(p.end, gamma_of(p.sigma_rel)) for p in profiles], np.float64).T
        for profiles in (rows, columns)
    )
    t, g, u, h = t[:, None], g[:, None], u[None], h[None]
    # min / max to the power of the later one's exponent.
    ratio = np.minimum(t, u) / np.maximum(t, u)
    power = np.where(t < u, h, g)
    return (g + 1) * (h + 1) * ratio**power / ((g + h + 1) * np.maximum(t, u))


class Snapshots:
    """The stored averages of one run, in WORKDIR/ema_snapshots."""

    def __init__(self, workdir: pathlib.Path, policy: PostHocEMA):
        """`policy` says which there are to be."""
        self.folder = pathlib.Path(workdir) / FOLDER
        self._policy = policy

    def begin(self, step: int) -> None:
        """Remove what a run that goes on from `step` will store again."""
        self._remove(step, set(self._policy.kept(step)))

    def write(self, step: int, ema: dict[str, dict]) -> None:
        """Store the averages after `step` steps, and remove those too many.

        All processes call it. Raises CheckpointError where the disk is full.
        """
        kept = set(self._policy.kept(step))
        if step not in kept:
            return
        flat = by_path({name: ema[name] for name in self._policy.names})
        tensors = {path: _on_host(a, self._policy.dtype) for path, a in flat.items()}
        if jax.process_index() == 0:
            self._write(step, tensors)
        self._remove(step, kept)

    def _write(self, step: int, tensors: dict[str, LazyTensor]) -> None:
        path = self.folder / f"{step:08d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            safe.write(path, tensors, {"step": str(step)})
        except OSError as error:
            full = error.errno == errno.ENOSPC
            raise CheckpointError(
                f"Could not write {path}: "
                f"{'the disk is full' if full else error.strerror}. Make room, or lower"
                " --config.posthoc.keep, and start again with the same --workdir to go "
                "on from the last checkpoint."
            ) from error

    def _remove(self, last: int, kept: set[int]) -> None:
        if jax.process_index() == 0:
            for step, path in _snapshots(self.folder).items():
                if step > last or step not in kept:
                    path.unlink(missing_ok=True)


def reconstruct(
    stored: Mapping[Profile, Mapping[str, LazyTensor]], wanted: Profile
) -> dict[str, LazyTensor]:
    """The average `wanted`, float32, summed as its tensors are read."""
    factors = solve(list(stored), wanted)
    used = [pair for pair in zip(factors, stored.values(), strict=True) if pair[0]]

    def combined(path: str, first: LazyTensor) -> LazyTensor:
        def fetch(part: int | None) -> np.ndarray:
            total: np.ndarray | float = 0.0
            for factor, tensors in used:
                total = total + factor * tensors[path].fetch(part).astype(np.float64)
            return np.asarray(total, np.float32)

        return LazyTensor(first.shape, np.dtype(np.float32), fetch, first.stacked)

    return {path: combined(path, first) for path, first in used[0][1].items()}


def at_checkpoint(
    workdir: pathlib.Path, step: int, name: str, own: Mapping[str, dict]
) -> dict:
    """The parameters of the average called `name` after `step` steps of a run.

    They are made of the snapshots up to that step, and of `own`, the checkpoint's own
    averages by name. The snapshots of WORKDIR/best lie in WORKDIR.
    """
    inside = (workdir / FOLDER).is_dir()
    stored = stored_averages(workdir if inside else workdir.parent, step)
    for average, params in own.items():
        flat = {path: LazyTensor.of(array) for path, array in by_path(params).items()}
        stored[_profile(step, average)] = flat
    wanted = _profile(step, name)
    if (away := residual(list(stored), wanted)) > FAR:
        LOG.warning(
            "%s of step %d is made of %d stored averages, too few for that width: its "
            "weights of the steps are %.0f %% off. Take a width nearer to those of "
            "posthoc.sigma_rel, or more snapshots.",
            *(name, step, len(stored), 100 * away),
        )
    return nested(reconstruct(stored, wanted))


def stored_averages(
    workdir: pathlib.Path, last: int
) -> dict[Profile, Mapping[str, LazyTensor]]:
    """What a run has stored of steps up to `last`: parameters by path.

    Raises CheckpointError for a damaged file.
    """
    stored: dict[Profile, dict[str, LazyTensor]] = {}
    for step, path in _snapshots(workdir / FOLDER).items():
        if step <= last:
            for key, tensor in _opened(path).items():
                average, _, parameter = key.partition("/")
                stored.setdefault(_profile(step, average), {})[parameter] = tensor
    return dict(stored)


def _profile(step: int, name: str) -> Profile:
    kind = average_called(name)
    assert isinstance(kind, PowerFunction), name
    return Profile(step, kind.sigma_rel)


def _snapshots(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """The whole snapshots by their steps, in order."""
    paths = [path for path in folder.glob("*.safetensors") if path.stem.isdigit()]
    return {int(path.stem): path for path in sorted(paths)}


def canonical(name: str) -> str:
    """The one way to write a post-hoc average's name; "" for other names.

    Raises PipelineError for a width that is none.
    """
    if not name.startswith(PREFIX):
        return ""
    try:
        kind = average_called(name)
    except ValueError as error:
        raise PipelineError(f"--ema={name}: {error}") from error
    return posthoc_name(kind.sigma_rel) if isinstance(kind, PowerFunction) else ""


def _opened(path: pathlib.Path) -> dict[str, LazyTensor]:
    try:
        return safe.opened(path)
    except Exception as error:
        raise CheckpointError(
            f"The snapshot {path} cannot be read ({error}): delete it; averages are "
            "reconstructed from the others, somewhat less exactly."
        ) from error


def _on_host(array: jax.Array, dtype: str) -> LazyTensor:
    """An array of the devices, whole, to be fetched when it is written."""
    kind = jnp.dtype(dtype)
    if jax.process_count() > 1:  # together, in the same order everywhere
        whole = multihost_utils.process_allgather(array.astype(kind), tiled=True)
        return LazyTensor.of(np.asarray(whole))

    def fetch(part: int | None) -> np.ndarray:
        return np.asarray((array if part is None else array[part]).astype(kind))

    return LazyTensor(array.shape, kind, fetch)
