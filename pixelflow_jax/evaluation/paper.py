"""Figures of papers as data, and whether a measurement reproduces them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pixelflow_jax.config_io import differences, to_dict
from pixelflow_jax.evaluation.references import JIT, Reference
from pixelflow_jax.sampling.settings import Sampling

PUBLISHED = 50_000  # images behind a published figure
# Two draws of 50,000 images differ by less than the first part of each pair: the larger
# of an absolute and a relative difference. Evaluators that follow one protocol do, too.
TOLERANCES = {
    "fid": (0.05, 0.03),
    "sfid": (0.15, 0.05),
    "is": (3.0, 0.02),
    "precision": (0.01, 0.0),
    "recall": (0.01, 0.0),
}
CLOSE = 3  # tolerances within which a figure is called close
Verdict = Literal["reproduced", "close", "not reproduced", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row of a paper's table: figures by metric, and how they came about.

    `source` names the table; `evaluator` the protocol, ADM's or JiT's; `notes` say what
    the paper's code does that changes the figures and is not in `sampling`.
    """

    source: str
    figures: Mapping[str, float]
    sampling: Sampling
    evaluator: Literal["adm", "jit"] = "adm"
    count: int = PUBLISHED
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The row in a line: its table, its sampler, its figures."""
        sampling = self.sampling
        solver = type(sampling.solver).__name__
        steps = sampling.grid.stage_steps or sampling.grid.steps
        shown = ", ".join(f"{name} {value:g}" for name, value in self.figures.items())
        scale = sampling.guidance.scale
        return f"{self.source}: {solver}, {steps} steps, scale {scale:g}: {shown}"


def protocol_differences(
    row: PaperRow, sampling: Sampling, count: int, reference: Reference
) -> list[str]:
    """In what a measurement differs from the row's, in lines; hard facts first."""
    lines = []
    if count != row.count:
        lines.append(
            f"{count:,} images and not {row.count:,}: fewer give a larger distance"
        )
    if row.evaluator == "jit" and reference.sha256 not in JIT:
        lines.append(
            "the reference is not JiT's statistics: its protocol and ADM's differ by "
            "some hundredths"
        )
    if row.evaluator == "adm" and reference.kind != "adm":
        lines.append(
            f"the reference ({reference.kind}) is not ADM's VIRTUAL_imagenet*.npz"
        )
    changed = differences(to_dict(row.sampling), to_dict(sampling))
    for path, (theirs, ours) in changed.items():
        if path != "batch_size":
            lines.append(f"sampling.{path}: {theirs!r} in the paper, here {ours!r}")
    return [*lines, *row.notes, *OURS]


# What holds for every measurement of this package.
OURS = (
    "classes are interleaved (i mod their number), so that splits are balanced",
    "the noise is this package's own: the figures are of another draw",
    "the features are computed in float32 by this package's network",
)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict, and a line for each figure of the row."""

    verdict: Verdict
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"verdict": self.verdict, "figures": list(self.lines)}


def judge(row: PaperRow, results: Mapping[str, float], count: int) -> Judgement:
    """Whether results reproduce a row; there is no verdict on another count.

    The Inception Score of JiT's protocol is compared where the row follows that.
    """
    lines, worst = [], 0.0
    known = 0
    for name, theirs in row.figures.items():
        key = "is_jit" if name == "is" and row.evaluator == "jit" else name
        if key not in results:
            lines.append(f"{name}: {theirs:g} in the paper, not measured")
            continue
        known += 1
        absolute, relative = TOLERANCES[name]
        allowed = max(absolute, relative * abs(theirs))
        off = results[key] - theirs
        worst = max(worst, abs(off) / allowed)
        lines.append(
            f"{name}: {theirs:g} in the paper, {results[key]:.4g} here ({off:+.3g}; "
            f"two draws differ by up to {allowed:.2g})"
        )
    if not known or count != row.count:
        return Judgement("none", tuple(lines))
    verdict: Verdict = "not reproduced"
    if worst <= CLOSE:
        verdict = "reproduced" if worst <= 1 else "close"
    return Judgement(verdict, tuple(lines))
