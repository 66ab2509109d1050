"""`pixelflow evaluate reference OUT.npz`: what samples will be measured against."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.source import Split
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import metrics
from pixelflow_jax.evaluation.accumulator import Accumulator, SetFeatures
from pixelflow_jax.evaluation.extractors import open_extractors
from pixelflow_jax.evaluation.image_sets import ImageSet, SourceImages, open_images
from pixelflow_jax.evaluation.passes import look
from pixelflow_jax.evaluation.references import file_sha256, write_reference

ROWS = 10_000  # images whose features precision, recall and KID compare, as ADM's
BATCH = 512


class Wanted(NamedTuple):
    """What a reference is made of: images, and the metrics that it shall serve.

    `weights` are files of networks by name; `rows` of the images, spread evenly, keep
    their features.
    """

    images: ImageSet
    metrics: Sequence[str]
    weights: Mapping[str, str]
    rows: int = ROWS


def images_of(path: str | pathlib.Path) -> ImageSet:
    """The images of an npz file or a folder; EvaluationError or DataError."""
    return open_images(path)


def images_of_data(data: Data, split: Split = "train") -> ImageSet:
    """The images of a config's data, as training crops them, but never mirrored."""
    size = (data.image_size, data.image_size)
    name = f"{type(data.source).__name__}, {split}"
    crop = lambda image: data.crop(image, size, None)
    return SourceImages(data.open(split), name, size, crop)


def write(out: str | pathlib.Path, wanted: Wanted) -> dict[str, SetFeatures]:
    """Look at all images once and write the reference file `out`, whole or not at all.

    Returns what it holds. Raises EvaluationError, WeightsError and DataError before
    anything is written.
    """
    out = pathlib.Path(out).expanduser()
    _check(out, wanted)
    arrays = metrics.reference_arrays(wanted.metrics)
    extractors = open_extractors(arrays, wanted.weights)
    count = len(wanted.images)
    rows = np.unique(np.linspace(0, count - 1, min(wanted.rows, count)).astype(int))
    seen = Accumulator(arrays, rows_of=rows)
    with tqdm(total=count, unit="image", desc="reference") as bar:
        look(seen, _shown(wanted.images, bar), extractors)
    features = seen.gathered().features(count)
    if jax.process_index() == 0:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_reference(
            out,
            features,
            extractors,
            resolution=wanted.images.size,
            facts=_facts(wanted, len(rows)),
        )
    return features


def _shown(images: ImageSet, bar: tqdm) -> Iterator[tuple[int, np.ndarray]]:
    """The batches of a set, which move a bar on."""
    for first, batch in images.batches(BATCH):
        yield first, batch
        bar.update(len(batch))


def _check(out: pathlib.Path, wanted: Wanted) -> None:
    metrics.check_names(wanted.metrics)
    if out.suffix != ".npz":
        raise EvaluationError(
            f"A reference is written as an npz file, so its name must end in .npz, "
            f"not {out.name!r}."
        )
    without = [n for n in wanted.metrics if not any(metrics.METRICS[n].against)]
    if len(without) == len(wanted.metrics):
        raise EvaluationError(
            f"--metrics={','.join(without)} compares with no reference: there is "
            "nothing to write."
        )


def _facts(wanted: Wanted, rows: int) -> dict[str, Any]:
    path = pathlib.Path(wanted.images.name)
    facts = {
        "images": wanted.images.name,
        "metrics": list(wanted.metrics),
        "rows": rows,
    }
    if path.is_file():
        facts["images_sha256"] = file_sha256(path)
    return facts
