"""Arrays that grow by rows without being copied, where the system can do that: the stream would stand still meanwhile."""

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
HUGE_PAGE = 1 << 21


class Growing:
    """An array [rows, *shape]; new rows are zero.

    From HUGE_PAGE bytes on it is memory of its own, which moves without being copied (mremap), in whole huge pages: a row
    anywhere in it is then found without a walk through the page tables. With a length of any other number of bytes the system
    begins it anywhere, and cuts its huge pages into small ones when it moves.
    """

    def __init__(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> None:
        self._shape, self._kind = shape, np.dtype(kind)
        self._row_bytes = int(np.prod(shape)) * self._kind.itemsize
        self._memory: mmap.mmap | None = None
        self.array: npt.NDArray[Any] = np.zeros((0, *shape), kind)

    def __len__(self) -> int:
        return len(self.array)

    def grow(self, rows: int) -> None:
        """Makes room for so many rows, or half as many again as there are. `array` is another one then."""
        before = len(self.array)
        if before >= rows or self._row_bytes == 0:
            return
        size = max(before * 3 // 2, rows) * self._row_bytes
        if size < HUGE_PAGE:
            grown = np.zeros((size // self._row_bytes, *self._shape), self._kind)
            grown[:before] = self.array
            self.array = grown
            return
        size = -(-size // HUGE_PAGE) * HUGE_PAGE
        if self._memory is not None and self._moved(size):
            memory = self._memory
        else:
            memory = mmap.mmap(-1, size, **PRIVATE)
            if HUGE is not None:
                memory.madvise(HUGE)
            memory[: before * self._row_bytes] = self.array.tobytes()
        self._memory = memory
        items = size // self._row_bytes * self._row_bytes // self._kind.itemsize
        self.array = np.frombuffer(memory, self._kind, items).reshape(-1, *self._shape)

    def _moved(self, size: int) -> bool:
        """Whether the memory could be made larger; it cannot while somebody looks at it, nor by every system."""
        assert self._memory is not None
        array, self.array = self.array, np.zeros((0, *self._shape), self._kind)
        shape, kind = array.shape, array.dtype
        del array
        try:
            self._memory.resize(size)
        except (BufferError, SystemError):
            self.array = np.frombuffer(self._memory, kind, int(np.prod(shape))).reshape(shape)
            return False
        return True
