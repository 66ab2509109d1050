"""The parts of a condition drop apart, and a conditioner says at what rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.drop import (
    CONTENT,
    GROUNDING,
    drop,
    drop_parts,
    exchange,
)
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text, reads_padding
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.models.interface import Condition, Labels, TextSpec

COUNT, CLASSES = 4000, 10
KEYS = jax.random.split(jax.random.key(0), COUNT)


@dataclasses.dataclass(kw_only=True)
class Grounded(Conditioner):
    """Classes, and whether the model may look at what it draws."""

    drop: float = 0.1
    drop_grounding: float = 0.3

    def encode(self, frozen_params, batch):
        labels = batch["label"]
        return Condition(labels=labels, grounding=jnp.ones(labels.shape, bool))

    def null(self, frozen_params, cond, model, batch=None):
        labels = jnp.full_like(cond.labels, model.num_classes)
        return Condition(labels=labels, grounding=jnp.zeros_like(cond.grounding))

    def drop_rates(self):
        return self.drop, self.drop_grounding


@dataclasses.dataclass(kw_only=True)
class Model:
    """What a conditioner asks of a model."""

    condition: Labels | TextSpec
    num_classes: int = 0


CLASS_MODEL = Model(condition=Labels(CLASSES), num_classes=CLASSES)


def dropped(conditioner, keys=KEYS):
    labels = jnp.arange(len(keys)) % CLASSES
    cond = conditioner.encode({}, {"label": labels})
    null = conditioner.null({}, cond, CLASS_MODEL)
    return cond, null, conditioner.dropped(keys, cond, null)


def test_one_part_is_dropped_by_the_images_own_key():
    cond, null, out = dropped(ClassLabels(drop=0.3))
    draw = jax.vmap(jax.random.uniform)(KEYS)
    np.testing.assert_array_equal(out.labels, drop(draw, cond, null, 0.3).labels)
    assert out.grounding is None


def test_two_parts_are_dropped_independently():
    _, _, out = dropped(Grounded())
    no_class, no_grounding = (np.asarray(a) for a in (out.labels == 10, ~out.grounding))
    assert abs(no_class.mean() - 0.1) < 0.02
    assert abs(no_grounding.mean() - 0.3) < 0.03
    assert abs((no_class & no_grounding).mean() - 0.03) < 0.01
    # A part more takes nothing from the first one's draws.
    _, _, alone = dropped(ClassLabels(drop=0.1))
    np.testing.assert_array_equal(out.labels, alone.labels)


def test_an_images_draws_depend_on_its_key_alone():
    _, _, out = dropped(Grounded())
    _, _, some = dropped(Grounded(), KEYS[10:20])
    np.testing.assert_array_equal(some.grounding, out.grounding[10:20])


def test_a_part_without_a_rate_is_kept():
    cond, null, _ = dropped(Grounded())
    out = drop_parts(KEYS, cond, null, (1.0,))
    assert (out.labels == CLASSES).all() and out.grounding.all()


def test_a_null_is_whole_and_its_parts_are_exchanged_apart():
    """Guidance may drop the class and keep, or skip, the grounding."""
    cond, null, _ = dropped(Grounded())
    only_class = exchange(cond, null, CONTENT)
    assert (only_class.labels == CLASSES).all() and only_class.grounding.all()
    only_grounding = exchange(cond, null, GROUNDING)
    np.testing.assert_array_equal(only_grounding.labels, cond.labels)
    assert not only_grounding.grounding.any()


TEXT = Text(
    encoder=T5(geometry=T5Geometry(width=16, hidden=24, depth=1, heads=2)), length=6
)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (TextSpec(16), ""),
        (TextSpec(16, 6, reads_padding=True), ""),
        (TextSpec(8), "text_width=8 must be the width of the encoder's states, 16"),
        (TextSpec(16, 7), "text_length=7 must be conditioner.length=6"),
        (Labels(3), "Model reads no text"),
    ],
)
def test_a_strangers_model_is_taken_by_what_it_says(spec, problem):
    model = Model(condition=spec)
    assert reads_padding(model) == (isinstance(spec, TextSpec) and spec.reads_padding)
    problems = TEXT.problems(model)
    assert len(problems) == bool(problem) and problem in "".join(problems)


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        (CLASS_MODEL, True),
        (Model(condition=Labels(0)), False),
        (Model(condition=TextSpec(16)), False),
    ],
)
def test_class_labels_ask_for_a_model_of_classes(model, fits):
    problems = ClassLabels().problems(model)
    assert fits == (not problems)
    assert fits or "conditioner ClassLabels needs model.num_classes" in problems[0]


def test_labels_of_a_batch_are_checked_and_texts_are_not():
    batch = {"label": np.array([0, 9, 10])}
    (problem,) = ClassLabels().batch_problems(batch, CLASS_MODEL)
    assert "[10] are out of range" in problem and "model.num_classes" in problem
    assert TEXT.batch_problems(batch, Model(condition=TextSpec(16))) == []
