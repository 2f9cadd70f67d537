"""How good scores are against what came true."""

import numpy as np
import numpy.typing as npt


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The share of pairs of a true and a false row in which the true one has the higher score; ties count half.

    labels: bool [n]; scores: numbers [n] without NaN. NaN where one of the two kinds is missing. By ranks: Mann and Whitney,
    "On a test of whether one of two random variables is stochastically larger than the other", 1947.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.random(1000) < 0.3
    >>> round(auc(labels, labels + rng.normal(size=1000)), 6)
    0.765997
    >>> auc([True, False], [0.5, 0.5])
    0.5
    """
    true, values = np.asarray(labels, np.bool_), np.asarray(scores)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2
    hits = int(true.sum())
    pairs = hits * (len(true) - hits)
    return float((middle[place[true]].sum() - hits * (hits + 1) / 2) / pairs) if pairs else float("nan")


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The mean of -ln p, p being the probability given to what came true, at least 1e-7.

    labels: bool [n]; scores [n] in [0, 1].

    >>> round(log_loss([True, False], [0.9, 0.2]), 6)
    0.164252
    """
    chance = np.where(np.asarray(labels, np.bool_), np.asarray(scores, np.float64), 1 - np.asarray(scores, np.float64))
    return float(-np.log(np.clip(chance, 1e-7, 1)).mean())
