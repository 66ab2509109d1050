"""Whether a text-to-image model of emoji draws what it is told.

python -m benchmarks.text_alignment runs/emoji_t2i \\
    --json benchmarks/results/text_alignment.jsonl

Every drawing of the held-out split is drawn from its captions, and looked for among all
real drawings of that split by the cosine of EfficientNet-Lite0's features: recall at 1
and 5, and the median rank. The same goes for as many drawings of the training split,
and for objects in colours that no training caption gives them ("new combinations",
where the candidates are the objects' real drawings).

`colour` is the share of images whose main colour is the one that the prompt names,
`usual_colour`, where it names another, that of images in the colour of the object's
real drawing. Compare with the same images held against other prompts ("wrong prompts"),
with the model before training, with chance, and with real drawings made coarse.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
from PIL import Image  # isort: skip

from benchmarks import efficientnet, retrieval  # isort: skip
from pixelflow_jax import Pipeline  # isort: skip
from pixelflow_jax.data.colours import COLOURS, main_colour  # isort: skip
from pixelflow_jax.data.emoji import Emoji, EmojiSource  # isort: skip

OBJECTS = ("apple", "car", "house", "heart", "cat face", "dog face", "bird", "fish")
OBJECTS += ("star", "balloon")
COARSE = 32  # pixels of the real drawings that show what the features forgive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
    """Prompts [n], `each` for a group side by side, and what they should give.

    `targets` [n] are places among the real images `candidates`, `colours` [n] the main
    colours that the prompts name, "" for none.
    """

    name: str
    each: int
    prompts: list[str]
    targets: np.ndarray
    colours: np.ndarray
    candidates: np.ndarray

    @property
    def groups(self) -> np.ndarray:
        """The group of each prompt, [n]."""
        return np.arange(len(self.prompts)) // self.each

    def swapped(self) -> "Questions":
        """Each group with the answers of another one, the same at every call."""
        shape = -1, self.each
        order = retrieval.derangement(len(self.prompts) // self.each)
        swap = lambda answers: answers.reshape(shape)[order].ravel()
        changed = {"targets": swap(self.targets), "colours": swap(self.colours)}
        return dataclasses.replace(self, **changed)

    def once(self) -> "Questions":
        """The first prompt of every group alone."""
        return dataclasses.replace(
            self,
            each=1,
            prompts=self.prompts[:: self.each],
            targets=self.targets[:: self.each],
            colours=self.colours[:: self.each],
        )


def of_drawings(
    name: str, source: EmojiSource, chosen: np.ndarray, each: int
) -> Questions:
    """The chosen drawings of a split, each by its captions in turn."""
    prompts, colours = [], []
    for number in chosen:
        drawing = source[number]
        colour, captions = main_colour(drawing["image"]), drawing["captions"]
        taken = [captions[i % len(captions)] for i in range(each)]
        prompts += taken
        colours += [colour if colour in text.split() else "" for text in taken]
    return Questions(
        name=name,
        each=each,
        prompts=prompts,
        targets=np.arange(len(chosen)).repeat(each),
        colours=np.array(colours),
        candidates=source.images[chosen],
    )


def of_combinations(training: EmojiSource, each: int) -> Questions:
    """OBJECTS in every colour in which no training caption names them."""
    places: dict[str, int] = {}
    for number in range(len(training)):
        for caption in training[number]["captions"]:
            places.setdefault(caption, number)
    new = [
        (f"{colour} {name}", target, colour)
        for target, name in enumerate(OBJECTS)
        for colour in COLOURS
        # White cannot be told from the paper.
        if colour != "white" and f"{colour} {name}" not in places
    ]
    prompts, targets, colours = zip(*new, strict=True)
    return Questions(
        name="new combinations",
        each=each,
        prompts=[prompt for prompt in prompts for _ in range(each)],
        targets=np.repeat(targets, each),
        colours=np.repeat(colours, each),
        candidates=training.images[[places[name] for name in OBJECTS]],
    )


def row(questions: Questions, images: np.ndarray, similar: np.ndarray, by: str) -> dict:
    """The row of the table for images that come `similar` near to the candidates."""
    ranks = retrieval.ranks(similar, questions.targets)
    asked = questions.colours
    found = np.array([main_colour(image) for image in images])
    usual = np.array([main_colour(image) for image in questions.candidates])
    usual = usual[questions.targets]
    return {
        "prompts": questions.name,
        "images_by": by,
        "images": len(images),
        **ranked(ranks, similar.shape[1]),
        "recall_1_error": retrieval.standard_error(ranks <= 1, questions.groups),
        "colour": share((found == asked)[asked != ""]),
        "usual_colour": share((found == usual)[(asked != usual) & (asked != "")]),
    }


def ranked(ranks: np.ndarray, candidates: int) -> dict:
    """What a row says of ranks."""
    return {
        "candidates": candidates,
        "recall_1": retrieval.recall(ranks, 1),
        "recall_5": retrieval.recall(ranks, 5),
        "median_rank": float(np.median(ranks)),
    }


def share(hits: np.ndarray) -> float | str:
    """The mean of `hits`, "" without any."""
    return float(hits.mean()) if len(hits) else ""


def by_chance(questions: Questions) -> dict:
    """The row of images that have nothing to do with their prompts."""
    count = len(questions.candidates)
    return {
        "prompts": questions.name,
        "images_by": "chance",
        "candidates": count,
        "recall_1": 1 / count,
        "recall_5": 5 / count,
        "median_rank": (count + 1) / 2,
    }


def by_category(
    questions: Questions,
    similar: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
) -> list[dict]:
    """A row for each category, where `labels` [candidates] are numbers of `names`.

    `recall_1_within` looks among the candidates of the category alone.
    """
    rows = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        mine = labels[questions.targets] == label
        targets, near = questions.targets[mine], similar[mine]
        within = retrieval.ranks(near[:, places], np.searchsorted(places, targets))
        rows.append(
            {
                "prompts": f"{questions.name}: {names[label]}",
                "images_by": "trained",
                "images": int(mine.sum()),
                **ranked(retrieval.ranks(near, targets), len(labels)),
                "recall_1_within": retrieval.recall(within, 1),
                "candidates_within": len(places),
            }
        )
    return rows


def coarse(images: np.ndarray) -> np.ndarray:
    """Images made COARSE pixels wide and large again."""
    size, bicubic = images.shape[2:0:-1], Image.Resampling.BICUBIC
    small = [Image.fromarray(i).resize((COARSE, COARSE), bicubic) for i in images]
    return np.stack([np.asarray(i.resize(size, bicubic)) for i in small])


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
    result.add_argument("--json", type=pathlib.Path, help="append the record here")
    return result.parse_args()


def load(args: argparse.Namespace) -> Pipeline:
    """The model that is measured; ends the process for one of other images."""
    pipeline = Pipeline.from_pretrained(
        args.weights, text_encoder=args.text_encoder, tokenizer=args.tokenizer
    )
    if not pipeline.reads_text or not isinstance(pipeline.config.data.source, Emoji):
        raise SystemExit(f"{args.weights} is no text-to-image model of emoji.")
    return pipeline


def measure(args: argparse.Namespace) -> list[dict]:
    """All rows."""
    pipeline, network = load(args), efficientnet.load_packaged()
    data = pipeline.config.data
    held, training = (data.source.open(s, data.image_size) for s in ("test", "train"))
    params = pipeline.config.network().init(jax.random.key(args.seed))
    untrained = dataclasses.replace(pipeline, params=params)
    every = np.arange(len(held))
    some = np.random.default_rng(args.seed).permutation(len(training))[: len(held)]
    rows, categories = [], []
    for questions in (
        of_drawings("held-out", held, every, args.images),
        of_drawings("training", training, some, args.images),
        of_combinations(training, args.images),
    ):
        drawn = draw(pipeline, questions, args.seed)
        blank = draw(untrained, questions.once(), args.seed)
        found, near = compare(network, questions, drawn, blank)
        rows += found
        if not categories:
            categories = by_category(questions, near, held.labels, held.class_names)
    return [{"step": pipeline.step, **one} for one in rows + categories]


def compare(
    network: dict, questions: Questions, drawn: np.ndarray, blank: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """The rows of some questions, and how near `drawn` come to each candidate.

    `drawn` are the trained model's images of every prompt, `blank` the untrained one's
    of the first prompt of every group.
    """
    real = efficientnet.embed(network, questions.candidates)
    near = lambda images: retrieval.similarity(
        efficientnet.embed(network, images), real
    )
    once, similar = questions.once(), near(drawn)
    shrunk = coarse(once.candidates)[once.targets]
    rows = [
        row(questions, drawn, similar, "trained"),
        row(questions.swapped(), drawn, similar, "trained, wrong prompts"),
        row(once, blank, near(blank), "untrained"),
        by_chance(questions),
        row(once, shrunk, near(shrunk), f"real, at {COARSE} pixels"),
    ]
    return rows, similar


def draw(pipeline: Pipeline, questions: Questions, seed: int) -> np.ndarray:
    """An image of every prompt, uint8 [n, h, w, 3]."""
    print(f"{len(questions.prompts)} images: {questions.name}")
    return pipeline(questions.prompts, seed=seed, progress=True)


def main() -> None:
    """Measure and report."""
    args = arguments()
    harness.report(measure(args), args.json)


if __name__ == "__main__":
    main()
