"""References that samples are measured against: ADM's, JiT's, and our own files.

| kind | arrays | what it serves |
|---|---|---|
| adm | arr_0, mu, sigma, mu_s, sigma_s | FID, sFID; all else by its images |
| statistics | mu, sigma | FID (JiT's files, pytorch-fid's) |
| pixelflow | meta, arrays by extractor | all metrics of its extractors |
"""

import dataclasses
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation.accumulator import Accumulator, Kept, SetFeatures
from pixelflow_jax.evaluation.features import FEATURES, SPATIAL, Extractor
from pixelflow_jax.evaluation.image_sets import (
    ImageSet,
    NpzImages,
    array_names,
    read_npz,
)
from pixelflow_jax.evaluation.statistics import Gaussian

FORMAT = 1
META = "meta"
# JiT's statistics say nothing of their resolution; their digests do.
JIT = {
    "412046720c0d496dc6d72a30eac3e22b9ef6ddac3501cce7f996674ad227ba4c": 256,
    "cdd15b54f9d1f26a881fcdc920a3410fa7a934047d6c4f5b8395b87182a9ab42": 512,
}
PIECE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Reference:
    """What samples are compared with, and where it came from.

    `sets` are statistics and rows by extractor; `images`, those whose features serve
    precision and recall; `count`, how many images are behind the statistics and
    `resolution` their (height, width), None where the file does not say; `digests` are
    those of the extractors' weights, where it does.
    """

    path: str
    sha256: str
    kind: str
    sets: dict[str, SetFeatures]
    images: ImageSet | None = None
    count: int | None = None
    resolution: tuple[int, int] | None = None
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check_images(self, height: int, width: int) -> None:
        """Raises EvaluationError where samples have another resolution."""
        if self.resolution and self.resolution != (height, width):
            theirs = " x ".join(map(str, self.resolution))
            raise EvaluationError(
                f"The reference {self.path} is of {theirs} images, the samples are "
                f"{height} x {width}: numbers across resolutions mean nothing. Name "
                "the reference of the samples' resolution with --reference."
            )

    def check_extractor(self, extractor: Extractor) -> None:
        """Raises EvaluationError where other weights or another network made it."""
        theirs = self.digests.get(extractor.name)
        if theirs and theirs != extractor.weights_digest:
            raise EvaluationError(
                f"The reference {self.path} was made with other weights of "
                f"{extractor.name} (digest {theirs[:12]}, here "
                f"{extractor.weights_digest[:12]}): name the file it was made with, or "
                "make the reference again with `pixelflow evaluate reference`."
            )
        own = self.sets.get(extractor.name)
        for key, (mean, _) in own.gaussians.items() if own else ():
            width = extractor.widths.get(key)
            if width != len(mean):
                raise EvaluationError(
                    f"The reference {self.path} has statistics of {len(mean)} numbers "
                    f"an image, but {extractor.name} gives {width} ({key}): it was "
                    "made with another network. Name one of this network, or make one "
                    "with `pixelflow evaluate reference`."
                )

    def with_rows(
        self,
        extractors: Mapping[str, Extractor],
        names: Sequence[str],
        batch: int = 512,
    ) -> "Reference":
        """The same with the features of its images, which the extractors `names` see.

        Those that it has stay. Raises EvaluationError where it has no images for them.
        """
        missing = {
            name: Kept(rows=(FEATURES,))
            for name in names
            if name not in self.sets or FEATURES not in self.sets[name].rows
        }
        if not missing:
            return self
        if self.images is None:
            raise EvaluationError(
                f"The reference {self.path} holds statistics alone; precision, recall, "
                "KID and PRDC need its images or their features. Use ADM's "
                "VIRTUAL_*.npz or a file of `pixelflow evaluate reference`, or leave "
                "these metrics out."
            )
        seen = Accumulator(missing)
        for first, images in self.images.batches(batch):
            seen.add(extractors, images, first)
        sets = dict(self.sets)
        for name, found in seen.features(len(self.images)).items():
            own = sets.get(name)
            gaussians = own.gaussians if own else {}
            sets[name] = SetFeatures(found.count, gaussians, found.rows)
        return dataclasses.replace(self, sets=sets)


