"""In which order the classes of a set come: metrics of splits depend on it."""

from typing import Literal

import numpy as np

Order = Literal["sorted", "mixed", "unknown"]
FEWEST = 32  # images below which an order says nothing
EXCESS = 0.25  # share of neighbours that are alike by more than chance, when sorted


def class_order(classes: np.ndarray | None) -> Order:
    """Whether images [n] of these classes come class after class.

    `classes` are labels, or what a network takes the images for; in a sorted set two
    neighbours are of one class far more often than two images at random.
    """
    if classes is None or len(classes) < FEWEST:
        return "unknown"
    classes = np.asarray(classes).ravel()
    shares = np.unique(classes, return_counts=True)[1] / len(classes)
    chance = float((shares**2).sum())
    if chance == 1:  # of one class
        return "mixed"
    alike = float((classes[1:] == classes[:-1]).mean())
    return "sorted" if (alike - chance) / (1 - chance) > EXCESS else "mixed"
