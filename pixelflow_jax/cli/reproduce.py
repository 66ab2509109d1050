"""Do published weights reproduce their paper's figures? From the file to a verdict.

Converts official weights, takes the paper's sampling settings, draws the images,
measures everything that the reference allows, and compares with the paper's row.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from pixelflow_jax import backend
from pixelflow_jax.cli import measure
from pixelflow_jax.cli.parser import Parser, at_least, nonempty
from pixelflow_jax.cli.shared import could_write
from pixelflow_jax.cli.terminal import accept_every_text, give_up, refusing
from pixelflow_jax.config_files import load_config, paper_rows
from pixelflow_jax.convert import actions, families
from pixelflow_jax.errors import ConfigError, EvaluationError
from pixelflow_jax.evaluation import metrics
from pixelflow_jax.evaluation.extractors import open_extractors
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.evaluation.paper import (
    Judgement,
    PaperRow,
    judge,
    protocol_differences,
)
from pixelflow_jax.evaluation.passes import WatchedDraw
from pixelflow_jax.evaluation.record import UINT8, Protocol, write_record
from pixelflow_jax.evaluation.references import Reference, load_reference
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.output import Described, write_samples
from pixelflow_jax.sampling.stream import Stream

COMMAND = "pixelflow reproduce"
EXAMPLES = """examples:
  pixelflow reproduce pixnerd:xl16_256 --weights=epoch319.ckpt \\
      --reference=VIRTUAL_imagenet256_labeled.npz --inception=inception-2015.pth
  pixelflow reproduce pixnerd:xl16_256 --rows
  pixelflow reproduce pixelgen:xl_256 --weights=pixelgen.ckpt --row=0 \\
      --reference=VIRTUAL_imagenet256_labeled.npz --inception=inception-2015.pth
"""
DEFAULT = "runs/reproduce"  # the folder of all that are reproduced


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be reproduced, from which files, and where to.

    `networks` are the files of feature networks by name; without Inception's the
    features are those of lite0, on which there is no verdict.
    """

    name: str
    config: Experiment
    row: PaperRow
    weights: pathlib.Path
    reference: Reference
    networks: dict[str, str]
    out: pathlib.Path
    count: int
    seed: int = 0
    family: str = ""


def main(argv: list[str] | None = None) -> int:
    """Reproduce what the arguments say; returns the exit code."""
    accept_every_text()
    parser = _parser()
    given, unknown = parser.parse_known_args(argv)
    parser.refuse_unknown(unknown)
    backend.configure()
    with refusing(given.out or DEFAULT):
        if given.rows:
            for number, row in enumerate(paper_rows(given.name)):
                print(f"--row={number}  {row.summary}")
            return 0
        try:
            run(_task(given))
        except KeyboardInterrupt:
            give_up("Interrupted: the same command goes on from there.", 130)
    return 0


def run(task: Task) -> Judgement:
    """Carry it out, print the verdict, and write report.json; returns the verdict."""
    print(f"{task.name}: {task.row.summary}")
    could_write(task.out, "--out")
    extractors, names = _measured(task)
    # All that may be wrong with the reference, before hours of drawing.
    reference = task.reference.with_rows(extractors, metrics.required_rows(names))
    pipeline = _pipeline(task)
    stream = pipeline.stream(
        measure.evaluation_set(pipeline, task.count), seed=task.seed
    )
    watched = WatchedDraw(stream, names, extractors)
    paths = write_samples(
        task.out / "samples", watched, _described(stream), progress=True
    )
    seen = watched.features(paths["npz"])
    results = metrics.evaluate(names, seen, reference)
    verdict = judge(task.row, results, task.count)
    differing = protocol_differences(
        task.row, pipeline.config.sampling, task.count, task.reference
    )
    protocol = Protocol(
        images={
            "path": str(paths["npz"]),
            "count": task.count,
            "height": stream.shape[0],
            "width": stream.shape[1],
            "order": "interleaved",
            "uint8": UINT8,
        },
        extractors=extractors,
        reference=task.reference,
        model=measure.model_facts(pipeline),
        sampling=measure.sampling_facts(stream),
        seconds_per_image=watched.seconds_per_image,
    )
    own = {"paper": task.row.summary, **verdict.to_dict(), "differences": differing}
    path = task.out / "report.json"
    write_record(path, {**protocol.to_dict(results), "reproduction": own})
    _say(results, verdict, differing, path)
    return verdict


def _say(
    results: dict[str, float],
    verdict: Judgement,
    differing: list[str],
    path: pathlib.Path,
) -> None:
    for name, value in results.items():
        print(f"{name:>20}  {value:.5g}")
    print("\nAgainst the paper:", *verdict.lines, sep="\n  ")
    print("Differences of protocol:", *differing, sep="\n  ")
    words = "no verdict is possible" if verdict.verdict == "none" else verdict.verdict
    print(f"Verdict: {words}. Written to {path}.")


