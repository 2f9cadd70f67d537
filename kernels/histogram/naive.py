"""Histograms by NumPy's own searchsorted: the definition."""

import numpy as np
import numpy.typing as npt


def histogram(matrix: npt.NDArray[np.float32], edges: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> None:
    """Adds to counts [F, B+1], in place, the rows of matrix [n, F] by edges [F, B-1], ascending and padded with +inf.

    A value v falls in bin b where edges[b-1] < v <= edges[b] (searchsorted from the left): with edges padded, +inf falls
    in the last bin that is in use. NaN is counted in the last column.
    """
    bins = edges.shape[1] + 1
    for feature in range(matrix.shape[1]):
        values = matrix[:, feature]
        at = np.searchsorted(edges[feature], values, side="left")
        at[np.isnan(values)] = bins
        counts[feature] += np.bincount(at, minlength=bins + 1)
