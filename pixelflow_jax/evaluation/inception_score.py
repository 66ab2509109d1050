"""The Inception Score (Salimans et al. 2016), by the two rules that papers use."""

from typing import NamedTuple

import numpy as np

from pixelflow_jax.errors import EvaluationError

ADM_SPLIT = 5000  # images
JIT_SPLITS, JIT_SEED = 10, 2020


class Score(NamedTuple):
    """Mean and deviation (of a population) over the splits."""

    mean: float
    deviation: float


def adm_inception_score(logits: np.ndarray, split: int = ADM_SPLIT) -> Score:
    """ADM's: consecutive splits in the order of the files; a short last one counts.

    `logits` [n, classes] without the classifier's bias. On images sorted by class each
    split sees few classes, and the score falls several times over.
    """
    return _score(logits, np.arange(len(logits)), range(0, len(logits), split))


def jit_inception_score(logits: np.ndarray, splits: int = JIT_SPLITS) -> Score:
    """JiT's (torch-fidelity's): equal splits of images in a fixed shuffled order."""
    order = np.random.RandomState(JIT_SEED).permutation(len(logits))
    return _score(logits, order, [i * len(logits) // splits for i in range(splits)])


def consecutive_inception_score(logits: np.ndarray, splits: int = JIT_SPLITS) -> Score:
    """JiT's splits of images in the order of the files."""
    starts = [i * len(logits) // splits for i in range(splits)]
    return _score(logits, np.arange(len(logits)), starts)


def _score(logits: np.ndarray, order: np.ndarray, starts) -> Score:
    """exp of the mean divergence from the split's mean prediction, over the splits."""
    if not len(logits):
        raise EvaluationError("An Inception Score needs images; there is none.")
    ends = [*list(starts)[1:], len(logits)]
    scores = []
    for start, end in zip(starts, ends, strict=True):
        if start == end:
            raise EvaluationError(
                f"{len(logits)} images cannot be divided into {len(ends)} splits for "
                "an Inception Score: draw more images."
            )
        scores.append(_split_score(logits[order[start:end]].astype(np.float64)))
    return Score(float(np.mean(scores)), float(np.std(scores)))


def _split_score(logits: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    probabilities = np.exp(logs)
    mean = probabilities.mean(0)
    # A class that no image has by float64 adds nothing: 0 log 0 = 0.
    marginal = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
    return float(np.exp((probabilities * (logs - marginal)).sum(1).mean()))
