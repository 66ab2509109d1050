"""Trains a model for so many minutes, with all of its data on the device.

python -m benchmarks.train_resident emoji:styles --minutes=5 --out=runs/styles \\
    --config.data.source.path=/data/styles64
python -m benchmarks.train_resident emoji_t2i:styles --minutes=5 --out=runs/t2i \\
    --config.data.source.source.path=/data/styles64

Of classes or of text, for data that fit into the memory of one device (see
`benchmarks.resident`). Steps, loss and averages are those of `pixelflow train`; what
differs is the order of the data (every batch is drawn with replacement) and the
schedule, a cosine of the time instead of the step. Writes model.safetensors (bfloat16,
the first average) and log.jsonl to `out`, every 20 seconds, so that a run that is cut
off has left something, and at the end facts.json and samples.png: classes in rows, or
captions of the held-out split.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import time

import numpy as np

from benchmarks import harness  # first: it sets the compiler's flags

from benchmarks import resident  # isort: skip
import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import optax  # isort: skip

from pixelflow_jax import Pipeline, build, config_overrides  # isort: skip
from pixelflow_jax.config_files import load_config  # isort: skip
from pixelflow_jax.data.images import captioned_grid, grid, save_png  # isort: skip
from pixelflow_jax.data.source import Source, spread_captions  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.training import step as training  # isort: skip
from pixelflow_jax.training.state import TrainState  # isort: skip

CHUNK = 50  # steps of one program, between two looks at the clock
SAVED = 20  # seconds between two savings
SHOWN, COLUMNS, CLASSES = 24, 8, 9


def paced() -> optax.GradientTransformation:
    """Multiplies updates by its state, which the clock sets from outside."""
    return optax.GradientTransformation(
        lambda params: jnp.ones(()),
        lambda updates, pace, params=None: (
            jax.tree.map(lambda u: u * pace.astype(u.dtype), updates),
            pace,
        ),
    )


def with_pace(state: TrainState, pace: float) -> TrainState:
    """The state whose next steps are so long."""
    opt_state = (*state.opt_state[:-1], jnp.float32(pace))
    return dataclasses.replace(state, opt_state=opt_state)


def cosine(share: float) -> float:
    """From 1 at the beginning (0) to 0 at the end (1)."""
    return 0.5 + 0.5 * math.cos(math.pi * min(max(share, 0.0), 1.0))


class Run:
    """A run of a config: `train` for some seconds, `save` whenever it is asked to."""

    def __init__(self, config: Experiment, own: resident.Resident):
        constant = dataclasses.replace(config.optimizer, schedule="constant")
        settings = dataclasses.replace(
            build.step_settings(own.config),
            optimizer=optax.chain(constant.build(2**30), paced()),
            learning_rate=constant.learning_rate(2**30),
        )
        objective = build.objective(own.config)
        frozen_params = objective.terms.load() | own.frozen_params
        self.config, self._constants = config, own.constants
        self.state = training.fresh_state(
            objective, settings, config.mesh.build(), own.constants
        )
        step = training.make_step(objective, settings, False)

        def chunk(state: TrainState, data, frozen_params: dict):
            def one(state: TrainState, _):
                key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
                batch = data.batch(key, config.batch_size)
                state, metrics = step(state, batch, frozen_params)
                return state, (metrics["loss"], metrics["grad_norm"])

            return jax.lax.scan(one, state, None, length=CHUNK)

        program = jax.jit(chunk, donate_argnums=0)
        self._fixed = own.data, jax.device_put(frozen_params)
        self._chunk = program.lower(self.state, *self._fixed).compile()

    def train(self, seconds: float, out: pathlib.Path) -> None:
        """Steps until the time is over; writes the log and saves on the way."""
        begin = saved = time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds:
            self.state = with_pace(self.state, cosine(spent / seconds))
            self.state, (loss, norm) = self._chunk(self.state, *self._fixed)
            means = [float(np.mean(jax.device_get(a))) for a in (loss, norm)]
            spent = time.perf_counter() - begin
            line = {"step": int(self.state.step), "seconds": round(spent, 2)}
            line |= dict(zip(("loss", "grad_norm"), means, strict=True))
            with (out / "log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if not math.isfinite(means[0]):
                raise SystemExit(f"The loss is not finite: {line}")
            if time.perf_counter() - saved > SAVED:
                saved = time.perf_counter()
                self.save(out)
                print(line, flush=True)

    def save(self, out: pathlib.Path) -> Pipeline:
        """Writes the first average as a file that draws by itself."""
        step, source = int(self.state.step), self.config.data.open("train")
        pipeline = Pipeline(
            config=dataclasses.replace(self.config, steps=step),
            params=jax.device_get(next(iter(self.state.ema.values()))),
            class_names=source.class_names,
            step=step,
            constants=self._constants,
        )
        pipeline.save(out / "model.safetensors")
        return pipeline


def draw(pipeline: Pipeline, source: Source, out: pathlib.Path) -> None:
    """Samples of some classes, or of captions spread over the source."""
    if pipeline.reads_text:
        prompts = spread_captions(source, SHOWN)
        image = captioned_grid(pipeline(prompts), prompts, COLUMNS)
    else:
        names = pipeline.class_names
        rows = min(len(names), CLASSES)
        classes = np.linspace(0, len(names) - 1, rows).round().astype(int)
        drawn = pipeline(classes.repeat(COLUMNS).tolist())
        image = grid(drawn, COLUMNS, [names[number] for number in classes])
    save_png(out / "samples.png", image)


def answer(pipeline: Pipeline, prompts: pathlib.Path, out: pathlib.Path) -> None:
    """Draws lists of prompts, {name: prompts} in JSON, into answers.npz."""
    asked = json.loads(prompts.read_text())
    drawn = {name: pipeline(texts, seed=0) for name, texts in asked.items()}
    np.savez_compressed(out / "answers.npz", **drawn)


def main() -> None:
    """Trains and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="file or name of a config, with its variant")
    clock = parser.add_mutually_exclusive_group().add_argument
    clock("--minutes", type=float, default=5.0, help="of training alone (5)")
    clock("--within", type=float, help="minutes with reading and compiling")
    add("--out", type=pathlib.Path, required=True, help="folder of what it writes")
    add("--records", type=int, default=0, help="the first so many images (0: all)")
    add("--prompts", type=pathlib.Path, help="JSON of prompts to draw afterwards")
    args, rest = parser.parse_known_args()
    changes, unknown = config_overrides.split(rest)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    config = load_config(args.config, changes)
    own = resident.read(config, args.records)
    facts = {**own.facts, "reading_s": round(time.perf_counter() - begin, 1)}
    run = Run(config, own)
    facts["ready_s"] = round(time.perf_counter() - begin, 1)
    print({**harness.card(), **facts}, flush=True)
    seconds = 60 * args.minutes
    if args.within:
        seconds = max(1.0, 60 * args.within - facts["ready_s"])
    run.train(seconds, args.out)
    pipeline = run.save(args.out)
    facts |= {
        "steps": pipeline.step,
        "minutes": round(seconds / 60, 2),
        **harness.card(),
    }
    (args.out / "facts.json").write_text(json.dumps(facts) + "\n")
    print(facts, flush=True)
    draw(pipeline, config.data.held_out(), args.out)
    if args.prompts:
        answer(pipeline, args.prompts, args.out)


if __name__ == "__main__":
    main()
