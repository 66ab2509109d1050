"""What is asked of a text-to-image model, and how the answers are counted."""

import dataclasses
import runpy

import numpy as np
import pytest

from benchmarks import ask
from pixelflow_jax.data.emoji.colours import main_colour
from pixelflow_jax.data.emoji.source import EASY, Emoji
from pixelflow_jax.resources import folder

PAPER, RED, BLUE = (255, 255, 255), (220, 30, 30), (40, 60, 220)


def square(colour) -> np.ndarray:
    image = np.full((16, 16, 3), PAPER, np.uint8)
    image[3:13, 3:13] = colour
    return image


def questions() -> ask.Questions:
    """Two images each of a red thing and of a blue one, and of another red one."""
    return ask.Questions(
        name="squares",
        each=2,
        prompts=["red a", "a", "blue b", "b", "red c", "c"],
        targets=np.arange(3).repeat(2),
        colours=np.array(["red", "", "blue", "", "red", ""]),
        candidates=np.stack([square(RED), square(BLUE), square(RED)]),
    )


@pytest.fixture(scope="module")
def training():
    fruit = Emoji(
        categories=("Food & Drink", "Smileys & Emotion", "Animals & Nature")
        + ("Travel & Places", "Activities"),
        captions="rich",
    )
    return fruit.open("train", 64)


def test_wrong_prompts_are_those_of_another_group():
    given, wrong = questions(), questions().swapped()
    assert (wrong.targets != given.targets).all()
    assert sorted(wrong.targets) == sorted(given.targets)
    own = dict(zip(given.targets[::2], given.colours[::2], strict=True))
    assert [own[target] for target in wrong.targets[::2]] == wrong.colours[::2].tolist()


def test_one_prompt_of_each_group():
    once = questions().once()
    assert once.prompts == ["red a", "blue b", "red c"]
    assert once.targets.tolist() == once.groups.tolist() == [0, 1, 2]


def test_a_row_counts_the_colours_that_were_asked_for():
    images = np.stack([square(c) for c in (RED, BLUE, RED, BLUE, RED, RED)])
    similar = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    found = ask.row(questions(), images, similar, "hand")
    assert found["recall_1"] == pytest.approx(5 / 6)
    assert found["with_colour"] == 3
    assert found["colour"] == pytest.approx(2 / 3)  # red a, not blue b, red c
    assert found["usual_colour"] == ""  # each was asked for in its own colour


def test_the_usual_colour_counts_where_another_was_asked_for():
    given = questions().once()
    other = np.array(["blue", "blue", "blue"])
    asked = dataclasses.replace(given, colours=other)
    images = np.stack([square(c) for c in (RED, RED, BLUE)])
    found = ask.row(asked, images, np.eye(3), "hand")
    assert found["usual_colour"] == pytest.approx(1 / 2)
    assert found["colour"] == pytest.approx(1 / 3)


def test_categories_are_searched_alone_as_well():
    similar = np.array([[0.5, 0.9, 0.1], [0.9, 0.5, 0.1], [0.9, 0.1, 0.5]])
    rows = ask.by_category(
        questions().once(), similar, np.array([4, 0, 4]), ("one", *"---", "two")
    )
    assert [row["prompts"] for row in rows] == ["squares: one", "squares: two"]
    assert [row["recall_1"] for row in rows] == [0, 0]
    # The first one's rival is of the other category, the third one's of its own.
    assert [row["recall_1_within"] for row in rows] == [1, 0.5]
    assert [row["candidates_within"] for row in rows] == [1, 2]


def test_new_combinations_are_new(training):
    asked = ask.of_combinations(training, 2)
    known = {c for i in range(len(training)) for c in training[i]["captions"]}
    assert not known & set(asked.prompts)
    assert "blue apple" in asked.prompts and "red apple" not in asked.prompts
    assert len(set(asked.prompts)) * 2 == len(asked.prompts)
    for prompt, target, colour in zip(
        asked.prompts, asked.targets, asked.colours, strict=True
    ):
        assert prompt == f"{colour} {ask.OBJECTS[target]}"
    apple = ask.OBJECTS.index("apple")
    assert main_colour(asked.candidates[apple]) == "red"


def test_combinations_that_another_style_shows_are_counted_apart(training):
    asked = ask.of_combinations(training, 2)
    red = np.stack([square(RED)] * len(asked.prompts))
    similar = np.ones((len(asked.prompts), len(asked.candidates)))
    part, wrong = ask.in_no_style(asked, red, similar)
    assert part["prompts"] == wrong["prompts"] == "new combinations, in no style"
    assert part["images"] == len(asked.prompts) - 2 * len(ask.IN_OTHER_STYLES)
    new = {text for text in asked.prompts if text not in ask.IN_OTHER_STYLES}
    share = sum(text.startswith("red ") for text in new) / len(new)
    assert part["colour"] == pytest.approx(share)


def test_models_of_few_things_are_asked_for_those():
    few = Emoji(
        categories=("Smileys & Emotion", "Food & Drink"),
        subcategories=EASY,
        captions="rich",
    )
    asked = ask.of_combinations(few.open("train", 16), 1)
    assert {p.split(" ", 1)[1] for p in asked.prompts} == set(ask.FEW)
    # What the text configs never show in another colour is what is asked for.
    kept = runpy.run_path(str(folder("configs") / "emoji_t2i.py"))["KEPT"]
    assert set(ask.OBJECTS) | set(ask.FEW) == set(kept)


def test_drawings_are_asked_for_by_their_captions_in_turn(training):
    chosen = np.array([5, 2])
    asked = ask.of_drawings("some", training, chosen, 3)
    for place, number in enumerate(chosen):
        captions = training[number]["captions"]
        mine = asked.prompts[3 * place : 3 * place + 3]
        assert mine == [captions[i % len(captions)] for i in range(3)]
        assert (asked.candidates[place] == training.images[number]).all()
    for prompt, colour, target in zip(
        asked.prompts, asked.colours, asked.targets, strict=True
    ):
        assert colour in ("", main_colour(asked.candidates[target]))
        assert not colour or colour in prompt.split()
