"""Whether a text-to-image model of emoji draws what it is told.

python -m benchmarks.text_alignment runs/emoji_t2i \\
    --json benchmarks/results/text_alignment.jsonl

Every drawing of the held-out split is drawn from its captions, and looked for among all
real drawings of that split by the cosine of EfficientNet-Lite0's features: recall at 1
and 5, and the median rank. The same goes for as many drawings of the training split,
and for objects in colours that no training caption gives them ("new combinations",
where the candidates are the objects' real drawings; "in no style": without those that
captions of other styles of emoji have).

`colour` is the share of images whose main colour is the one that the prompt names,
`usual_colour`, where it names another, that of images in the colour of the object's
real drawing. Compare with the same images held against other prompts ("wrong prompts"),
with the model before training, with chance, and with real drawings made coarse.

A model of another data set is asked for OpenMoji's drawings, too. Where another machine
draws, `--write_prompts` writes what it is to draw, and `--drawn` reads what it drew
(`benchmarks.train_resident --prompts`).
"""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip

from benchmarks import ask, retrieval  # isort: skip
from pixelflow_jax import build

from pixelflow_jax import Pipeline  # isort: skip
from pixelflow_jax.data.emoji.source import DRAWN, Emoji, EmojiSource  # isort: skip
from pixelflow_jax.data.emoji.recoloured import Recoloured  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.evaluation.extractors import open_extractor  # isort: skip
from pixelflow_jax.evaluation.features import FEATURES, Extractor  # isort: skip


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that name a model."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("weights", help="published folder, .safetensors file, workdir or Hub name")
    add("--seed", type=int, default=0, help="seed of images and choices (0)")
    add("--text_encoder", default="", help="weights, if not those of the config")
    add("--tokenizer", default="", help="its folder, if not that of the config")
    return result


def arguments() -> argparse.Namespace:
    """The command line."""
    result = parser(__doc__)
    result.add_argument("--images", type=int, default=4, help="a drawing or prompt (4)")
    add = result.add_argument
    add("--json", type=pathlib.Path, help="append the record here")
    add("--write_prompts", type=pathlib.Path, help="write the prompts as JSON, and end")
    add("--drawn", type=pathlib.Path, help=".npz of the images drawn for them")
    return result.parse_args()


def load(args: argparse.Namespace) -> Pipeline:
    """The model that is measured; ends the process for one of other images."""
    pipeline = Pipeline.from_pretrained(
        args.weights, text_encoder=args.text_encoder, tokenizer=args.tokenizer
    )
    if not pipeline.reads_text:
        raise SystemExit(f"{args.weights} is no text-to-image model.")
    return pipeline


def drawings(config: Experiment) -> Emoji:
    """The drawings that a model is asked for: its own, or else OpenMoji's."""
    own = config.data.source
    own = own.source if isinstance(own, Recoloured) else own
    return own if isinstance(own, Emoji) else Emoji(categories=DRAWN, captions="rich")


def questions_of(
    held: EmojiSource, training: EmojiSource, images: int, seed: int
) -> list[ask.Questions]:
    """All that a model is asked, `images` times a drawing or prompt."""
    every = np.arange(len(held))
    some = np.random.default_rng(seed).permutation(len(training))[: len(held)]
    return [
        ask.of_drawings("held-out", held, every, images),
        ask.of_drawings("training", training, some, images),
        ask.of_combinations(training, images),
    ]


def measure(args: argparse.Namespace) -> list[dict]:
    """All rows; none where the prompts are written instead."""
    pipeline = load(args)
    config, size = pipeline.config, pipeline.config.data.image_size
    held, training = (drawings(config).open(s, size) for s in ("test", "train"))
    asked = questions_of(held, training, args.images, args.seed)
    if args.write_prompts:
        prompts = {questions.name: questions.prompts for questions in asked}
        args.write_prompts.write_text(json.dumps(prompts) + "\n")
        return []
    network = open_extractor("lite0", batch=32)
    params = build.network(config).init(jax.random.key(args.seed))
    untrained = dataclasses.replace(pipeline, params=params)
    given = dict(np.load(args.drawn)) if args.drawn else {}
    rows, categories = [], []
    for questions in asked:
        drawn = given.get(questions.name)
        if drawn is None:
            drawn = draw(pipeline, questions, args.seed)
        blank = draw(untrained, questions.once(), args.seed)
        found, near = compare(network, questions, drawn, blank)
        rows += found
        if not categories:
            categories = ask.by_category(questions, near, held.labels, held.class_names)
        if questions is asked[-1]:
            rows += ask.in_no_style(questions, drawn, near)
    return [{"step": pipeline.step, **one} for one in rows + categories]


def compare(
    network: Extractor, questions: ask.Questions, drawn: np.ndarray, blank: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """The rows of some questions, and how near `drawn` come to each candidate.

    `drawn` are the trained model's images of every prompt, `blank` the untrained one's
    of the first prompt of every group.
    """
    seen = lambda images: network.extract(images)[FEATURES]
    real = seen(questions.candidates)
    near = lambda images: retrieval.similarity(seen(images), real)
    once, similar = questions.once(), near(drawn)
    shrunk = ask.coarse(once.candidates)[once.targets]
    rows = [
        ask.row(questions, drawn, similar, "trained"),
        ask.row(questions.swapped(), drawn, similar, "trained, wrong prompts"),
        ask.row(once, blank, near(blank), "untrained"),
        ask.by_chance(questions),
        ask.row(once, shrunk, near(shrunk), f"real, at {ask.COARSE} pixels"),
    ]
    return rows, similar


def draw(pipeline: Pipeline, questions: ask.Questions, seed: int) -> np.ndarray:
    """An image of every prompt, uint8 [n, h, w, 3]."""
    print(f"{len(questions.prompts)} images: {questions.name}")
    return pipeline(questions.prompts, seed=seed, progress=True)


def main() -> None:
    """Measure and report."""
    args = arguments()
    harness.report(measure(args), args.json)


if __name__ == "__main__":
    main()
