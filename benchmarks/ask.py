"""What a text-to-image model of emoji is asked, and the rows that its answers make."""

import dataclasses
import itertools

import numpy as np
from PIL import Image

from benchmarks import retrieval
from pixelflow_jax.data.emoji.colours import COLOURS, main_colour
from pixelflow_jax.data.emoji.source import EmojiSource

OBJECTS = ("apple", "car", "house", "heart", "cat face", "dog face", "bird", "fish")
OBJECTS += ("star", "balloon")
# For models of faces, hearts, flags and fruit alone: none has copies in other colours.
FEW = ("apple", "heart", "banana", "strawberry", "carrot", "grinning", "cry")
# What pictures of other styles than OpenMoji's show, by their captions.
IN_OTHER_STYLES = ("orange apple", "orange house", "grey heart", "yellow cat face")
IN_OTHER_STYLES += ("red bird", "blue bird", "pink bird", "grey bird", "orange star")
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
        first = np.arange(len(self.prompts)) % self.each == 0
        return dataclasses.replace(self.part(self.name, first), each=1)

    def part(self, name: str, chosen: np.ndarray) -> "Questions":
        """The `chosen` prompts alone, bool [n], whole groups but for `once`."""
        return dataclasses.replace(
            self,
            name=name,
            prompts=list(itertools.compress(self.prompts, chosen)),
            targets=self.targets[chosen],
            colours=self.colours[chosen],
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
    """OBJECTS in every colour in which no training caption names them.

    FEW instead where training does not have all of them.
    """
    places: dict[str, int] = {}
    for number in range(len(training)):
        for caption in training[number]["captions"]:
            places.setdefault(caption, number)
    objects = OBJECTS if all(name in places for name in OBJECTS) else FEW
    new = [
        (f"{colour} {name}", target, colour)
        for target, name in enumerate(objects)
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
        candidates=training.images[[places[name] for name in objects]],
    )


def row(questions: Questions, images: np.ndarray, similar: np.ndarray, by: str) -> dict:
    """The row of the table for images that come `similar` near to the candidates."""
    ranks = retrieval.ranks(similar, questions.targets)
    asked = questions.colours
    found = np.array([main_colour(image) for image in images])
    usual = np.array([main_colour(image) for image in questions.candidates])
    usual, named = usual[questions.targets], asked != ""
    error = retrieval.standard_error
    return {
        "prompts": questions.name,
        "images_by": by,
        "images": len(images),
        **ranked(ranks, similar.shape[1]),
        "recall_1_error": error(ranks <= 1, questions.groups),
        "recall_5_error": error(ranks <= 5, questions.groups),
        "with_colour": int(named.sum()),
        "colour": share((found == asked)[named]),
        "colour_error": error((found == asked)[named], questions.groups[named]),
        "usual_colour": share((found == usual)[(asked != usual) & named]),
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


def in_no_style(
    questions: Questions, images: np.ndarray, similar: np.ndarray
) -> list[dict]:
    """Rows of the combinations that no style's captions have, nor OpenMoji's."""
    new = ~np.isin(questions.prompts, IN_OTHER_STYLES)
    part = questions.part(f"{questions.name}, in no style", new)
    return [
        row(part, images[new], similar[new], "trained"),
        row(part.swapped(), images[new], similar[new], "trained, wrong prompts"),
    ]


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
