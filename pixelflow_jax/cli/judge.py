"""What measures images in `pixelflow evaluate`: metrics, networks, a reference."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import metrics
from pixelflow_jax.evaluation.accumulator import Kept, SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractors
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.references import Reference, load_reference

STANDARD = 50_000  # images behind published numbers
# What --features makes of the names of metrics, for networks other than Inception.
ALIASES = {
    "lite0": {"fid": "fd_lite0", "pr": "pr_lite0", "kid": "kid_lite0"},
    "dinov2": {"fid": "fd_dinov2", "prdc": "prdc"},
    "dinov2_b": {"fid": "fd_dinov2_b"},
}

COUNT = flags.DEFINE_integer(
    "num_samples", STANDARD, "Images to measure, in all.", lower_bound=1
)
ALLOW_N = flags.DEFINE_bool(
    "allow_n",
    False,
    "Measure another number of images than 50,000, whose numbers compare with none.",
)
REFERENCE = flags.DEFINE_string(
    "reference",
    None,
    "What to compare with: an npz of ADM, JiT, or evaluate reference.",
)
INCEPTION = flags.DEFINE_string(
    "inception",
    None,
    "InceptionV3 of 2015: the .pth of pytorch-fid or torch-fidelity, or TF's .pb.",
)
DINOV2 = flags.DEFINE_string(
    "dinov2", None, "Weights of DINOv2 for fd_dinov2, fd_dinov2_b and prdc."
)
LITE0 = flags.DEFINE_string(
    "lite0", None, "Weights of EfficientNet-Lite0. Default: the installed package's."
)
FEATURES = flags.DEFINE_enum(
    "features",
    "inception",
    ["inception", *ALIASES],
    "Network behind fid, pr and kid: lite0 needs no download, and gives FD-lite0.",
)


class Judge(NamedTuple):
    """What measures a set: metrics by name, networks, and a reference, all at hand."""

    names: tuple[str, ...]
    extractors: Mapping[str, Extractor]
    reference: Reference | None

    def __call__(self, features: Mapping[str, SetFeatures]) -> dict[str, float]:
        """The results, by name."""
        return metrics.evaluate(self.names, features, self.reference)


def judge(names: Sequence[str], size: tuple[int, int] | None, count: int) -> Judge:
    """What the flags ask for, with all files read; EvaluationError where one lacks.

    `size` is that of the `count` images to be measured, if it is known yet.
    """
    chosen = metric_names(names)
    reference = load_reference(REFERENCE.value) if REFERENCE.value else None
    if reference is None:
        _check_none_needed(chosen)
    if reference and size:
        reference.check_images(*size)
    needed = dict.fromkeys(metrics.required(chosen))
    files = {"inception": INCEPTION.value or ""}
    files |= dict.fromkeys(("dinov2", "dinov2_b"), DINOV2.value or "")
    weights = {**files, "lite0": LITE0.value or ""}
    for name in needed:
        if name in files and not files[name]:
            flag = "inception" if name == "inception" else "dinov2"
            raise EvaluationError(
                f"--metrics={','.join(names)} look through {name}, whose weights are "
                f"not in the package: name their file with --{flag}, or take "
                "--features=lite0 for an FD-lite0, which needs none."
            )
    extractors = open_extractors(needed, weights)
    if reference:
        for extractor in extractors.values():
            reference.check_extractor(extractor)
        reference = reference.with_rows(extractors, metrics.required_rows(chosen))
    metrics.check_enough(chosen, count, reference)
    return Judge(chosen, extractors, reference)


def metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """The metrics that --metrics and --features name; EvaluationError for none."""
    aliases = ALIASES.get(FEATURES.value, {})
    names = [name for name in names if name]  # "fid," means fid
    unknown = [n for n in names if n not in (*aliases, *aliases.values())]
    if aliases and unknown:
        raise EvaluationError(
            f"--features={FEATURES.value} has no {', '.join(unknown)}: choose of "
            f"{', '.join(aliases)}."
        )
    chosen = tuple(dict.fromkeys(aliases.get(name, name) for name in names))
    metrics.check_names(chosen)
    return chosen


def _check_none_needed(names: Sequence[str]) -> None:
    """EvaluationError where metrics compare with a reference."""
    needing = [n for n in names if metrics.METRICS[n].against != Kept()]
    if needing:
        raise EvaluationError(
            f"For {', '.join(needing)} a reference is needed: name one with "
            "--reference, or make one with `pixelflow evaluate reference OUT.npz "
            "--images=FOLDER_OR_NPZ`."
        )


def check_count(count: int) -> None:
    """EvaluationError for another number of images than the usual, unless allowed."""
    if count != STANDARD and not ALLOW_N.value:
        raise EvaluationError(
            f"{count:,} images are not the {STANDARD:,} behind published numbers, and "
            "these metrics depend on how many there are: give --allow_n to measure "
            "them all the same; the record will say so."
        )
