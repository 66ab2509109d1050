"""`pixelflow sample`: its flags, and what they make of a model's settings."""

import pathlib

from absl import flags

from pixelflow_jax import distributed, values
from pixelflow_jax.conditioning.prompts import read_prompts
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.pretrained.subjects import slug
from pixelflow_jax.sampling.choices import SOLVERS, Choices
from pixelflow_jax.sampling.output import Described, write_samples
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling

CLASSES = flags.DEFINE_list(
    "classes", [], "Class names or numbers to sample. Default: all."
)
PROMPTS = flags.DEFINE_multi_string(
    "prompt", None, "Prompt to draw, for models of text; may be given several times."
)
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", "", "File of prompts in UTF-8, one a line; # begins a comment."
)
NEGATIVE = flags.DEFINE_string(
    "negative_prompt", "", "What guidance leads away from, for models of text."
)
COUNT = flags.DEFINE_integer("count", 8, "Images per class or prompt.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "sample_seed", 0, "Seed of the samples.", lower_bound=0, upper_bound=2**32 - 1
)
SOLVER = flags.DEFINE_enum(
    "solver", None, sorted(SOLVERS), "Solver. Default: the config's."
)
PRESET = flags.DEFINE_enum(
    "preset", None, sorted(PRESETS), "Sampling settings of a paper's table, to vary."
)
STEPS = flags.DEFINE_list(
    "sample_steps", None, "Solver steps: one number, or one a stage such as 10,20,30,30"
)
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale; 1 turns it off.")
GUIDE = flags.DEFINE_string(
    "guide", None, "Run or weights of a weaker model to guide by (autoguidance)."
)
INTERVAL = flags.DEFINE_list(
    "guidance_interval", None, "Times between which guidance acts, such as 0.1,1."
)
SHIFT = flags.DEFINE_float("shift", None, "Timestep shift; above 1 favours noise.")
HEIGHT = flags.DEFINE_integer(
    "height", None, "Image height. Default: the training size.", lower_bound=1
)
WIDTH = flags.DEFINE_integer(
    "width", None, "Image width. Default: the training size.", lower_bound=1
)
TRAJECTORY = flags.DEFINE_bool(
    "trajectory", False, "Also write the clean image implied at each step, as a GIF."
)
STAGES = flags.DEFINE_bool(
    "stages", False, "Also write the states at the end of each stage, side by side."
)
RANGES = {
    "guidance": values.Scale,
    "shift": values.Shift,
    "count": values.Count,
    "height": values.Pixels,
    "width": values.Pixels,
}
for _name, _kind in RANGES.items():
    values.limit_flag(_name, _kind)


def run_sampling(
    pipeline: Pipeline,
    workdir: pathlib.Path,
    ema: str = "",
    out: pathlib.Path | None = None,
) -> dict[str, pathlib.Path]:
    """Draw what the flags ask for, to `out` or WORKDIR/samples; returns where it lies.

    `ema` is the average that the pipeline holds, for the folder's name.
    """
    sampling = changed(pipeline.config.sampling)
    stream = pipeline.stream(
        _wanted(pipeline),
        negative_prompt=NEGATIVE.value,
        images_per_prompt=COUNT.value,
        seed=SEED.value,
        height=HEIGHT.value or 0,
        width=WIDTH.value or 0,
        sampling=sampling,
        record=TRAJECTORY.value,
    )
    steps = sampling.grid.stage_steps or (sampling.grid.steps,)
    solver = SOLVER.value or type(sampling.solver).__name__.lower()
    words = (
        f"step{pipeline.step:08d}-{solver}{'-'.join(map(str, steps))}"
        f"-cfg{sampling.guidance.scale:g}-seed{SEED.value}{_variant(ema)}"
    )
    facts = {"seed": SEED.value, "negative_prompt": NEGATIVE.value}
    facts = {name: value for name, value in facts.items() if value != ""}
    about = Described(
        shape=stream.shape,
        digest=stream.draw.digest,
        names=stream.draw.names,
        columns=COUNT.value,
        labels=stream.draw.request.given.get("label"),
        facts={**facts, "draw": stream.draw.facts()},
        stages=STAGES.value,
        trajectory=TRAJECTORY.value,
    )
    folder = out or workdir / "samples" / stream.draw.folder(words)
    return write_samples(folder, stream.recorded, about, progress=True)


