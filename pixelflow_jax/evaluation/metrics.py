"""The field's metrics by name, computed from features that one pass gathered.

| name | results | features |
|---|---|---|
| fid, sfid | Fréchet distances of pool3 and of spatial features | inception |
| is | Inception Score by ADM's splits and by JiT's (`is`, `is_jit`) | |
| pr | precision and recall, k = 3 (Kynkäänniemi et al. 2019) | |
| kid | kernel distance and its deviation over subsets (Bińkowski et al. 2018) | |
| fd_dinov2, fd_dinov2_b | Fréchet distance (Stein et al. 2023) | DINOv2 L, B |
| prdc | precision, recall, density, coverage, k = 5 (Naeem et al. 2020) | DINOv2 L |
| fd_lite0, pr_lite0, kid_lite0 | for studies without other files; never FID | lite0 |
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import manifold
from pixelflow_jax.evaluation.accumulator import Kept, SetFeatures
from pixelflow_jax.evaluation.features import FEATURES, LOGITS, SPATIAL
from pixelflow_jax.evaluation.inception_score import (
    JIT_SPLITS,
    adm_inception_score,
    jit_inception_score,
)
from pixelflow_jax.evaluation.kernel_distance import SUBSET_SIZE, kernel_distance
from pixelflow_jax.evaluation.references import Reference
from pixelflow_jax.evaluation.statistics import frechet_distance

Compute = Callable[[SetFeatures, SetFeatures], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Metric:
    """How one metric is computed: of which extractor's arrays, and against what.

    `against` is what it asks of a reference: statistics, the rows of its images, or
    nothing. `fewest` images must be in a set, and in a reference whose rows count.
    """

    extractor: str
    kept: Kept
    against: Kept
    compute: Compute
    fewest: int = 2


def _frechet(extractor: str, key: str, result: str) -> Metric:
    def compute(sample: SetFeatures, reference: SetFeatures) -> dict[str, float]:
        pair = sample.gaussians[key], reference.gaussians[key]
        return {result: frechet_distance(*pair)}

    return Metric(extractor, Kept((key,)), Kept((key,)), compute)


def _of_rows(
    extractor: str, compute: Callable[..., dict[str, float]], fewest: int
) -> Metric:
    rows = Kept(rows=(FEATURES,))
    return Metric(
        extractor,
        rows,
        rows,
        lambda sample, reference: compute(
            sample.rows[FEATURES], reference.rows[FEATURES]
        ),
        fewest,
    )


def _pr(suffix: str = "") -> Callable[..., dict[str, float]]:
    def compute(sample, reference) -> dict[str, float]:
        precision, recall = manifold.precision_recall(sample, reference)
        return {f"precision{suffix}": precision, f"recall{suffix}": recall}

    return compute


def _kid(suffix: str = "") -> Callable[..., dict[str, float]]:
    def compute(sample, reference) -> dict[str, float]:
        mean, deviation = kernel_distance(sample, reference)
        return {f"kid{suffix}": mean, f"kid{suffix}_std": deviation}

    return compute


def _prdc(sample, reference) -> dict[str, float]:
    found = manifold.prdc(sample, reference)._asdict()
    return {f"{name}_dinov2": value for name, value in found.items()}


def _inception_scores(sample: SetFeatures, _: SetFeatures) -> dict[str, float]:
    adm = adm_inception_score(sample.rows[LOGITS])
    jit = jit_inception_score(sample.rows[LOGITS])
    return {
        "is": adm.mean,
        "is_std": adm.deviation,
        "is_jit": jit.mean,
        "is_jit_std": jit.deviation,
    }


METRICS: dict[str, Metric] = {
    "fid": _frechet("inception", FEATURES, "fid"),
    "sfid": _frechet("inception", SPATIAL, "sfid"),
    "is": Metric(
        "inception", Kept(rows=(LOGITS,)), Kept(), _inception_scores, JIT_SPLITS
    ),
    "pr": _of_rows("inception", _pr(), manifold.ADM_K + 1),
    "kid": _of_rows("inception", _kid(), SUBSET_SIZE),
    "fd_dinov2": _frechet("dinov2", FEATURES, "fd_dinov2"),
    "fd_dinov2_b": _frechet("dinov2_b", FEATURES, "fd_dinov2_b"),
    "prdc": _of_rows("dinov2", _prdc, manifold.PRDC_K + 1),
    "fd_lite0": _frechet("lite0", FEATURES, "fd_lite0"),
    "pr_lite0": _of_rows("lite0", _pr("_lite0"), manifold.ADM_K + 1),
    "kid_lite0": _of_rows("lite0", _kid("_lite0"), SUBSET_SIZE),
}


def check_names(names: Iterable[str]) -> None:
    """Raises EvaluationError for a name that is no metric, or for none at all."""
    names = list(names)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise EvaluationError(
            f"--metrics={','.join(names)} holds no metric called "
            f"{', '.join(unknown) or 'anything'}: choose of {', '.join(METRICS)}."
        )


def check_enough(
    names: Iterable[str], count: int, reference: Reference | None = None
) -> None:
    """Raises EvaluationError where a metric cannot be had of `count` images.

    Nor of that `reference`: one that lacks what the metric compares with. Asked before
    images are drawn, which may take hours.
    """
    for name in names:
        metric = METRICS[name]
        theirs = _of_reference(name, metric, reference)
        sets = {"the set": count}
        if FEATURES in metric.against.rows:
            sets["the reference"] = len(theirs.rows[FEATURES])
        for which, images in sets.items():
            if images < metric.fewest:
                raise EvaluationError(
                    f"{name} needs {metric.fewest:,} images or more, and {which} has "
                    f"{images:,}: take more, or leave {name} out of --metrics."
                )


def required(names: Iterable[str]) -> dict[str, Kept]:
    """What of each extractor must be kept for metrics; an `Accumulator` takes it."""
    return _union((METRICS[name].extractor, METRICS[name].kept) for name in names)


def required_rows(names: Iterable[str]) -> tuple[str, ...]:
    """The extractors whose features of the reference's images metrics compare."""
    metrics = [METRICS[name] for name in names]
    return tuple(dict.fromkeys(one.extractor for one in metrics if one.against.rows))


