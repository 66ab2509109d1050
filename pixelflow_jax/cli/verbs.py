"""The verbs that work on a run: which flags each takes, and its help.

A flag is defined in the module of its verb, or in `shared`; here stands which verb
takes it, and under which heading its help shows it.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterator

from absl import flags

WIDTH = 88  # columns of the help
HANGING = 26  # columns before what a flag is for
ALL = ("",)  # every field of the config
# What a checkpoint's config leaves open: how to compute, and how to draw.
OPEN = ("sampling", "precision", "kernels", "mesh")
# The files of frozen encoders, of texts and of noisy images.
ENCODER = ("conditioner.encoder.weights", "conditioner.encoder.tokenizer")
ENCODER += ("model.encoder.weights",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb: what it does, how it is called, and what it takes.

    `groups` are headings with the names of flags under them. All flags of `modules`
    belong to it as well; those that no group names come last. `fields` are the parts of
    the config that --config.FIELD=VALUE may set, and `words` says what it takes besides
    flags.
    """

    summary: str
    usage: str
    examples: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    modules: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    words: str = ""

    def headed(self) -> Iterator[tuple[str, list[str]]]:
        """Its headings, each with its flags."""
        listed = {name for group in self.groups.values() for name in group}
        by_module = flags.FLAGS.flags_by_module_dict()
        own = [f.name for module in self.modules for f in by_module.get(module, ())]
        for title, names in self.groups.items():
            yield title, list(names)
        if others := [name for name in own if name not in listed]:
            yield "Besides", others

    def flags(self) -> list[str]:
        """The names of all its flags."""
        return [name for _, names in self.headed() for name in names]


