"""Histograms on a GPU. kernels/histogram/naive.py is the definition."""

from typing import Any

import numpy as np

from kernels.gpu import Launch, blocks, checked, launch, sized

BLOCK, ROWS_A_THREAD = 256, 8
SHARED_BYTES = 48 * 1024


def histogram(matrix: Any, edges: Any, counts: Any, launch: Launch = launch) -> None:
    """Adds to counts int64 [F, B+1] the rows of matrix float32 [n, F] by edges float32 [F, B-1], ascending, padded with +inf.

    As the CPU's, on arrays of the device. Raises TypeError for other arrays, and ValueError for other sizes and for
    more bins than fit a block.
    """
    checked("histogram", matrix=(matrix, np.float32, 2), edges=(edges, np.float32, 2), counts=(counts, np.int64, 2))
    rows, features = matrix.shape
    inner = edges.shape[1]
    sized("histogram", edges=(len(edges), features), counts=(len(counts), features), bins=(counts.shape[1], inner + 2))
    together = SHARED_BYTES // (4 * (2 * inner + 2))
    if not together:
        raise ValueError(f"histogram: expected at most {SHARED_BYTES // 8 - 1} bins, got {inner + 1}")
    for first in range(0, features, together):
        some = min(together, features - first)
        grid = blocks(-(-rows * some // ROWS_A_THREAD), BLOCK)
        sizes = (np.int64(rows), *(np.int32(size) for size in (features, inner, first, some)))
        launch("histogram", "histogram", (grid,), BLOCK, 4 * some * (2 * inner + 2), (matrix, edges, counts, *sizes))
