"""Trains a text-to-image model for so many minutes, with all of its data on the device.

python -m benchmarks.train_resident emoji_t2i:styles --minutes=5 --out=runs/t2i \\
    --config.data.source.source.path=/data/styles64

For data that fit into the memory of one device. Every caption goes through the text
encoder once, before the first step, and batches are gathered on the device, so that a
small model does not wait for its loader. Steps, loss and averages are those of
`pixelflow train`; what differs is the order of the data (every batch is drawn with
replacement) and the schedule, a cosine of the time instead of the step. Writes
model.safetensors (bfloat16, the first average), log.jsonl and samples.png to `out`,
every 20 seconds, so that a run that is cut off has left something.
"""

import argparse
import dataclasses
import functools
import json
import math
import pathlib
import time
from typing import NamedTuple

import numpy as np

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import optax  # isort: skip
from jax import Array  # isort: skip

from pixelflow_jax import Pipeline, build, config_overrides  # isort: skip
from pixelflow_jax.conditioning.text import Text  # isort: skip
from pixelflow_jax.config_files import load_config  # isort: skip
from pixelflow_jax.data.images import captioned_grid, save_png  # isort: skip
from pixelflow_jax.data.source import Source, spread_captions  # isort: skip
from pixelflow_jax.data.transforms import center_crop  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.training import step as training  # isort: skip
from pixelflow_jax.training.state import TrainState  # isort: skip

CHUNK = 50  # steps of one program, between two looks at the clock
SAVED = 20  # seconds between two savings
ENCODED = 1024  # captions at once
SHOWN, COLUMNS = 24, 8


class Resident(NamedTuple):
    """A training split on the device.

    `image` uint8 [n, h, w, 3]; `caption` int32 [n, k] numbers the rows of `text`
    bfloat16 [m, length, width] and `mask` bool [m, length]; of a record's k the first
    `count` int32 [n] are its own.
    """

    image: Array
    caption: Array
    count: Array
    text: Array
    mask: Array

    def batch(self, key: Array, size: int) -> dict:
        """Records and one caption of each, drawn with replacement."""
        which, caption = jax.random.split(key)
        chosen = jax.random.randint(which, (size,), 0, len(self.image))
        share = jax.random.uniform(caption, (size,))
        place = jnp.floor(share * self.count[chosen]).astype(jnp.int32)
        row = self.caption[chosen, place]
        return {
            "image": self.image[chosen].astype(jnp.float32) / 127.5 - 1,
            "text": self.text[row],
            "mask": self.mask[row],
        }


def resident(config: Experiment, records: int) -> tuple[Resident, dict]:
    """The first `records` (0: all) of the train split, and the null text."""
    source, size = config.data.open("train"), config.data.image_size
    number = min(len(source), records or len(source))
    image = np.empty((number, size, size, 3), np.uint8)
    captions: list[tuple[str, ...]] = []
    for i in range(number):
        record = source[i]
        image[i] = center_crop(record["image"], size)
        captions.append(record["captions"])
    table, count, texts = rows_of(captions)
    text, mask = encoded(config.conditioner, texts)
    empty = config.conditioner.encoder.empty(config.conditioner.length)
    null, null_mask = states(config.conditioner)(*(a[None] for a in empty))
    arrays = (jnp.asarray(a) for a in (image, table, count))
    return Resident(*arrays, text, mask), {"text": null[0], "mask": null_mask[0]}


