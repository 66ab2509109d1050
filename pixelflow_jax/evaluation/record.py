"""The protocol of a result: everything that a number depends on, written beside it."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.config_io import differences
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.references import Reference

FORMAT = 1
UINT8 = "round((x + 1) * 127.5), clipped"  # `data.images.to_uint8`
PACKAGES = ("pixelflow_jax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow")
# Fields that change no number, or by no more than its noise, and why.
HARMLESS = {
    "environment": "where it was computed",
    "time": "how long it took",
    "note": "words",
    "images.path": "where the images lie",
    "reference.path": "where the reference lies",
    "sampling.seed": "another draw of the same distribution: noise",
    "sampling.first": "another draw of the same distribution: noise",
    "sampling.digest": "follows from the other fields",
    "sampling.batch_per_device": "rounding",
    "sampling.platform": "rounding",
}
HARMLESS_OF_NETWORKS = ("file_sha256", "arithmetic", "batch")
# What two numbers are meant to compare.
SUBJECT = ("model.origin", "model.name", "model.step", "model.weights", "model.config")
ORDERED = ("is",)  # results that depend on the order of the images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How results came about.

    `images` says what set it was: its count, size, order of labels and rule of
    rounding; `model` and `sampling` how it was drawn, empty for images of unknown
    origin; `seconds_per_image` how long that and the metrics' networks took, if it
    was timed.
    """

    images: Mapping[str, Any]
    extractors: Mapping[str, Extractor]
    reference: Reference | None = None
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds_per_image: float | None = None

    def to_dict(self, results: Mapping[str, float]) -> dict[str, Any]:
        """The record of these results, as JSON."""
        return {
            "format": FORMAT,
            "results": dict(results),
            "images": dict(self.images),
            "reference": self._reference(),
            "networks": {
                name: {
                    "file_sha256": one.file_sha256,
                    "weights_digest": one.weights_digest,
                    **one.facts,
                }
                for name, one in self.extractors.items()
            },
            "model": dict(self.model),
            "sampling": dict(self.sampling),
            "time": {"seconds_per_image": self.seconds_per_image},
            "environment": environment(),
        }

    def _reference(self) -> dict[str, Any]:
        if self.reference is None:
            return {}
        one = self.reference
        return {
            "path": one.path,
            "sha256": one.sha256,
            "kind": one.kind,
            "count": one.count,
            "resolution": list(one.resolution) if one.resolution else None,
        }


def environment() -> dict[str, Any]:
    """Versions, the commit of this code, and the devices."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "git_commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
    }


def _commit() -> str | None:
    """The commit of the package's clone, with a + where files differ from it."""
    here = pathlib.Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None  # an installed package


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all; EvaluationError where it cannot."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, shared=True) as partial:
            partial.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise EvaluationError(
            f"The record {path} cannot be written ({error.strerror}): make room or "
            "name another folder with --out, and give the command again."
        ) from error


def read_record(path: pathlib.Path) -> dict[str, Any]:
    """A record from its file; EvaluationError for what is none."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise EvaluationError(
            f"The record {path} cannot be read ({error.strerror}): name two files that "
            "`pixelflow evaluate --metrics=...` wrote."
        ) from error
    except ValueError as error:
        raise EvaluationError(
            f"{path} is no JSON ({error}): evaluate again, or name another record."
        ) from error
    results = record.get("results") if isinstance(record, dict) else None
    known = isinstance(results, dict) and all(
        isinstance(value, int | float) for value in results.values()
    )
    later = record.get("format") if isinstance(record, dict) else None
    if isinstance(later, int) and later > FORMAT:
        raise EvaluationError(
            f"{path} is of format {later}, and this version reads format {FORMAT}: "
            "update pixelflow_jax, or measure again with this version."
        )
    if not known or later != FORMAT:
        raise EvaluationError(
            f"{path} is no record of results of format {FORMAT}: name a file that "
            "`pixelflow evaluate --metrics=...` wrote."
        )
    return record


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Fields in which two records differ: {"a.b": (first, second)}.

    `protocol` makes their numbers incomparable, `subject` is what they compare, and
    `harmless` changes no number by more than its noise.
    """

    protocol: dict[str, tuple]
    subject: dict[str, tuple]
    harmless: dict[str, tuple]

    @property
    def comparable(self) -> bool:
        """Whether the numbers may stand side by side."""
        return not self.protocol


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> Comparison:
    """What differs between the records of two results.

    A field that is not known to be harmless is taken for a part of the protocol, and so
    is one that only one of them has.
    """
    shared = set(one["results"]) & set(other["results"])
    ordered = any(name.split("_")[0] in ORDERED for name in shared)
    found = Comparison({}, {}, {})
    for path, pair in differences(
        _without_results(one), _without_results(other)
    ).items():
        misleads = ordered and "sorted" in pair
        if _is_harmless(path) or (path == "images.order" and not misleads):
            found.harmless[path] = pair
        elif _below(path, SUBJECT):
            found.subject[path] = pair
        else:
            found.protocol[path] = pair
    if not shared:
        found.protocol["results"] = tuple(sorted(r["results"]) for r in (one, other))
    return found


def _without_results(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "results"}


def _is_harmless(path: str) -> bool:
    parts = path.split(".")
    own = parts[0] == "networks" and parts[-1] in HARMLESS_OF_NETWORKS
    return own or _below(path, HARMLESS)


def _below(path: str, names: Any) -> bool:
    return any(
        path == name or path.startswith((f"{name}.", f"{name}[")) for name in names
    )


def report(one: Mapping[str, Any], other: Mapping[str, Any], names: tuple) -> str:
    """The comparison in lines: the results side by side, and what differs."""
    found = compare(one, other)
    lines = [f"{'':>20}  {names[0]}  {names[1]}"]
    for name in dict.fromkeys([*one["results"], *other["results"]]):
        pair = (record["results"].get(name) for record in (one, other))
        shown = ["-" if value is None else f"{value:.5g}" for value in pair]
        lines.append(f"{name:>20}  {shown[0]}  {shown[1]}")
    kinds = {
        "These make the numbers incomparable:": found.protocol,
        "These are what is compared:": found.subject,
        "These are harmless:": found.harmless,
    }
    for title, fields in kinds.items():
        if fields:
            lines += ["", title]
            lines += [f"  {path}: {a} -> {b}" for path, (a, b) in fields.items()]
    verdict = "may be compared" if found.comparable else "are not comparable"
    return "\n".join([*lines, "", f"The two results {verdict}."])
