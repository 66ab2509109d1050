"""Metrics of `pixelflow evaluate`: of images that are drawn for them, or of others'."""

import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from pixelflow_jax.cli import judge, shared
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.conditioning.prompts import read_prompts
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import record
from pixelflow_jax.evaluation.accumulator import SetFeatures
from pixelflow_jax.evaluation.features import LOGITS
from pixelflow_jax.evaluation.image_sets import ImageSet, open_images
from pixelflow_jax.evaluation.order import class_order
from pixelflow_jax.evaluation.passes import WatchedDraw, set_features
from pixelflow_jax.pretrained.options import DrawOptions
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.output import Described, write_samples
from pixelflow_jax.sampling.stream import Stream

BATCH = 256  # images read at a time
COLUMNS = 10

PNG = flags.DEFINE_bool("png", False, "Also keep a PNG of each image that is drawn.")


def run_images(
    names: Sequence[str], path: pathlib.Path, out: pathlib.Path | None
) -> pathlib.Path:
    """Measure images that lie there; writes a record beside them, or to `out`."""
    if not names:
        raise EvaluationError("--images needs --metrics, such as --metrics=fid,is.")
    images = open_images(path)
    judge.check_count(len(images))
    place = path.expanduser().absolute()
    folder = out or place.parent
    shared.could_write(folder, "--out")
    judged = judge.judge(names, images.size, len(images))
    with tqdm(total=len(images), unit="image", disable=jax.process_index() > 0) as bar:
        batches = _counted(images.batches(BATCH), bar)
        features = set_features(batches, judged.names, judged.extractors, len(images))
    facts = {**_set_facts(images, features), "uint8": "unknown"}
    name = f"{place.name}.{_signature(judged)}.json"
    return _report(judged, features, folder / name, facts=facts)


def run_metrics(
    names: Sequence[str], open_pipeline: Callable[[], Pipeline], out: pathlib.Path
) -> pathlib.Path:
    """Draw images to OUT/evaluations, go on with them, measure; writes a record.

    Networks look at the images while they are drawn. What an earlier sitting drew is
    read from its file.
    """
    judge.check_count(judge.COUNT.value)
    judge.metric_names(names)
    pipeline = open_pipeline()
    stream = pipeline.stream(
        evaluation_set(pipeline, judge.COUNT.value), **drawing_options(pipeline)
    )
    judged = judge.judge(names, stream.generator.size, stream.draw.count)
    shared.writable(out, "out")
    words = f"step{pipeline.step:08d}-n{judge.COUNT.value}-seed{draw.SEED.value}"
    folder = out / "evaluations" / stream.draw.folder(words)
    watched = WatchedDraw(stream, judged.names, judged.extractors)
    labels = stream.draw.request.given.get("label")
    about = Described(
        shape=stream.shape,
        digest=stream.draw.digest,
        names=stream.draw.names,
        columns=COLUMNS,
        labels=labels,
        facts={"draw": stream.draw.facts()},
        png=PNG.value,
    )
    paths = write_samples(folder, watched, about, progress=True)
    features = watched.features(paths["npz"])
    facts = {
        "path": str(paths["npz"]),
        "count": stream.draw.count,
        "height": stream.shape[0],
        "width": stream.shape[1],
        "order": "interleaved" if labels is not None else "prompts in turn",
        "uint8": record.UINT8,
    }
    return _report(
        judged,
        features,
        folder / f"result-{_signature(judged)}.json",
        facts=facts,
        model={**model_facts(pipeline), "weights": stream.draw.weights},
        sampling=sampling_facts(stream),
        seconds_per_image=watched.seconds_per_image,
    )


def evaluation_set(pipeline: Pipeline, count: int) -> list[int | str]:
    """What is drawn: image i is of class, or prompt, i modulo their number."""
    if not pipeline.reads_text:
        return [i % pipeline.config.model.num_classes for i in range(count)]
    if not draw.PROMPTS_FILE.value:
        raise EvaluationError(
            "A model of text is measured on prompts: name a file of them, one a line, "
            "with --prompts_file, such as the captions of the reference's images."
        )
    prompts = read_prompts(draw.PROMPTS_FILE.value).prompts
    return list(itertools.islice(itertools.cycle(prompts), count))


