"""Windows and last values in arrays, one pass over a batch in arrival order. kernels/windows/naive.py is the definition.

Shapes: n events, s slots (entities), w tiles in a ring per slot, v values. Times and tiles in one unit (microseconds).
A slot of -1 is an event without the entity: it reads nothing and updates nothing.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
NEVER = -(2**62)
READ = np.uint32(1)
AGGREGATES = ("count", "sum", "mean", "min", "max")
COUNT, SUM, MEAN, MIN, MAX = range(5)


@njit(cache=True, nogil=True)
def window(
    slots: npt.NDArray[np.int32],
    times: I64,
    values: F64,
    bits: npt.NDArray[np.uint32],
    condition: int,
    tile: int,
    newest: I64,
    ids: I64,
    count: I64,
    total: F64,
    low: F64,
    high: F64,
    aggregates: npt.NDArray[np.int8],
    out: F64,
) -> int:
    """Reads, then updates, event by event; returns the number of late updates, which are dropped.

    slots, times, values, bits: [n]; bit 0 of bits: reads, bit condition + 1: updates; a NaN value does not update. State:
    newest [s] (NEVER at first), ids [s, w] (NEVER at first), count, total, low, high [s, w]. out [a, number of reads] gets the
    aggregates int8 [a], by their place in AGGREGATES; mean, min and max of nothing are NaN.
    """
    update = np.uint32(2 << condition)
    w = ids.shape[1]
    late = 0
    row = 0
    for i in range(len(slots)):
        slot = slots[i]
        now = times[i] // tile
        if bits[i] & READ:
            n, s, lo, hi = 0, 0.0, np.inf, -np.inf
            if slot >= 0:
                first = max(now - w + 1, newest[slot] - w + 1)
                for t in range(first, min(now, newest[slot]) + 1):
                    at = t % w
                    if ids[slot, at] == t:
                        n += count[slot, at]
                        s += total[slot, at]
                        lo = min(lo, low[slot, at])
                        hi = max(hi, high[slot, at])
            for a in range(len(aggregates)):
                which = aggregates[a]
                if which == COUNT:
                    out[a, row] = n
                elif which == SUM:
                    out[a, row] = s
                elif n == 0:
                    out[a, row] = np.nan
                elif which == MEAN:
                    out[a, row] = s / n
                else:
                    out[a, row] = lo if which == MIN else hi
            row += 1
        value = values[i]
        if slot < 0 or not bits[i] & update or np.isnan(value):
            continue
        if now <= newest[slot] - w:
            late += 1
            continue
        newest[slot] = max(newest[slot], now)
        at = now % w
        if ids[slot, at] != now:
            ids[slot, at] = now
            count[slot, at] = 0
            total[slot, at] = 0.0
            low[slot, at] = np.inf
            high[slot, at] = -np.inf
        count[slot, at] += 1
        total[slot, at] += value
        low[slot, at] = min(low[slot, at], value)
        high[slot, at] = max(high[slot, at], value)
    return late


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

    slots, times, bits: [n] as in `window`; values [.., n], of which those at inputs [v] are taken; a NaN does not update.
    State: seen_at (NEVER at first) and seen [s, v]. out [v, number of reads] gets the values, NaN if none, older than `within`, or later than the event.
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