WEIGHTS = ("workdir", "weights", "ema")
ENCODERS = ("text_encoder", "tokenizer")
TOGETHER = {
    "Several processes": (
        *("coordinator", "num_processes", "process_id", "heartbeat_timeout"),
    )
}
VERBS = {
    "train": Verb(
        summary="Train: go on from the run's newest checkpoint, or begin.",
        usage="--config=CONFIG --workdir=RUN [--config.FIELD=VALUE ...]",
        groups={
            "What to train": ("config",),
            "Where": ("workdir", "cache_dir"),
            "How": ("extend", "profile", "yes"),
            **TOGETHER,
        },
        fields=ALL,
        examples=(
            "pixelflow train --config=emoji:demo --workdir=runs/demo",
            "pixelflow train --config=emoji:demo --workdir=runs/longer "
            "--config.steps=6000 --config.optimizer.lr=2e-4",
            "pixelflow train --config=runs/demo/config.json --workdir=runs/demo "
            "--config.steps=4000 --extend=restart",
        ),
    ),
    "sample": Verb(
        summary="Draw images from a run's newest checkpoint, or from other weights.",
        usage="--workdir=RUN [--classes=... | --prompt=...]",
        groups={
            "Which weights": (*WEIGHTS, *ENCODERS),
            "What to draw": (
                *("classes", "prompt", "prompts_file", "negative_prompt"),
                *("count", "sample_seed", "height", "width"),
            ),
            "How": (
                *("preset", "solver", "sample_steps", "guidance", "guidance_interval"),
                *("guide", "shift", "yes"),
            ),
            "Where, and what besides images": (
                "out",
                "cache_dir",
                "trajectory",
                "stages",
            ),
            **TOGETHER,
        },
        modules=("pixelflow_jax.cli.sample",),
        fields=(*OPEN, *ENCODER),
        examples=(
            "pixelflow sample --workdir=runs/demo --classes=flags,food-drink --count=8 "
            "--guidance=2 --trajectory",
            "pixelflow sample --weights=emoji --out=drawn --classes=flags,food-drink "
            "--solver=heun --sample_steps=30",
            'pixelflow sample --workdir=runs/text --prompt="a red apple" '
            '--prompt="a cat, asleep" --height=96 --width=64',
        ),
    ),
    "evaluate": Verb(
        summary="Measure a model: the loss on held-out images, or --metrics of images.",
        usage="--workdir=RUN [--metrics=fid,sfid,is,pr --reference=NPZ ...]",
        groups={
            "Which weights": (*WEIGHTS, *ENCODERS),
            "What to measure": (
                *("metrics", "num_samples", "allow_n", "images", "reference"),
                *("inception", "dinov2", "lite0", "features"),
            ),
            "How images are drawn": (
                *("prompts_file", "negative_prompt", "sample_seed", "height", "width"),
                *("preset", "solver", "sample_steps", "guidance", "guidance_interval"),
                *("guide", "shift", "png"),
            ),
            "Many settings": ("sweep",),
            "Text suites": ("suite", "prompts", "prompt_seeds", "count"),
            "Besides": ("compare", "out", "cache_dir"),
            **TOGETHER,
        },
        modules=("pixelflow_jax.cli.evaluate", "pixelflow_jax.cli.sweep"),
        fields=(*OPEN, *ENCODER, "data", "batch_size"),
        examples=(
            "pixelflow evaluate --workdir=runs/demo",
            "pixelflow evaluate --workdir=runs/imagenet --metrics=fid,sfid,is,pr "
            "--reference=VIRTUAL_imagenet256_labeled.npz --inception=inception.pth",
            "pixelflow evaluate reference reference.npz --images=real_images",
            "pixelflow evaluate --images=samples.npz --metrics=fid --features=lite0 "
            "--reference=reference.npz --num_samples=5000 --allow_n",
            "pixelflow evaluate --workdir=runs/imagenet --sweep=ema,scale "
            "--reference=VIRTUAL_imagenet256_labeled.npz --inception=inception.pth",
            "pixelflow evaluate --compare=ours.json,theirs.json",
            "pixelflow evaluate --workdir=runs/text --suite=geneval "
            "--prompts=evaluation_metadata.jsonl --out=geneval",
        ),
    ),
    "doctor": Verb(
        summary="Check devices, kernels, data and five steps: a page for a bug report.",
        usage="[--config=CONFIG]",
        groups={
            "What to check": ("config", "only"),
            "Where a checkpoint is tried": ("workdir",),
            **TOGETHER,
        },
        modules=("pixelflow_jax.cli.doctor",),
        fields=ALL,
        examples=(
            "pixelflow doctor --config=runs/demo/config.json",
            "pixelflow doctor --config=pixnerd:xl16_256 --config.batch_size=32",
            "pixelflow doctor --only=devices,kernels,collectives",
            "pixelflow doctor --workdir=runs/doctor --coordinator=node1:12345 "
            "--num_processes=2 --process_id=0",
        ),
    ),
    "config": Verb(
        summary="Show a config and what a run of it takes; list, show: those we have.",
        usage="--config=CONFIG [--device=KIND] [--devices=N]",
        groups={"What to plan": ("config",), "On what": ("device", "devices")},
        modules=("pixelflow_jax.cli.plan",),
        fields=ALL,
        examples=(
            "pixelflow config --config=pixnerd:xl16_256 --device=H200 --devices=8",
            "pixelflow config --config=emoji:demo --config.batch_size=64",
            "pixelflow config list",
            "pixelflow config show pixnerd:xl16_256",
        ),
    ),
    "export": Verb(
        summary="Write a folder to publish from a run: weights, config, model card.",
        usage="--workdir=RUN --out=FOLDER",
        groups={
            "Which weights": (*WEIGHTS, *ENCODERS),
            "What the card shows": ("samples", "classes", "prompt"),
            "Where": ("out", "dtype", "cache_dir"),
        },
        modules=("pixelflow_jax.cli.export",),
        fields=(*OPEN, *ENCODER),
        examples=(
            "pixelflow export --workdir=runs/demo --out=published",
            "pixelflow export --workdir=runs/demo --out=published --ema=0.995 "
            "--samples --classes=flags,food-drink",
            "pixelflow export --workdir=runs/demo --out=half --dtype=bfloat16",
        ),
    ),
}
OTHERS = {
    "prepare": "Write a data set as shards, look at it, or encode its captions.",
    "convert": "Make official weights ours, and ours official.",
    "demo": "Serve a page on which anybody can draw, step by step.",
    "quickstart": "Train a tiny model and draw from it: the first minutes.",
    "verify": "Are a run's checkpoints what was written? Compare their digests.",
    "reproduce": "Do official weights give their paper's figures? Draw and measure.",
}


