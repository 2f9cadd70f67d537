"""Rows of tables, one after another: the definition."""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def gather(matrix: F32, first: int, tables: F32, starts: npt.NDArray[np.int64], out: F32) -> None:
    """Fills out float32 [n, T, D]: out[i, t] is the row of table t that has the code matrix[i, first + t], cut to an integer.

    matrix float32 [n, K]. tables float32 [R, D], of which rows starts[t] to starts[t + 1] are table t, 1 to 2**24 of them;
    starts int64 [T + 1]. A code that is NaN, negative or not below the table's rows takes row 0 of its table, the unknown.
    """
    for i in range(len(out)):
        for t in range(out.shape[1]):
            code, start, end = matrix[i, first + t], int(starts[t]), int(starts[t + 1])
            out[i, t] = tables[start + int(code) if 0 <= code < end - start else start]