def drawing_options(pipeline: Pipeline) -> DrawOptions:
    """How the flags want images to be drawn."""
    return {
        "negative_prompt": draw.NEGATIVE.value,
        "seed": draw.SEED.value,
        "height": draw.HEIGHT.value or 0,
        "width": draw.WIDTH.value or 0,
        "sampling": draw.changed(pipeline.config.sampling),
    }


def model_facts(pipeline: Pipeline) -> dict[str, Any]:
    """What a record says of the weights."""
    usual = str(pipeline.config.ema[0]) if pipeline.config.ema else "raw"
    # The origin of a run's or published weights ends in words on the average.
    average = pipeline.origin.rsplit(", ", 1)[-1] or shared.EMA.value or usual
    return {
        "name": pipeline.config.name,
        "origin": pipeline.origin,
        "step": pipeline.step,
        "ema": average,
        "precision": to_dict(pipeline.config.precision),
        "config": to_dict(pipeline.config.model),
    }


def sampling_facts(stream: Stream) -> dict[str, Any]:
    """What a record says of how a set was drawn."""
    facts = stream.draw.facts()
    settings = facts["settings"]["sampling"]
    return {
        "solver": settings["solver"],
        "steps": settings["grid"]["stage_steps"] or settings["grid"]["steps"],
        "grid": settings["grid"],
        "guidance": settings["guidance"],
        "path": facts["settings"]["path"],
        "prediction": facts["settings"]["prediction"],
        "given": facts["given"],
        **{k: facts[k] for k in ("seed", "first", "batch_per_device", "platform")},
        "digest": stream.draw.digest,
    }


def _counted(
    batches: Iterator[tuple[int, np.ndarray]], bar: tqdm
) -> Iterator[tuple[int, np.ndarray]]:
    for first, images in batches:
        yield first, images
        bar.update(len(images))


def _set_facts(images: ImageSet, features: Mapping[str, SetFeatures]) -> dict[str, Any]:
    """What a record says of a set, and a warning where its order misleads."""
    rows = features["inception"].rows if "inception" in features else {}
    logits = rows.get(LOGITS)
    classes = images.labels
    if classes is None and logits is not None:
        classes = logits.argmax(1)
    order = class_order(classes)
    if order == "sorted" and jax.process_index() == 0:
        print(
            "Warning: these images come class after class. The Inception Score over "
            "consecutive parts (`is`) is far too low for such a set (68 instead of 280 "
            "on ImageNet): shuffle the images, or read `is_jit`, whose parts are drawn."
        )
    return {
        "path": images.name,
        "count": len(images),
        "height": images.size[0],
        "width": images.size[1],
        "order": order,
    }


def _signature(judged: judge.Judge) -> str:
    """A short name of what measured: other metrics or references, another file."""
    digests = [one.weights_digest for one in judged.extractors.values()]
    sha = judged.reference.sha256 if judged.reference else ""
    text = json.dumps([sorted(judged.names), digests, sha])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _report(
    judged: judge.Judge,
    features: Mapping[str, SetFeatures],
    path: pathlib.Path,
    *,
    facts: Mapping[str, Any],
    **drawn: Any,
) -> pathlib.Path:
    """Compute, print and record the results."""
    results = judged(features)
    if wrong := [name for name, value in results.items() if not math.isfinite(value)]:
        raise EvaluationError(
            f"{', '.join(wrong)} came out as no number: these images are too few, or "
            "all alike. Measure more of them, or look at them first."
        )
    protocol = record.Protocol(
        images=facts,
        extractors=judged.extractors,
        reference=judged.reference,
        **drawn,
    )
    if jax.process_index() == 0:
        # First what a full disk cannot take away.
        for name, value in results.items():
            print(f"{name:>16}  {value:.5f}")
        record.write_record(path, protocol.to_dict(results))
        print(f"Written to {path}.")
    return path
