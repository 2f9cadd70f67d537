"""Sliding windows as tiles in arrays, one pass over a batch in arrival order. kernels/windows/naive.py is the definition.

Only tiles that hold something are kept: an entity has a run of rows in a pool, in order of time, one for each such tile. A
row's columns are the tile's number, its count, and the FIELDS that the aggregates need; rows of `sketch` go with the pool's. A
run that is full first drops what has expired, then moves to the start of its place, then to a place of twice the size; places
have sizes of powers of two, and those left are given out again.

Shapes: n events, s slots (entities), p rows in the pool, k windows of one value and condition, a aggregates. Times
and tiles in microseconds, spans in tiles. A slot of -1 is an event without the entity: it reads nothing and updates nothing.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.prefetch import prefetch

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
READ = np.uint32(1)

AGGREGATES = ("count", "sum", "mean", "min", "max", "std", "last", "age", "distinct", "rate", "decayed")
COUNT, SUM, MEAN, MIN, MAX, STD, LAST, AGE, DISTINCT, RATE, DECAYED = range(11)
FIELDS = ("total", "low", "high", "squares", "last_at", "last", "decayed")
TOTAL, LOW, HIGH, SQUARES, LAST_AT, LATEST, FADING = range(7)
NEEDS = {
    "sum": (TOTAL,), "mean": (TOTAL,), "min": (LOW,), "max": (HIGH,), "std": (TOTAL, SQUARES),
    "last": (LAST_AT, LATEST), "age": (LAST_AT,), "decayed": (FADING,),
}  # fmt: skip
"""The fields that an aggregate needs beside the count."""

REGISTERS, RANKS = 256, 44
START, FIRST, SIZE, PLACES = range(4)
SMALLEST = 2
TOP = 32
NEXT, READ_ROW, USED_LATE, DROPPED_LATE, WANTED = range(5)
AHEAD = 16


def new_heap() -> I64:
    """The bookkeeping of an empty pool: the first free place of each power of two (-1: none), and the rows given out."""
    heap = np.full(TOP + 1, -1)
    heap[TOP] = 0
    return heap


@njit(cache=True, nogil=True)
def _rank(code: float) -> tuple[int, int]:
    """The register of a code of 52 bits, and the place of the first 1 in the rest of it, from 1 to RANKS + 1."""
    bits = int(code)
    rest = bits >> 8
    rank = 1
    while rank <= RANKS and not rest & 1:
        rest >>= 1
        rank += 1
    return bits & (REGISTERS - 1), rank


@njit(cache=True, nogil=True)
def estimate(registers: U8) -> float:
    """How many different codes filled the registers uint8 [REGISTERS], by Ertl's improved estimator for HyperLogLog."""
    m = float(REGISTERS)
    counts = np.zeros(RANKS + 2)
    for register in registers:
        counts[register] += 1.0
    if counts[0] == m:
        return 0.0
    x = 1.0 - counts[RANKS + 1] / m
    z = 0.0
    if 0.0 < x < 1.0:
        y = 1.0
        z = 1.0 - x
        before = -1.0
        while z != before:
            x = math.sqrt(x)
            before = z
            y *= 0.5
            z -= (1.0 - x) ** 2 * y
        z /= 3.0
    z *= m
    for rank in range(RANKS, 0, -1):
        z = 0.5 * (z + counts[rank])
    x = counts[0] / m
    y, few, before = 1.0, x, -1.0
    while few != before:
        x *= x
        before = few
        few += x * y
        y += y
    return m * m / (2.0 * math.log(2.0)) / (z + m * few)


@njit(cache=True, nogil=True)
def _take(heap: I64, pool: F64, rows: int) -> int:
    """The first row of a free place of `rows` (a power of two) rows; the caller has seen to it that there is one."""
    power = 0
    while 1 << power < rows:
        power += 1
    start = heap[power]
    if start >= 0:
        heap[power] = np.int64(pool[start, 0])
        return start
    start = heap[TOP]
    heap[TOP] += rows
    return start


@njit(cache=True, nogil=True)
def _give(heap: I64, pool: F64, start: int, rows: int) -> None:
    power = 0
    while 1 << power < rows:
        power += 1
    pool[start, 0] = heap[power]
    heap[power] = start


@njit(cache=True, nogil=True)
def _move(pool: F64, sketch: U8, source: int, to: int, rows: int) -> None:
    """Copies rows, to a place before them or to another one."""
    for r in range(rows):
        for c in range(pool.shape[1]):
            pool[to + r, c] = pool[source + r, c]
        for c in range(sketch.shape[1]):
            sketch[to + r, c] = sketch[source + r, c]


