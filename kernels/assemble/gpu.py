"""What a network takes, on a GPU. kernels/assemble/naive.py is the definition, kernels/assemble/cpu.py has plans."""

from typing import Any

import numpy as np

from kernels.assemble.cpu import VALUES
from kernels.gpu import Launch, blocks, checked, launch, sized

BLOCK = 256


def assemble(
    matrix: Any, hashes: Any, kinds: Any, sources: Any, places: Any, values: Any, out: Any, launch: Launch = launch
) -> None:
    """Fills out float32 [n, P] from matrix float32 [n, K] and hashes uint64 [H, n] by a plan: kinds, sources and places int32
    [P], values float32 [P, 6].

    As the CPU's, on arrays of the device; what the plan says is trusted. Raises TypeError for other arrays, and ValueError for
    other sizes.
    """
    checked("assemble", matrix=(matrix, np.float32, 2), hashes=(hashes, np.uint64, 2), out=(out, np.float32, 2))
    checked("assemble", kinds=(kinds, np.int32, 1), sources=(sources, np.int32, 1), places=(places, np.int32, 1))
    checked("assemble", values=(values, np.float32, 2))
    n, columns = out.shape
    sized("assemble", matrix=(len(matrix), n), hashes=(hashes.shape[1], n), kinds=(len(kinds), columns))
    sized("assemble", sources=(len(sources), columns), places=(len(places), columns), values=(len(values), columns))
    sized("assemble", width=(values.shape[1], VALUES))
    sizes = np.int64(n), np.int32(matrix.shape[1]), np.int32(columns)
    arrays = matrix, hashes, kinds, sources, places, values, out
    launch("assemble", "assemble", (blocks(n * columns, BLOCK),), BLOCK, 0, (*arrays, *sizes))
