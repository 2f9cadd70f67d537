"""Rows of tables on a GPU. kernels/gather/naive.py is the definition."""

from typing import Any

import numpy as np

from kernels.gpu import Launch, address, blocks, checked, launch, sized

BLOCK = 256


def gather(matrix: Any, first: int, tables: Any, starts: Any, out: Any, launch: Launch = launch) -> None:
    """Fills out float32 [n, T, D] with rows of tables float32 [R, D], by the codes of matrix float32 [n, K] from column `first`
    on; starts int64 [T + 1].

    As the CPU's, on arrays of the device. What `starts` says is trusted. Raises TypeError for other arrays, and ValueError for
    other sizes.
    """
    checked("gather", matrix=(matrix, np.float32, 2), tables=(tables, np.float32, 2))
    checked("gather", starts=(starts, np.int64, 1), out=(out, np.float32, 3))
    n, count, width = out.shape
    columns = matrix.shape[1]
    sized("gather", matrix=(len(matrix), n), tables=(tables.shape[1], width), starts=(len(starts), count + 1))
    if first < 0 or first + count > columns:
        raise ValueError(f"gather: first: expected {count} columns of {columns} from it on, got {first}")
    fours = width % 4 == 0 and not (address(tables) | address(out)) % 16
    name, unit = ("gather4", 4) if fours else ("gather", 1)
    sizes = (np.int64(n), *(np.int32(size) for size in (columns, first, count, width // unit)))
    grid = blocks(n * count * width // unit, BLOCK)
    launch("gather", name, (grid,), BLOCK, 0, (matrix, tables, starts, out, *sizes))