@njit(cache=True, nogil=True, inline="always")
def _row(runs: I32, heap: I64, pool: F64, sketch: U8, slot: int, tile: float, widest: int, late: bool) -> int:
    """The row of an entity's tile, made if it is not there and in order; -1 for one that is gone.

    late: whether a tile before the newest one is taken.
    """
    start, first, size, places = runs[slot, START], runs[slot, FIRST], runs[slot, SIZE], runs[slot, PLACES]
    at = first + size
    if size:
        newest = pool[at - 1, 0]
        if newest == tile:
            return at - 1
        if tile < newest:
            if not late or tile <= newest - widest:
                return -1
            while at > first and pool[at - 1, 0] > tile:
                at -= 1
            if at > first and pool[at - 1, 0] == tile:
                return at - 1
        else:
            while size and pool[first, 0] <= tile - widest:
                first += 1
                size -= 1
    if size == 0:
        first = at = start
    if first + size == start + places:
        larger = max(2 * places, SMALLEST)
        moves = 4 * (first - start) < places or places == 0
        to = _take(heap, pool, larger) if moves else start
        _move(pool, sketch, first, to, size)
        if moves:
            if places:
                _give(heap, pool, start, places)
            places = larger
        at += to - first
        start = first = to
    for r in range(first + size, at, -1):
        for c in range(pool.shape[1]):
            pool[r, c] = pool[r - 1, c]
        for c in range(sketch.shape[1]):
            sketch[r, c] = sketch[r - 1, c]
    pool[at, 0] = tile
    for c in range(1, pool.shape[1]):
        pool[at, c] = 0.0
    for c in range(sketch.shape[1]):
        sketch[at, c] = 0
    runs[slot, START], runs[slot, FIRST], runs[slot, SIZE], runs[slot, PLACES] = start, first, size + 1, places
    return at


@njit(cache=True, nogil=True)
def window(
    slots: I32,
    times: I64,
    values: F64,
    codes: F64,
    bits: npt.NDArray[np.uint32],
    condition: int,
    tile: int,
    late: bool,
    spans: I64,
    starts: I64,
    aggregates: I64,
    rows: I64,
    columns: I64,
    fading: F64,
    half_life: float,
    runs: I32,
    heap: I64,
    pool: F64,
    sketch: U8,
    progress: I64,
    out: F64,
) -> None:
    """Reads, then updates, event by event, from progress[NEXT] on until all are done or the pool has no room for the next.

    slots, times, values, codes, bits: [n]; bit 0 of bits: reads, bit condition + 1: updates; a NaN value does not update.
    late: whether an update in a tile before the entity's newest is used while that tile can still be seen, or dropped.
    Window j has spans[j] tiles (ascending), and aggregates[starts[j]:starts[j + 1]], by their place in AGGREGATES, go to these
    rows of out [.., number of reads]. columns int64 [7]: the pool's column of each of FIELDS, -1 where it is not kept.
    fading float64 [spans[-1]]: what is left of 1 after so many tiles, where half_life (in microseconds) is more than 0.
    State: runs int32 [s, 4] (START, FIRST, SIZE, PLACES; zeros at first), heap (`new_heap`), pool float64 [p, 2 + fields],
    sketch uint8 [p, REGISTERS], or [0, 0] where nothing is counted distinct. progress int64 [5]: the next event, the next
    row of out, late updates used and dropped (counted once for each window), and the rows that the pool lacks.
    """
    update = np.uint32(2 << condition)
    n, windows, p = len(slots), len(spans), len(pool)
    widest = spans[windows - 1]
    total, low, high = columns[TOTAL], columns[LOW], columns[HIGH]
    squares, last_at, latest, faded = columns[SQUARES], columns[LAST_AT], columns[LATEST], columns[FADING]
    more = squares >= 0 or last_at >= 0 or faded >= 0 or sketch.shape[1] > 0
    union = np.zeros(sketch.shape[1], np.uint8)
    row = progress[READ_ROW]
    progress[WANTED] = 0
    for i in range(progress[NEXT], n):
        soon, later = slots[min(i + AHEAD, n - 1)], slots[min(i + 2 * AHEAD, n - 1)]
        prefetch(runs, later)
        if soon >= 0:
            prefetch(pool, runs[soon, FIRST])
            prefetch(pool, runs[soon, FIRST] + runs[soon, SIZE])
        slot = slots[i]
        updates = slot >= 0 and bits[i] & update and not np.isnan(values[i])
        if updates and heap[TOP] + max(2 * runs[slot, PLACES], SMALLEST) > p:
            progress[NEXT], progress[READ_ROW] = i, row
            progress[WANTED] = max(2 * runs[slot, PLACES], SMALLEST)
            return
        time = times[i]
        now = time // tile
        if bits[i] & READ:
            first = r = 0
            top = float(now)
            if slot >= 0 and runs[slot, SIZE]:
                first = runs[slot, FIRST]
                r = first + runs[slot, SIZE]
                top = max(top, pool[r - 1, 0])
                while r > first and pool[r - 1, 0] > now:
                    r -= 1
            count, sum_, lo, hi = 0.0, 0.0, np.inf, -np.inf
            spread, seen_at, seen, fade = 0.0, np.nan, np.nan, 0.0
            if len(union):
                union[:] = 0
            for j in range(windows):
                bound = top - spans[j]
                while r > first and pool[r - 1, 0] > bound:
                    r -= 1
                    if more:
                        if squares >= 0:
                            spread += pool[r, squares]
                            if count:
                                apart = pool[r, total] / pool[r, 1] - sum_ / count
                                spread += apart * apart * (count * pool[r, 1] / (count + pool[r, 1]))
                        if last_at >= 0 and count == 0:
                            seen_at = pool[r, last_at]
                            if latest >= 0:
                                seen = pool[r, latest]
                        if faded >= 0:
                            fade += pool[r, faded] * fading[now - np.int64(pool[r, 0])]
                        for c in range(sketch.shape[1]):
                            union[c] = max(union[c], sketch[r, c])
                    count += pool[r, 1]
                    if total >= 0:
                        sum_ += pool[r, total]
                    if low >= 0:
                        lo = min(lo, pool[r, low])
                    if high >= 0:
                        hi = max(hi, pool[r, high])
                for a in range(starts[j], starts[j + 1]):
                    which, to = aggregates[a], rows[a]
                    if which == COUNT:
                        out[to, row] = count
                    elif which == SUM:
                        out[to, row] = sum_
                    elif which == RATE:
                        out[to, row] = count / ((spans[j] - 1) * tile / 1e6)
                    elif which == DISTINCT:
                        out[to, row] = estimate(union) if count else 0.0
                    elif which == DECAYED:
                        out[to, row] = fade * 2.0 ** -((time - now * tile) / half_life)
                    elif count == 0:
                        out[to, row] = np.nan
                    elif which == MEAN:
                        out[to, row] = sum_ / count
                    elif which == MIN:
                        out[to, row] = lo
                    elif which == MAX:
                        out[to, row] = hi
                    elif which == LAST:
                        out[to, row] = seen
                    elif which == AGE:
                        out[to, row] = max(time - seen_at, 0.0) / 1e6
                    else:
                        out[to, row] = math.sqrt(spread / (count - 1)) if count > 1 else np.nan
            row += 1
        if not updates:
            continue
        value = values[i]
        if runs[slot, SIZE]:
            newest = pool[runs[slot, FIRST] + runs[slot, SIZE] - 1, 0]
            if now < newest:
                for j in range(windows):
                    progress[USED_LATE if late and now > newest - spans[j] else DROPPED_LATE] += 1
        at = _row(runs, heap, pool, sketch, slot, float(now), widest, late)
        if at < 0:
            continue
        count = pool[at, 1]
        if low >= 0:
            pool[at, low] = min(pool[at, low], value) if count else value
        if high >= 0:
            pool[at, high] = max(pool[at, high], value) if count else value
        if more:
            if squares >= 0 and count:
                apart = value - pool[at, total] / count
                pool[at, squares] += apart * apart * (count / (count + 1.0))
            if last_at >= 0 and (count == 0 or time >= pool[at, last_at]):
                pool[at, last_at] = time
                if latest >= 0:
                    pool[at, latest] = value
            if faded >= 0:
                pool[at, faded] += value * 2.0 ** ((time - now * tile) / half_life)
            if sketch.shape[1]:
                register, rank = _rank(codes[i])
                sketch[at, register] = max(sketch[at, register], rank)
        if total >= 0:
            pool[at, total] += value
        pool[at, 1] = count + 1.0
    progress[NEXT], progress[READ_ROW] = n, row


