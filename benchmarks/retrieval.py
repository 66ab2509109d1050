"""How well images find what they were asked to be: ranks, recall, wrong pairs."""

import numpy as np


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A random permutation of `count` things in one cycle, which none keeps its place.

    int [count]. ValueError for fewer than two things. Source: Sattolo 1986.
    """
    if count < 2:
        raise ValueError(f"{count} thing cannot be anywhere else: give two or more.")
    draw, order = np.random.default_rng(seed), np.arange(count)
    for last in range(count - 1, 0, -1):
        other = draw.integers(last)
        order[[last, other]] = order[[other, last]]
    return order


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each of `one` [n, d] with each of `other` [m, d], [n, m].

    ValueError for what is not finite or has no direction.
    """
    units = []
    for vectors in (one, other):
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ValueError("Features must be finite and not all zero.")
        units.append(vectors / lengths)
    return units[0] @ units[1].T


def ranks(similar: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of each image's target among all candidates, 1 being the nearest.

    `similar` is [n, candidates], `targets` int [n]. Among candidates that are equally
    near the target takes the place in the middle, so that no measure that tells nothing
    apart does better than chance.
    """
    own = np.take_along_axis(similar, targets[:, None], 1)
    ties = (similar == own).sum(1) - 1
    return 1 + (similar > own).sum(1) + ties / 2


def recall(placed: np.ndarray, within: int) -> float:
    """The share of targets among the `within` nearest."""
    return float(np.mean(placed <= within))


def standard_error(hits: np.ndarray, groups: np.ndarray) -> float | str:
    """That of the mean of `hits` [n], whose groups [n], equally large, are independent.

    Images of the same drawing fail together, so drawings are what is counted. Fewer
    than two give "".
    """
    means = [hits[groups == group].mean() for group in np.unique(groups)]
    if len(means) < 2:
        return ""
    return float(np.std(means, ddof=1) / np.sqrt(len(means)))
