"""`pixelflow evaluate`: losses, metrics of image sets, comparisons, text suites."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import flags

from pixelflow_jax import build, distributed
from pixelflow_jax.cli import measure, shared, sweep
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import metrics, record
from pixelflow_jax.evaluation.suite_prompts import SUITES, read_suite
from pixelflow_jax.evaluation.suites import draw_suite
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.stream import Stream
from pixelflow_jax.validate import validate_data

T2I_SEED = 42  # of the first image of each prompt, by T2I-CompBench's own scripts
Open = Callable[[], Pipeline]  # reads the weights, when they are needed

METRICS = flags.DEFINE_list(
    "metrics",
    [],
    f"Metrics of drawn images: of {', '.join(metrics.METRICS)}. Without, and without "
    "another mode: the loss on held-out images.",
)
IMAGES = flags.DEFINE_string(
    "images", None, "Measure these images instead: a folder, or an npz with arr_0."
)
COMPARE = flags.DEFINE_list(
    "compare", [], "Two records of results, A.json,B.json: may they be compared?"
)
SUITE = flags.DEFINE_enum(
    "suite", None, list(SUITES), "Draw the images that this text suite's scorer reads."
)
PROMPTS = flags.DEFINE_string(
    "prompts", None, "The suite's own file or folder of prompts."
)
PROMPT_SEEDS = flags.DEFINE_bool(
    "prompt_seeds",
    False,
    f"Draw image n of each prompt, from 0 on, from seed {T2I_SEED} + n, as "
    "T2I-CompBench's authors do.",
)


def run(
    open_pipeline: Open,
    workdir: pathlib.Path,
    out: pathlib.Path | None,
    weights: str | pathlib.Path | None = None,
) -> int:
    """Do what the flags ask for; returns the exit code.

    `open_pipeline` reads the weights, which not every mode needs; results go to `out`,
    or below `workdir`; `weights` say where other averages lie than the flags name
    (None: in `workdir`). Raises EvaluationError.
    """
    modes = {
        "images": IMAGES.value,
        "compare": COMPARE.value,
        "suite": SUITE.value,
        "sweep": sweep.SWEEP.value,
    }
    given = [name for name, value in modes.items() if value]
    if len(given) > 1:
        listed = " and ".join(f"--{name}" for name in given)
        raise EvaluationError(f"{listed} are different things: give one of them.")
    if PROMPTS.value and not SUITE.value:
        raise EvaluationError(
            "--prompts names the prompts of a suite: name that with --suite, or the "
            "prompts to measure with --prompts_file."
        )
    if PROMPT_SEEDS.value and SUITE.value != "t2icompbench":
        raise EvaluationError(
            "--prompt_seeds is how T2I-CompBench's images are drawn: give "
            "--suite=t2icompbench, or leave it away."
        )
    if COMPARE.value:
        return run_comparison(COMPARE.value)
    if SUITE.value:
        run_suite(SUITE.value, open_pipeline(), workdir if out is None else out)
    elif IMAGES.value:
        measure.run_images(METRICS.value, pathlib.Path(IMAGES.value), out)
    elif sweep.SWEEP.value:
        place = workdir if weights is None else weights
        sweep.run_flags(METRICS.value, open_pipeline, place, out or workdir)
    elif METRICS.value:
        measure.run_metrics(METRICS.value, open_pipeline, out or workdir)
    else:
        run_heldout(open_pipeline(), workdir)
    return 0


def needs_workdir(apart: bool) -> bool:
    """Whether the mode needs a run's folder; `apart`: weights and results lie apart."""
    if IMAGES.value or COMPARE.value:
        return False
    return not (apart and (SUITE.value or METRICS.value or sweep.SWEEP.value))


def run_heldout(pipeline: Pipeline, workdir: pathlib.Path) -> dict[str, float]:
    """Loss on held-out images, printed and written to WORKDIR/evaluations/STEP.json."""
    shared.writable(workdir)
    config = pipeline.config
    shards = jax.device_count()
    batch = -(-min(config.batch_size, 256) // shards) * shards
    validate_data(config)
    result = build.heldout_loss(config, pipeline.params, batch, pipeline.constants)
    if not distributed.is_main():
        return result
    folder = workdir / "evaluations"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{pipeline.step:08d}.json"
    path.write_text(json.dumps({"step": pipeline.step, **result}, indent=1))
    for key, value in result.items():
        print(f"{key:>14}  {value:.5f}")
    print(f"Written to {path}.")
    return result


def run_comparison(paths: Sequence[str]) -> int:
    """Print what differs between two records; 1 where it makes them incomparable."""
    if len(paths) != 2:
        raise EvaluationError(
            f"--compare={','.join(paths)} must name two records: --compare=A.json,"
            "B.json."
        )
    one, other = (record.read_record(pathlib.Path(path).expanduser()) for path in paths)
    if distributed.is_main():
        print(record.report(one, other, (paths[0], paths[1])))
    return 0 if record.compare(one, other).comparable else 1


def run_suite(
    name: str, pipeline: Pipeline, out: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Draw what a suite's scorer reads, to OUT/NAME, with OUT/NAME.json beside it."""
    if not PROMPTS.value:
        raise EvaluationError(
            f"--suite={name} needs --prompts: get {SUITES[name].origin}, and name it."
        )
    if not pipeline.reads_text:
        raise EvaluationError(
            f"--suite={name} asks for images of prompts, and this model draws classes: "
            "name a model of text with --weights or --workdir."
        )
    count = draw.COUNT.value if draw.COUNT.present else None
    items = read_suite(name, pathlib.Path(PROMPTS.value), count)
    options = measure.drawing_options(pipeline)
    options["images_per_prompt"] = items[0].images
    stream = pipeline.stream([item.prompt for item in items], **options)
    if PROMPT_SEEDS.value:
        stream = seeded_by_prompt(stream, items[0].images)
    facts = {
        "prompts": str(PROMPTS.value),
        "model": measure.model_facts(pipeline),
        "environment": record.environment(),
    }
    shared.writable(out, "out")
    paths = draw_suite(name, items, stream, out, facts)
    for kind, path in paths.items() if distributed.is_main() else ():
        print(f"{kind:>10}: {path}")
    return paths


def seeded_by_prompt(stream: Stream, images: int) -> Stream:
    """The same with a seed for each of the `images` of a prompt, equal for all prompts.

    Refuses --sample_seed, which would decide nothing.
    """
    if draw.SEED.present:
        raise EvaluationError(
            f"--prompt_seeds draws from the seeds {T2I_SEED} + n: leave --sample_seed "
            "away, or --prompt_seeds."
        )
    seeds = T2I_SEED + np.arange(stream.draw.count, dtype=np.uint32) % images
    request = stream.draw.request._replace(seed=T2I_SEED, seeds=seeds)
    return dataclasses.replace(
        stream, draw=dataclasses.replace(stream.draw, request=request)
    )