def _wanted(pipeline: Pipeline) -> list[str]:
    """The classes or the prompts that the flags name."""
    prompts, path = list(PROMPTS.value or ()), PROMPTS_FILE.value
    if not pipeline.reads_text:
        if prompts or path:
            raise PipelineError(
                "This model draws classes, not prompts: name them by --classes."
            )
        return classes(pipeline) or list(pipeline.class_names)
    if CLASSES.value:
        raise PipelineError(
            "This model draws from prompts and knows no classes: give --prompt or "
            "--prompts_file instead of --classes."
        )
    if path:
        found = read_prompts(path)
        if distributed.is_main():
            print(
                f"   prompts: {len(found.prompts)} in {path}, where {found.blank} "
                f"blank lines and {found.comments} comments were skipped"
            )
        prompts += found.prompts
    if not prompts:
        raise PipelineError(
            'This model draws from prompts: give --prompt="a red apple", as often as '
            "you like, or --prompts_file."
        )
    return prompts


def classes(pipeline: Pipeline) -> list[str]:
    """The classes that --classes names, where names may hold commas themselves.

    The longest name that a run of parts spells wins.
    """
    parts, wanted = list(CLASSES.value or ()), []
    slugs = {slug(name) for name in pipeline.class_names}
    most = 1 + max((name.count(",") for name in pipeline.class_names), default=0)
    while parts:
        longest = min(most, len(parts))
        joined = [", ".join(parts[:end]) for end in range(longest, 0, -1)]
        whole = next((name for name in joined if slug(name) in slugs), parts[0])
        wanted.append(whole)
        del parts[: len(joined) - joined.index(whole)]
    return wanted


def changed(sampling: Sampling) -> Sampling:
    """The checkpoint's or a preset's settings, changed by the flags."""
    choices = Choices(
        preset=PRESET.value,
        solver=SOLVER.value,
        steps=_steps(STEPS.value),
        shift=SHIFT.value,
        guidance=GUIDANCE.value,
        interval=_interval(INTERVAL.value),
        guide=GUIDE.value,
    )
    return choices.apply(sampling)


def _steps(text: list[str] | None) -> int | tuple[int, ...] | None:
    """One number of steps, or one a stage."""
    if not text:
        return None
    try:
        numbers = tuple(int(part) for part in text)
    except ValueError:
        numbers = (0,)
    if values.problems("", numbers, tuple[values.Steps, ...]):
        raise PipelineError(
            f"--sample_steps={','.join(text)} must be a number from 1 to 10,000, or "
            "one a stage such as 10,20,30,30."
        )
    return numbers[0] if len(numbers) == 1 else numbers


def _variant(ema: str) -> str:
    """What the name of a samples folder says of the flags that are rarely given."""
    interval = ",".join(INTERVAL.value or [])
    given = {
        "ema": ema,
        "preset": PRESET.value,
        "guide": GUIDE.value and pathlib.Path(GUIDE.value).stem,
        "interval": interval,
        "shift": SHIFT.value,
        "height": HEIGHT.value,
        "width": WIDTH.value,
    }
    return "".join(f"-{name}{value}" for name, value in given.items() if value)


def _interval(text: list[str] | None) -> tuple[float, float] | None:
    """The two times that --guidance_interval names."""
    if not text:
        return None
    try:
        low, high = map(float, text)
    except ValueError:
        low, high = 0.0, 0.0
    if low >= high or values.problems("", (low, high), tuple[values.Time, ...]):
        raise PipelineError(
            f"--guidance_interval={','.join(text)} must be two times from 0 to 1, the "
            "earlier one first, such as 0.1,1."
        )
    return low, high
