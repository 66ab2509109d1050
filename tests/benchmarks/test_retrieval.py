"""Ranks, recall and wrong pairs against counts made by hand."""

import numpy as np
import pytest

from benchmarks import retrieval

SIMILAR = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.2, 0.7, 0.4]])


def test_ranks_count_what_is_nearer():
    found = retrieval.ranks(SIMILAR, np.array([0, 2, 2]))
    assert found.tolist() == [1, 3, 2]


def test_a_measure_that_tells_nothing_apart_is_as_good_as_chance():
    found = retrieval.ranks(np.zeros((4, 5)), np.arange(4))
    assert found.tolist() == [3] * 4
    assert retrieval.recall(found, 1) == 0


def test_twins_share_the_places_between_them():
    found = retrieval.ranks(np.array([[0.3, 0.8, 0.8]]), np.array([1]))
    assert found.tolist() == [1.5]


def test_recall_counts_the_last_place_in():
    ranks = np.array([1.0, 1.5, 5.0, 6.0])
    assert [retrieval.recall(ranks, n) for n in (1, 5, 6)] == [0.25, 0.75, 1]


def test_similarity_is_the_cosine():
    found = retrieval.similarity(np.array([[2.0, 0]]), np.array([[3.0, 3], [0, -1]]))
    assert found == pytest.approx(np.array([[0.5**0.5, 0]]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_features_without_a_direction_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        retrieval.similarity(np.ones((1, 2)), np.full((1, 2), bad))


@pytest.mark.parametrize("count", [2, 3, 7, 88])
def test_a_derangement_moves_everything(count):
    order = retrieval.derangement(count)
    assert sorted(order) == list(range(count))
    assert (order != np.arange(count)).all()
    assert (order == retrieval.derangement(count)).all()
    if count > 3:
        assert (order != retrieval.derangement(count, seed=1)).any()


def test_one_thing_cannot_be_deranged():
    with pytest.raises(ValueError, match="two or more"):
        retrieval.derangement(1)


def test_images_of_one_drawing_are_not_independent():
    hits, groups = np.array([1, 1, 0, 0, 1, 1, 0, 0]), np.arange(8) // 2
    spread = np.std([1, 0, 1, 0], ddof=1) / 2
    assert retrieval.standard_error(hits, groups) == pytest.approx(spread)
    alone = retrieval.standard_error(hits, np.arange(8))
    assert alone < spread