def load_reference(path: str | pathlib.Path) -> Reference:
    """The reference in an npz file of any of the kinds above.

    Its images are not read yet. Raises EvaluationError where there is no such file, it
    is damaged, or holds something else.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise EvaluationError(
            f"There is no reference {path}: download ADM's VIRTUAL_imagenet*.npz or "
            "JiT's statistics, or make one with `pixelflow evaluate reference OUT.npz "
            "--images=FOLDER_OR_NPZ`."
        )
    names, digest = array_names(path), file_sha256(path)
    if META in names:
        return _own(path, digest)
    if not {"mu", "sigma"} <= set(names):
        raise EvaluationError(
            f"{path} holds {', '.join(names) or 'nothing'}, no statistics (mu, sigma): "
            "it is no reference. Make one of these images with `pixelflow evaluate "
            f"reference OUT.npz --images={path}`."
        )
    gaussians = {FEATURES: _gaussian(path, "mu", "sigma")}
    if {"mu_s", "sigma_s"} <= set(names):
        gaussians[SPATIAL] = _gaussian(path, "mu_s", "sigma_s")
    images = NpzImages(path) if "arr_0" in names else None
    side = JIT.get(digest)
    return Reference(
        path=str(path),
        sha256=digest,
        kind="adm" if images else "statistics",
        sets={"inception": SetFeatures(0, gaussians, {})},
        images=images,
        resolution=images.size if images else (side, side) if side else None,
    )


def write_reference(
    path: str | pathlib.Path,
    features: Mapping[str, SetFeatures],
    extractors: Mapping[str, Extractor],
    *,
    resolution: tuple[int, int],
    facts: Mapping[str, Any],
) -> None:
    """Write a file of our own kind, whole or not at all.

    `features` are of all extractors; `facts` say what the images were. Inception's
    statistics are also called mu, sigma, mu_s and sigma_s, so that other evaluators
    read them.
    """
    counts = {found.count for found in features.values()}
    arrays: dict[str, np.ndarray] = {}
    for name, found in features.items():
        for key, (mean, covariance) in found.gaussians.items():
            arrays[f"mean.{name}.{key}"] = mean
            arrays[f"covariance.{name}.{key}"] = covariance
        for key, rows in found.rows.items():
            arrays[f"rows.{name}.{key}"] = rows
    for suffix, key in (("", FEATURES), ("_s", SPATIAL)):
        own = features["inception"].gaussians if "inception" in features else {}
        if key in own:
            arrays["mu" + suffix], arrays["sigma" + suffix] = own[key]
    meta = {
        "format": FORMAT,
        "count": counts.pop(),
        "resolution": list(resolution),
        "digests": {name: extractors[name].weights_digest for name in features},
        "files": {name: extractors[name].file_sha256 for name in features},
        "networks": {name: extractors[name].facts for name in features},
        "facts": dict(facts),
    }
    arrays[META] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    path = pathlib.Path(path)
    with atomic_write(path, shared=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def file_sha256(path: str | pathlib.Path) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _own(path: pathlib.Path, digest: str) -> Reference:
    meta = _meta(path)
    if meta["format"] > FORMAT:
        raise EvaluationError(
            f"{path} is of format {meta['format']}, this version reads up to {FORMAT}: "
            "update pixelflow_jax, or make the reference again."
        )
    gaussians: dict[str, dict[str, Gaussian]] = {}
    rows: dict[str, dict[str, np.ndarray]] = {}
    for array in array_names(path):
        kind, _, rest = array.partition(".")
        name, _, key = rest.partition(".")
        if kind == "mean":
            covariance = f"covariance.{rest}"
            gaussians.setdefault(name, {})[key] = _gaussian(path, array, covariance)
        elif kind == "rows":
            rows.setdefault(name, {})[key] = _array(path, array)
    return Reference(
        path=str(path),
        sha256=digest,
        kind="pixelflow",
        sets={
            name: SetFeatures(
                meta["count"], gaussians.get(name, {}), rows.get(name, {})
            )
            for name in meta["digests"]
        },
        count=meta["count"],
        resolution=(meta["resolution"][0], meta["resolution"][1]),
        digests=meta["digests"],
        facts=meta["facts"],
    )


def _meta(path: pathlib.Path) -> dict[str, Any]:
    """What a file of our own kind says of itself; EvaluationError for another kind."""
    wanted = {"format", "count", "resolution", "digests", "facts"}
    try:
        meta = json.loads(_array(path, META).tobytes())
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or not wanted <= set(meta):
        raise EvaluationError(
            f"{path} holds an array {META!r} that no `pixelflow evaluate reference` "
            "wrote: it is no reference. Make one with that command."
        )
    return meta


def _gaussian(path: pathlib.Path, mean: str, covariance: str) -> Gaussian:
    found = Gaussian(
        _array(path, mean).astype(np.float64),
        _array(path, covariance).astype(np.float64),
    )
    width = found.mean.size
    if found.mean.shape != (width,) or found.covariance.shape != (width, width):
        raise EvaluationError(
            f"{path} holds {mean} of shape {list(found.mean.shape)} and {covariance} "
            f"of shape {list(found.covariance.shape)}, not [d] and [d, d]: it is no "
            "reference of this kind."
        )
    if not (np.isfinite(found.mean).all() and np.isfinite(found.covariance).all()):
        raise EvaluationError(
            f"{path} holds {mean} or {covariance} with numbers that are not finite: "
            "download or make the reference again."
        )
    return found


def _array(path: pathlib.Path, name: str) -> np.ndarray:
    def read(archive: zipfile.ZipFile) -> np.ndarray:
        content = io.BytesIO(archive.read(f"{name}.npy"))
        return np.lib.format.read_array(content, allow_pickle=False)

    return read_npz(path, read)
