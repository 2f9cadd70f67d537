"""Last values in arrays, one pass over a batch in arrival order. kernels/last_values/naive.py is the definition.

Shapes: n events, s slots (entities), v values. Times in microseconds. A slot of -1 is an event without the entity: it reads
nothing and updates nothing.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
NEVER = -(2**62)
READ = np.uint32(1)


@njit(cache=True, nogil=True)
def last(
    slots: npt.NDArray[np.int32],
    times: I64,
    values: F64,
    inputs: I64,
    bits: npt.NDArray[np.uint32],
    condition: int,
    within: int,
    seen_at: I64,
    seen: F64,
    out: F64,
) -> None:
    """Reads, then updates, event by event.

    slots, times, bits: [n]; bit 0 of bits: reads, bit condition + 1: updates; values [.., n], of which those at inputs [v] are
    taken; a NaN does not update.
    State: seen_at (NEVER at first) and seen [s, v]. out [v, number of reads] gets the values, NaN if none, older than `within`,
    or later than the event.
    """
    update = np.uint32(2 << condition)
    row = 0
    for i in range(len(slots)):
        slot = slots[i]
        if bits[i] & READ:
            for k in range(len(inputs)):
                age = times[i] - seen_at[slot, k] if slot >= 0 else np.int64(-1)
                out[k, row] = seen[slot, k] if 0 <= age <= within else np.nan
            row += 1
        if slot < 0 or not bits[i] & update:
            continue
        for k in range(len(inputs)):
            value = values[inputs[k], i]
            if not np.isnan(value) and times[i] >= seen_at[slot, k]:
                seen_at[slot, k] = times[i]
                seen[slot, k] = value
