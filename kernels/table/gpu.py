"""Look-ups in a table on a GPU. kernels/table/naive.py is the definition, kernels/table/cpu.py makes the table."""

from typing import Any

import numpy as np

from kernels.gpu import Launch, blocks, checked, launch, sized

BLOCK = 256


def find(keys: Any, slots: Any, hashes: Any, out: Any, launch: Launch = launch) -> None:
    """Fills out int32 [n] with the slot of each hash uint64 [n], -1 where absent or 0. Raises TypeError for other arrays,
    and ValueError for other sizes.
    """
    checked("find", keys=(keys, np.uint64, 1), slots=(slots, np.int32, 1))
    checked("find", hashes=(hashes, np.uint64, 1), out=(out, np.int32, 1))
    n, capacity = len(out), len(keys)
    sized("find", hashes=(len(hashes), n), slots=(len(slots), capacity))
    if capacity < 1 or capacity & (capacity - 1):
        raise ValueError(f"find: keys: expected a power of two of them, got {capacity}")
    launch("table", "find", (blocks(n, BLOCK),), BLOCK, 0, (keys, slots, np.int64(capacity), hashes, out, np.int64(n)))
