"""Inception Scores of one set in three orders, and which of them is warned about."""

import numpy as np
import pytest

from pixelflow_jax.evaluation.inception_score import (
    adm_inception_score,
    jit_inception_score,
)
from pixelflow_jax.evaluation.order import class_order

IMAGES, CLASSES = 10_000, 200


def in_order(order: str) -> np.ndarray:
    """Places of the images of one set: image i of ours has class i mod CLASSES."""
    if order == "sorted":
        return np.argsort(np.arange(IMAGES) % CLASSES, kind="stable")
    if order == "shuffled":
        return np.random.default_rng(1).permutation(IMAGES)
    return np.arange(IMAGES)


@pytest.fixture(scope="module")
def scores():
    """Scores and the order that is seen, by order: of ADM's rule, and of JiT's."""
    classes = np.arange(IMAGES) % CLASSES
    logits = np.random.default_rng(0).normal(size=(IMAGES, CLASSES)).astype(np.float32)
    # A network that is sure of most images and wrong about some.
    logits[np.arange(IMAGES), classes] += np.where(np.arange(IMAGES) % 7, 9, 1)
    found = {}
    for order in ("interleaved", "shuffled", "sorted"):
        own = logits[in_order(order)]
        found[order] = (
            adm_inception_score(own).mean,
            jit_inception_score(own).mean,
            class_order(classes[in_order(order)]),
            class_order(own.argmax(1)),
        )
    return found


def test_our_order_and_a_shuffled_one_score_the_same(scores):
    ours, shuffled, by_class = (
        scores[o][0] for o in ("interleaved", "shuffled", "sorted")
    )
    assert ours == pytest.approx(shuffled, rel=0.01)
    assert by_class < 0.7 * ours  # two splits of 5,000 see half of the classes each


def test_jits_rule_does_not_depend_on_the_order(scores):
    found = [one[1] for one in scores.values()]
    assert found == pytest.approx([found[0]] * 3, rel=0.01)


def test_only_a_set_sorted_by_class_is_warned_about(scores):
    """By its labels, and by what the network takes the images for."""
    seen = {order: one[2:] for order, one in scores.items()}
    assert seen == {
        "interleaved": ("mixed", "mixed"),
        "shuffled": ("mixed", "mixed"),
        "sorted": ("sorted", "sorted"),
    }