def reference_arrays(names: Iterable[str]) -> dict[str, Kept]:
    """What of each extractor a reference must hold for metrics."""
    return _union((METRICS[name].extractor, METRICS[name].against) for name in names)


def evaluate(
    names: Iterable[str],
    features: Mapping[str, SetFeatures],
    reference: Reference | None = None,
) -> dict[str, float]:
    """The results of metrics, by name, of a set against a reference.

    `features` come from `Accumulator.features`; a `reference` whose images count must
    have their rows (`Reference.with_rows`). Raises EvaluationError where it lacks what
    a metric needs, or a set holds too few images.
    """
    names = list(names)
    check_names(names)
    results: dict[str, float] = {}
    for name in names:
        metric = METRICS[name]
        theirs = _of_reference(name, metric, reference)
        results |= metric.compute(features[metric.extractor], theirs)
    return results


def _of_reference(
    name: str, metric: Metric, reference: Reference | None
) -> SetFeatures:
    """What a metric needs of the reference; EvaluationError where it lacks it."""
    nothing = SetFeatures(0, {}, {})
    wanted = {*metric.against.statistics, *metric.against.rows}
    if not wanted:
        return nothing
    if reference is None:
        raise EvaluationError(
            f"{name} compares with a reference: name one with --reference, or make one "
            "with `pixelflow evaluate reference OUT.npz --images=FOLDER_OR_NPZ`."
        )
    found = reference.sets.get(metric.extractor, nothing)
    if wanted <= {*found.gaussians, *found.rows}:
        return found
    held = ", ".join(reference.sets) or "nothing"
    raise EvaluationError(
        f"The reference {reference.path} ({reference.kind}, for {held}) holds no "
        f"{', '.join(sorted(wanted))} of {metric.extractor}, which {name} needs: make "
        f"one with `pixelflow evaluate reference OUT.npz --metrics={name}`."
    )


def _union(parts: Iterable[tuple[str, Kept]]) -> dict[str, Kept]:
    together: dict[str, Kept] = {}
    for extractor, (statistics, rows) in parts:
        before = together.get(extractor, Kept())
        together[extractor] = Kept(
            tuple(dict.fromkeys([*before.statistics, *statistics])),
            tuple(dict.fromkeys([*before.rows, *rows])),
        )
    return together
