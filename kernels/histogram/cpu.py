"""Histograms in one pass over the rows. kernels/histogram/naive.py is the definition."""

import numpy as np
import numpy.typing as npt
from numba import njit

BLOCK = 256


@njit(cache=True, nogil=True)
def histogram(matrix: npt.NDArray[np.float32], edges: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> None:
    """Adds to counts [F, B+1], in place, the rows of matrix [n, F] by edges [F, B-1], ascending and padded with +inf.

    A value v falls in bin b where edges[b-1] < v <= edges[b] (searchsorted from the left): with edges padded, +inf falls
    in the last bin that is in use. NaN is counted in the last column. Every edge is compared with a block of values at once,
    without a branch: for the few tens of bins that it is made for, many times as fast as a search.
    """
    rows, features = matrix.shape
    inner = edges.shape[1]
    values, at = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        for feature in range(features):
            for i in range(n):
                values[i] = matrix[start + i, feature]
                at[i] = 0
            k = 0
            while k + 4 <= inner and edges[feature, k] < np.inf:
                a, b, c, d = edges[feature, k], edges[feature, k + 1], edges[feature, k + 2], edges[feature, k + 3]
                for i in range(n):
                    v = values[i]
                    at[i] += np.int32(a < v) + np.int32(b < v) + np.int32(c < v) + np.int32(d < v)
                k += 4
            while k < inner and edges[feature, k] < np.inf:
                a = edges[feature, k]
                for i in range(n):
                    at[i] += np.int32(a < values[i])
                k += 1
            for i in range(n):
                counts[feature, inner + 1 if np.isnan(values[i]) else at[i]] += 1
