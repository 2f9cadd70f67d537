"""Rows of tables, for one row of codes after another. kernels/gather/naive.py is the definition."""

import numpy as np
import numpy.typing as npt
from numba import njit

F32 = npt.NDArray[np.float32]
U = np.uint64


@njit(cache=True, nogil=True)
def gather(matrix: F32, first: int, tables: F32, starts: npt.NDArray[np.int64], out: F32) -> None:
    """Fills out float32 [n, T, D]: out[i, t] is the row of table t that has the code matrix[i, first + t], cut to an integer.

    matrix float32 [n, K]. tables float32 [R, D], of which rows starts[t] to starts[t + 1] are table t, one or more of them;
    starts int64 [T + 1]. A code that is NaN, negative or not below the table's rows takes row 0 of its table, the unknown.
    """
    n, count, width = out.shape
    for i in range(n):
        for t in range(count):
            code, start = matrix[i, U(first + t)], starts[t]
            row = U(start + (np.int64(code) if 0 <= code < starts[t + 1] - start else 0))
            for d in range(width):
                out[i, t, d] = tables[row, d]