def rows_of(
    captions: list[tuple[str, ...]],
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Numbers of captions int32 [n, k], how many count int32 [n], and all texts."""
    texts = list(dict.fromkeys(text for some in captions for text in some))
    numbers = {text: number for number, text in enumerate(texts)}
    count = np.array([len(some) for some in captions], np.int32)
    table = np.zeros((len(captions), count.max()), np.int32)
    for row, some in enumerate(captions):
        table[row, : len(some)] = [numbers[text] for text in some]
    return table, count, texts


def states(conditioner: Text):
    """The encoder as a program: tokens and mask [b, l] -> states bfloat16, mask."""
    frozen_params = jax.device_put(conditioner.load())

    @jax.jit
    def encode(frozen_params: dict, tokens: Array, mask: Array):
        given = {"tokens": tokens, "mask": mask}
        return conditioner.encode(frozen_params, given).text.astype(jnp.bfloat16), mask

    return functools.partial(encode, frozen_params)


def encoded(conditioner: Text, texts: list[str]) -> tuple[Array, Array]:
    """States bfloat16 [m, length, width] and mask bool [m, length] of all texts."""
    read, encode = conditioner.caption_encoder()(texts), states(conditioner)
    padding = -len(texts) % min(ENCODED, len(texts))
    tokens, mask = (np.pad(read[n], ((0, padding), (0, 0))) for n in ("tokens", "mask"))
    mask[len(texts) :, 0] = True  # no row without a token that counts
    parts = len(tokens) // min(ENCODED, len(texts))
    pairs = zip(np.split(tokens, parts), np.split(mask, parts), strict=True)
    done = [encode(*pair)[0] for pair in pairs]
    return jnp.concatenate(done)[: len(texts)], jnp.asarray(mask[: len(texts)])


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

    def __init__(self, config: Experiment, data: Resident, null: dict):
        # Batches hold states: nothing reads a file of that name.
        stored = dataclasses.replace(config.conditioner, features="resident")
        resident_config = dataclasses.replace(config, conditioner=stored)
        constant = dataclasses.replace(config.optimizer, schedule="constant")
        settings = dataclasses.replace(
            build.step_settings(resident_config),
            optimizer=optax.chain(constant.build(2**30), paced()),
            learning_rate=constant.learning_rate(2**30),
        )
        objective = build.objective(resident_config)
        self.config, self._frozen = config, {"text": null}
        self.state = training.fresh_state(objective, settings, config.mesh.build())
        step = training.make_step(objective, settings, False)

        def chunk(state: TrainState, data: Resident, frozen_params: dict):
            def one(state: TrainState, _):
                key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
                batch = data.batch(key, config.batch_size)
                state, metrics = step(state, batch, frozen_params)
                return state, (metrics["loss"], metrics["grad_norm"])

            return jax.lax.scan(one, state, None, length=CHUNK)

        program = jax.jit(chunk, donate_argnums=0)
        self._chunk = program.lower(self.state, data, self._frozen).compile()
        self._data = data

    def train(self, seconds: float, out: pathlib.Path) -> None:
        """Steps until the time is over; writes the log and saves on the way."""
        begin = saved = time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds:
            self.state = with_pace(self.state, cosine(spent / seconds))
            self.state, (loss, norm) = self._chunk(self.state, self._data, self._frozen)
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
        )
        pipeline.save(out / "model.safetensors")
        return pipeline


def draw(pipeline: Pipeline, source: Source, out: pathlib.Path) -> None:
    """Samples of captions spread over the held-out split, or else the train split."""
    prompts = spread_captions(source, SHOWN)
    save_png(out / "samples.png", captioned_grid(pipeline(prompts), prompts, COLUMNS))


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
    add("config", help="file or name of a config of text-to-image, with its variant")
    add("--minutes", type=float, default=5.0, help="of training alone (5)")
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
    data, null = resident(config, args.records)
    facts = {"images": len(data.image), "texts": len(data.text)}
    facts["reading_s"] = round(time.perf_counter() - begin, 1)
    run = Run(config, data, null)
    facts["ready_s"] = round(time.perf_counter() - begin, 1)
    print({**harness.card(), **facts}, flush=True)
    run.train(60 * args.minutes, args.out)
    pipeline = run.save(args.out)
    facts |= {"steps": pipeline.step, "minutes": args.minutes, **harness.card()}
    (args.out / "facts.json").write_text(json.dumps(facts) + "\n")
    print(facts, flush=True)
    draw(pipeline, config.data.held_out(), args.out)
    if args.prompts:
        answer(pipeline, args.prompts, args.out)


if __name__ == "__main__":
    main()