@njit(cache=True, nogil=True)
def clear(slots: I32, runs: I32, heap: I64, pool: F64) -> None:
    """Empties slots int32 [m], and gives back their places."""
    for slot in slots:
        if runs[slot, PLACES]:
            _give(heap, pool, runs[slot, START], runs[slot, PLACES])
        runs[slot, :] = 0


@njit(cache=True, nogil=True)
def pack(slots: I64, runs: I32, pool: F64, sketch: U8, packed: F64, packed_sketch: U8) -> None:
    """Copies the rows of slots [m], one after the other, to packed [their SIZE in all, ..]."""
    to = 0
    for slot in slots:
        for r in range(runs[slot, FIRST], runs[slot, FIRST] + runs[slot, SIZE]):
            packed[to] = pool[r]
            if sketch.shape[1]:
                packed_sketch[to] = sketch[r]
            to += 1


@njit(cache=True, nogil=True)
def unpack(slots: I32, sizes: I32, packed: F64, packed_sketch: U8, runs: I32, heap: I64, pool: F64, sketch: U8) -> None:
    """The reverse, into empty slots; where a slot is -1, its rows are passed over. The caller has made room: 2 * sizes.sum()
    rows and SMALLEST for each slot."""
    source = 0
    for i in range(len(slots)):
        first = source
        source += sizes[i]
        if slots[i] < 0 or sizes[i] == 0:
            continue
        places = SMALLEST
        while places < sizes[i]:
            places *= 2
        start = _take(heap, pool, places)
        for r in range(sizes[i]):
            pool[start + r] = packed[first + r]
            if sketch.shape[1]:
                sketch[start + r] = packed_sketch[first + r]
        runs[slots[i], START], runs[slots[i], FIRST] = start, start
        runs[slots[i], SIZE], runs[slots[i], PLACES] = sizes[i], places