def _measured(task: Task) -> tuple[dict, list[str]]:
    """The extractors, and the metrics that they and the reference allow."""
    reference, names = task.reference, []
    size = task.config.data.image_size
    reference.check_images(size, size)
    available = {*task.networks} or {"lite0"}
    for name, metric in metrics.METRICS.items():
        held = reference.sets.get(metric.extractor)
        wanted = {*metric.against.statistics, *metric.against.rows}
        there = {*held.gaussians, *held.rows} if held else set()
        from_images = reference.images is not None and not metric.against.statistics
        few = min(task.count, _compared(metric, reference)) < metric.fewest
        if metric.extractor in available and (wanted <= there or from_images):
            names += [] if few else [name]
    if not names:
        raise EvaluationError(
            f"The reference {reference.path} (for {', '.join(reference.sets)}) serves "
            f"no metric of {task.count:,} images by {', '.join(sorted(available))}: "
            "name the network's file with --inception or --dinov2, or another "
            "--reference."
        )
    used = dict.fromkeys(metrics.METRICS[name].extractor for name in names)
    extractors = open_extractors(used, task.networks)
    for extractor in extractors.values():
        reference.check_extractor(extractor)
    return extractors, names


def _compared(metric: metrics.Metric, reference: Reference) -> int:
    """How many images of the reference a metric looks at; enough, where at none."""
    if not metric.against.rows:
        return metric.fewest
    held = reference.sets.get(metric.extractor)
    rows = held.rows.get(FEATURES, ()) if held else ()
    return len(rows) or len(reference.images or ())


def _pipeline(task: Task) -> Pipeline:
    """The model with the paper's sampling settings; converts its weights once."""
    source = task.weights
    if not published.is_ours(source):
        source = task.out / "weights"
        if not published.is_ours(source):
            size = task.config.data.image_size
            known = families.fields(task.config.model).items()
            found = actions.understood(
                task.weights,
                family=task.family,
                given={
                    name: one for name, one in known if name not in families.EXECUTION
                },
                given_by=task.name,
                image_size=size,
            )
            print(*found.notes, sep="\n")
            actions.from_torch(found, source, config=task.config, image_size=size)
    pipeline = Pipeline.from_pretrained(source)
    sampling = dataclasses.replace(task.row.sampling)
    config = dataclasses.replace(pipeline.config, sampling=sampling)
    return dataclasses.replace(pipeline, config=config)


def _described(stream: Stream) -> Described:
    draw = stream.draw
    return Described(
        shape=stream.shape,
        digest=draw.digest,
        names=draw.names,
        columns=10,
        labels=np.asarray(draw.request.given["label"]),
        facts=draw.facts(),
        png=False,
    )


def _task(given: argparse.Namespace) -> Task:
    rows, config = paper_rows(given.name), load_config(given.name)
    if given.row >= len(rows):
        raise ConfigError(
            f"--row={given.row}: {given.name} has the rows 0 to {len(rows) - 1}; "
            "--rows lists them."
        )
    missing = [f"--{n}" for n in ("weights", "reference") if not getattr(given, n)]
    if missing:
        raise ConfigError(
            f"`{COMMAND} {given.name}` needs {' and '.join(missing)}: the official "
            "weights, and ADM's VIRTUAL_imagenet*.npz or JiT's statistics. --rows "
            "lists the figures that there are."
        )
    row = rows[given.row]
    count = given.num_samples or row.count
    out = given.out or pathlib.Path(DEFAULT) / given.name.replace(":", "-")
    files = {"inception": given.inception, "dinov2": given.dinov2, "lite0": given.lite0}
    return Task(
        name=given.name,
        config=config,
        row=row,
        weights=pathlib.Path(given.weights).expanduser(),
        reference=load_reference(given.reference),
        networks={name: file for name, file in files.items() if file},
        out=pathlib.Path(out).expanduser(),
        count=count,
        seed=given.seed,
        family=given.family,
    )


def _parser() -> Parser:
    parser = Parser(prog=COMMAND, description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("name", metavar="CONFIG:VARIANT", type=nonempty, help="a config of a paper")
    add("--rows", action="store_true", help="list the paper's rows, and end")
    add("--row", type=at_least(0), default=0, help="which of them (the first)")
    add("--weights", type=nonempty, help="official weights, or a published folder")
    add("--family", default="", help="of the weights, where they leave it open")
    add("--reference", type=nonempty, help="npz of ADM, of JiT, or of `evaluate`")
    add("--inception", default="", help="file of the 2015 Inception")
    add("--dinov2", default="", help="file of DINOv2 ViT-L/14, for FD-DINOv2")
    add("--lite0", default="", help="file of EfficientNet-Lite0, for FD-lite0")
    add("--num_samples", type=at_least(2), help="images (the paper's number)")
    add("--seed", type=at_least(0), default=0, help="of the noise")
    add("--out", type=pathlib.Path, help="folder (runs/reproduce/NAME)")
    return parser
