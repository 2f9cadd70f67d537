"""Parts of local time in one pass, with Numba. kernels/local_time/naive.py is the definition."""

import numpy as np
import numpy.typing as npt
from numba import njit

I64 = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def parts(times: I64, since: I64, offsets: I64, unit: int, shift: int, modulo: int, out: I64) -> None:
    """Fills out [n] from times [n]; since and offsets [c], c > 0. Neighbours that share an offset have it looked up once."""
    place = 0
    for i in range(len(times)):
        t = times[i]
        if t < since[place] or (place + 1 < len(since) and t >= since[place + 1]):
            place = max(np.searchsorted(since, t, side="right") - 1, 0)
        out[i] = ((t + offsets[place]) // unit + shift) % modulo