def owners(flag: str) -> list[str]:
    """The verbs that take a flag."""
    return [name for name, verb in VERBS.items() if flag in verb.flags()]


def overview() -> str:
    """What `pixelflow --help` says."""
    summaries = {name: verb.summary for name, verb in VERBS.items()} | OTHERS
    width = max(map(len, summaries)) + 2
    lines = [f"  {name:<{width}}{text}" for name, text in summaries.items()]
    return "\n".join(
        [
            "usage: pixelflow VERB [--FLAG=VALUE ...]",
            "",
            *lines,
            "",
            "`pixelflow VERB --help` lists the flags of a verb, with examples;",
            "`pixelflow --version` says which version this is. `python -m",
            "pixelflow_jax VERB` and `python -m pixelflow_jax.main --mode=VERB` are",
            "the same.",
        ]
    )


def help_of(name: str) -> str:
    """What `pixelflow NAME --help` says."""
    verb = VERBS[name]
    blocks = [f"usage: pixelflow {name} {verb.usage}\n\n{verb.summary}"]
    for title, names in verb.headed():
        lines = [line for flag in names for line in _described(flags.FLAGS[flag])]
        blocks.append("\n".join([f"{title}:", *lines]))
    blocks.append(_fields(verb))
    examples = [_wrapped_command(example) for example in verb.examples]
    blocks.append("\n".join(["Examples:", *examples]))
    return "\n\n".join(blocks)


def _fields(verb: Verb) -> str:
    """What --config.FIELD=VALUE may set, in words."""
    text = "sets any field of the config: `pixelflow config show NAME` lists them."
    if verb.fields != ALL:
        text = (
            f"sets a field of {', '.join(verb.fields)}: all else is as the weights "
            "were trained."
        )
    return "\n".join(["Fields of the config:", *_hanging("--config.FIELD=VALUE", text)])


def _described(flag: flags.Flag) -> list[str]:
    """A flag and what it is for, in lines."""
    text = re.sub(r"^<.*?>: ", "", flag.help or "").split(";\n")[0]  # absl's own words
    if flag.boolean:
        return _hanging(f"--{flag.name}", text)
    if isinstance(flag.parser, flags.EnumParser):
        text += f" One of {', '.join(flag.parser.enum_values)}."
    if flag.default is not None and flag.default not in ("", []):
        text += f" Default: {flag.default}."
    return _hanging(f"--{flag.name}={_kind(flag)}", text)


def _kind(flag: flags.Flag) -> str:
    """What stands behind a flag's equals sign."""
    if isinstance(flag.parser, flags.IntegerParser | flags.FloatParser):
        return "NUMBER"
    return "A,B,..." if isinstance(flag.parser, flags.ListParser) else "VALUE"


def _hanging(head: str, text: str) -> list[str]:
    body = textwrap.wrap(text, WIDTH - HANGING) or [""]
    if len(head) + 4 > HANGING:
        return [f"  {head}", *(" " * HANGING + line for line in body)]
    first, *rest = body
    lines = [f"  {head:<{HANGING - 2}}{first}"]
    return [*lines, *(" " * HANGING + line for line in rest)]


def _wrapped_command(text: str) -> str:
    """A command in lines that a shell reads as one."""
    lines = [""]
    for part in re.split(r" (?=--)", text):
        if len(lines[-1]) + len(part) > WIDTH - 8:
            lines.append("")
        lines[-1] += f" {part}" if lines[-1] else part
    return " \\\n".join(
        f"  {'    ' if i else ''}{line}" for i, line in enumerate(lines)
    )
