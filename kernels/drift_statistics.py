"""How far a window's histograms are from the reference's, one statistic per function.

Counts are [..., B+1]: B bins, then the missing values. The leading axes (windows, features) broadcast.
"""

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
PRIOR = 0.5


def psi(reference: I64, window: I64) -> F64:
    """Population stability index: the sum over bins of (p - q) ln(p / q), missing values left out. [...], >= 0.

    The symmetric divergence J of Jeffreys ("An invariant form for the prior probability in estimation problems", Proc.
    Royal Soc. A 186, 1946), named so in credit scoring (Siddiqi, "Credit Risk Scorecards", 2006). p and q are
    (count + 1/2) / (total + bins / 2), the mean under Jeffreys' prior, so that an empty bin of a small window is no
    infinity; a bin empty in both is none. 0 where either side has only missing values.

    >>> random = np.random.default_rng(7)
    >>> reference, window = random.multinomial(10_000, [0.2] * 5), random.multinomial(300, [0.1, 0.2, 0.2, 0.2, 0.3])
    >>> round(float(psi(np.append(reference, 0), np.append(window, 0))), 6)
    0.064103
    """
    q, p = np.broadcast_arrays(reference[..., :-1].astype(np.float64), window[..., :-1].astype(np.float64))
    used = (p + q) > 0
    bins = used.sum(-1, keepdims=True)
    seen = (p.sum(-1) > 0) & (q.sum(-1) > 0)
    p = np.where(used, (p + PRIOR) / np.maximum(p.sum(-1, keepdims=True) + PRIOR * bins, 1), 1.0)
    q = np.where(used, (q + PRIOR) / np.maximum(q.sum(-1, keepdims=True) + PRIOR * bins, 1), 1.0)
    return np.where(seen, ((p - q) * np.log(p / q)).sum(-1), 0.0)


def kolmogorov_smirnov(reference: I64, window: I64) -> F64:
    """The largest distance between the two distribution functions, at the bins' edges, missing values left out. [0, 1].

    Smirnov, "Table for estimating the goodness of fit of empirical distributions" (Annals of Math. Statistics 19, 1948).
    On bins it is at most the statistic of the raw values. For categories it depends on their order (here by falling
    frequency). 0 where either side has only missing values.

    >>> random = np.random.default_rng(7)
    >>> reference, window = random.multinomial(10_000, [0.2] * 5), random.multinomial(300, [0.1, 0.2, 0.2, 0.2, 0.3])
    >>> round(float(kolmogorov_smirnov(np.append(reference, 0), np.append(window, 0))), 6)
    0.086267
    """
    q, p = reference[..., :-1].astype(np.float64), window[..., :-1].astype(np.float64)
    rows_q, rows_p = q.sum(-1, keepdims=True), p.sum(-1, keepdims=True)
    gap = np.abs(np.cumsum(p, -1) / np.maximum(rows_p, 1) - np.cumsum(q, -1) / np.maximum(rows_q, 1)).max(-1)
    return np.where((rows_p[..., 0] > 0) & (rows_q[..., 0] > 0), gap, 0.0)


def missing_difference(reference: I64, window: I64) -> F64:
    """The distance between the two shares of missing values. [0, 1]; an empty side has a share of 0.

    The total variation distance between two Bernoulli distributions, |a - b| (Levin, Peres, Wilmer, "Markov Chains and
    Mixing Times", 2009, ch. 4).

    >>> random = np.random.default_rng(7)
    >>> reference, window = random.multinomial(10_000, [0.98, 0.02]), random.multinomial(300, [0.9, 0.1])
    >>> round(float(missing_difference(reference, window)), 6)
    0.093033
    """
    share_q = reference[..., -1] / np.maximum(reference.sum(-1), 1)
    share_p = window[..., -1] / np.maximum(window.sum(-1), 1)
    return np.abs(share_p - share_q)
