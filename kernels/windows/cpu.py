"""Sliding windows as tiles in arrays, one pass over a batch in arrival order. kernels/windows/naive.py is the definition.

Only tiles that hold something are kept: an entity has a block of the pool with a row for each such tile. The pool is words of 8
bytes in lines of LINE; a block is a power of two of lines: a word that says its power (+ 1), how many rows it holds and where
the newest stands, and then rows, in order of time around the ring that they are. A row is the tile's number and its count in
one word, the FIELDS that the aggregates need, and the registers, where something is counted distinct. Rows that have left the
longest window go when a newer tile comes; a block that is full still moves to one of twice the size, and those left are given
out again. A count that is full (FULL) goes on in another row of the same tile.

Shapes: n events, s slots (entities), k windows of one value and condition, a aggregates. Times and tiles in microseconds, spans
in tiles; a tile's number is within 2**44 of 0. A slot of -1 is an event without the entity: it reads nothing and updates
nothing. The pool comes as three views of the same memory: `pool` float64 and `whole` int64 [words], `sketch` uint8 [bytes].
Line 0 is no entity's and all zeros: the block of those that have none.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.prefetch import prefetch

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
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
LINE = 8
TOP = 32
FEWEST = 3
COUNTED = 19
FULL = 2**COUNTED - 1
SIZED, POWERED = 24, 48
PART = 2**SIZED - 1
NEXT, READ_ROW, USED_LATE, DROPPED_LATE, WANTED = range(5)
AHEAD = 16
U = np.uint64
"""An index that cannot be negative is cast to this: a quarter of the kernel's time is looking whether it is."""


def new_heap() -> I64:
    """The bookkeeping of a pool of line 0 alone: the first free block of each power of two (0: none), the lines given out."""
    heap = np.zeros(TOP + 1, np.int64)
    heap[TOP] = 1
    return heap


def width(fields: int, distinct: bool) -> int:
    """The words of a row."""
    return 1 + fields + (REGISTERS // 8 if distinct else 0)


def more(fields: Sequence[int], distinct: bool) -> bool | None:
    """What `window` is told of these fields."""
    return True if distinct or set(fields) - {TOTAL, LOW, HIGH} else None


def lines(sizes: I32, places: I64) -> int:
    """How many lines the blocks of so many rows each take."""
    return int((1 << np.searchsorted(places, sizes[sizes > 0]) >> 1).sum())


def places(words: int) -> I64:
    """How many rows of so many words a block has, by its power + 1; none below the smallest, which has room for FEWEST."""
    found = np.array([0, *(((LINE << power) - 1) // words for power in range(TOP))])
    found[found < FEWEST] = 0
    return found


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
def _take(heap: I64, whole: I64, power: int) -> int:
    """The first line of a free block of a power of two of lines; the caller has seen to it that there is one."""
    start = heap[power]
    if start:
        heap[power] = whole[start * LINE]
        return start
    start = heap[TOP]
    heap[TOP] += 1 << power
    return start


@njit(cache=True, nogil=True)
def _give(heap: I64, whole: I64, start: int, power: int) -> None:
    whole[start * LINE] = heap[power]
    heap[power] = start


@njit(cache=True, nogil=True)
def _smallest(rows: I64, wanted: int) -> int:
    """The power + 1 of the smallest block with room for so many rows."""
    key = 1
    while rows[key] < wanted:
        key += 1
    return key


@njit(cache=True, nogil=True)
def _larger(slot: int, words: int, rows: I64, starts: I32, heap: I64, whole: I64, lines: int) -> int:
    """Moves an entity whose block is full to a larger one, the oldest row first; returns the lines that the pool lacks."""
    start = np.int64(starts[slot])
    header = whole[start * LINE]
    key, size, newest = header >> POWERED, header >> SIZED & PART, header & PART
    larger = _smallest(rows, size + 1)
    if not heap[larger - 1] and heap[TOP] + (1 << (larger - 1)) > lines:
        return 1 << (larger - 1)
    to = _take(heap, whole, larger - 1)
    for r in range(size):
        at = newest + 1 + r - size
        source = start * LINE + 1 + (at if at >= 0 else at + rows[key]) * words
        for c in range(words):
            whole[to * LINE + 1 + r * words + c] = whole[source + c]
    if key:
        _give(heap, whole, start, key - 1)
    whole[to * LINE] = larger << POWERED | size << SIZED | max(size - 1, 0)
    starts[slot] = to
    return 0


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
    bounds: I64,
    aggregates: I64,
    rows: I64,
    columns: I64,
    fading: F64,
    half_life: float,
    words: int,
    places: I64,
    starts: I32,
    heap: I64,
    pool: F64,
    whole: I64,
    sketch: U8,
    progress: I64,
    out: F64,
    more: bool | None,
) -> None:
    """Reads, then updates, event by event, from progress[NEXT] on until all are done or the pool has no room for the next.

    slots, times, values, codes, bits: [n]; bit 0 of bits: reads, bit condition + 1: updates; a NaN value does not update.
    late: whether an update in a tile before the entity's newest is used while that tile can still be seen, or dropped.
    Window j has spans[j] tiles (ascending), and aggregates[bounds[j]:bounds[j + 1]], by their place in AGGREGATES, go to these
    rows of out [.., number of reads]. columns int64 [7]: the word of a row of each of FIELDS, -1 where it is not kept.
    fading float64 [spans[-1]]: what is left of 1 after so many tiles, where half_life (in microseconds) is more than 0.
    words: of a row (`width`); places: `places` of it.
    State: starts int32 [s], the line where a slot's block begins (0: it has none), heap (`new_heap`), and the pool, of any
    contents but for line 0. progress int64 [5]: the next event, the next row of out, late updates used and dropped (counted
    once for each window), and the lines that the pool lacks. more: None where the aggregates need no other fields than total,
    low and high and nothing is counted distinct: that is compiled for itself.
    """
    update = np.uint32(2 << condition)
    n, windows, lines = len(slots), len(spans), len(pool) // LINE
    widest = spans[windows - 1]
    total, low, high = columns[TOTAL], columns[LOW], columns[HIGH]
    squares, last_at, latest, faded = columns[SQUARES], columns[LAST_AT], columns[LATEST], columns[FADING]
    distinct = words > REGISTERS // 8
    registers = (words - REGISTERS // 8) * 8
    union = np.zeros(REGISTERS if distinct else 0, np.uint8)
    row = progress[READ_ROW]
    progress[WANTED] = 0
    now = times[progress[NEXT]] // tile if n > progress[NEXT] else 0
    begins = now * tile
    for i in range(progress[NEXT], n):
        soon, later = slots[U(min(i + AHEAD, n - 1))], slots[U(min(i + 2 * AHEAD, n - 1))]
        prefetch(starts, later)
        line = np.int64(starts[U(max(soon, 0))]) * LINE
        prefetch(pool, line)
        prefetch(pool, line + LINE)
        slot, time = slots[U(i)], times[U(i)]
        if time < begins or time >= begins + tile:
            now = time // tile
            begins = now * tile
        base = np.int64(starts[U(slot)]) * LINE if slot >= 0 else 0
        header = whole[U(base)]
        size, newest, held = header >> SIZED & PART, header & PART, places[U(header >> POWERED)]
        first = base + 1
        at = first + newest * words
        top = whole[U(at)] >> COUNTED if size else now
        left = size
        if bits[U(i)] & READ:
            r, wraps = at, first + (held - 1) * words
            while left and whole[U(r)] >> COUNTED > now:
                left -= 1
                r = r - words if r > first else wraps
            count, sum_, lo, hi = 0, 0.0, np.inf, -np.inf
            spread, seen_at, seen, fade = 0.0, np.nan, np.nan, 0.0
            if more is not None and distinct:
                union[:] = 0
            for j in range(windows):
                bound = (max(now, top) - spans[U(j)] + 1) << COUNTED
                while left and whole[U(r)] >= bound:
                    here = whole[U(r)] & FULL
                    if more is not None:
                        if squares >= 0:
                            spread += pool[U(r + squares)]
                            if count:
                                apart = pool[U(r + total)] / here - sum_ / count
                                spread += apart * apart * (float(count) * here / (count + here))
                        if last_at >= 0 and count == 0:
                            seen_at = pool[U(r + last_at)]
                            if latest >= 0:
                                seen = pool[U(r + latest)]
                        if faded >= 0:
                            fade += pool[U(r + faded)] * fading[now - (whole[U(r)] >> COUNTED)]
                        for c in range(len(union)):
                            union[c] = max(union[c], sketch[r * 8 + registers + c])
                    count += here
                    if total >= 0:
                        sum_ += pool[U(r + total)]
                    if low >= 0:
                        lo = min(lo, pool[U(r + low)])
                    if high >= 0:
                        hi = max(hi, pool[U(r + high)])
                    left -= 1
                    r = r - words if r > first else wraps
                for a in range(bounds[j], bounds[j + 1]):
                    which, to = aggregates[U(a)], rows[U(a)]
                    if which == COUNT:
                        out[U(to), U(row)] = count
                    elif which == SUM:
                        out[U(to), U(row)] = sum_
                    elif which == RATE:
                        out[U(to), U(row)] = count / ((spans[U(j)] - 1) * tile / 1e6)
                    elif more is not None and which == DISTINCT:
                        out[U(to), U(row)] = estimate(union) if count else 0.0
                    elif more is not None and which == DECAYED:
                        out[U(to), U(row)] = fade * 2.0 ** -((time - now * tile) / half_life)
                    elif count == 0:
                        out[U(to), U(row)] = np.nan
                    elif which == MEAN:
                        out[U(to), U(row)] = sum_ / count
                    elif which == MIN:
                        out[U(to), U(row)] = lo
                    elif which == MAX:
                        out[U(to), U(row)] = hi
                    elif more is not None:
                        if which == LAST:
                            out[U(to), U(row)] = seen
                        elif which == AGE:
                            out[U(to), U(row)] = max(time - seen_at, 0.0) / 1e6
                        else:
                            out[U(to), U(row)] = math.sqrt(spread / (count - 1)) if count > 1 else np.nan
            if now < top:
                left = 0
        else:
            left = 0
            if size and now > top:
                bound, r = (
                    (now - widest + 1) << COUNTED,
                    first + (newest + 1 - size + (held if newest + 1 < size else 0)) * words,
                )
                while left < size and whole[U(r)] < bound:
                    left += 1
                    r = r + words if r < first + (held - 1) * words else first
        reads = np.int64(bits[U(i)] & READ)
        value = values[U(i)]
        if slot < 0 or not bits[U(i)] & update or np.isnan(value):
            row += reads
            continue
        newer, there = 0, size > 0 and now == top
        if now < top:
            if not late or now <= top - widest:
                progress[DROPPED_LATE] += windows
                row += reads
                continue
            while newer < size and whole[U(at)] >> COUNTED > now:
                newer += 1
                at = at - words if at > first else first + (held - 1) * words
            there = newer < size and whole[U(at)] >> COUNTED == now
        if not there or whole[U(at)] & FULL == FULL:
            size -= left
            if size == held:
                progress[WANTED] = _larger(slot, words, places, starts, heap, whole, lines)
                if progress[WANTED]:
                    progress[NEXT], progress[READ_ROW] = i, row
                    return
                base = np.int64(starts[U(slot)]) * LINE
                header = whole[U(base)]
                first, newest, held = base + 1, header & PART, places[U(header >> POWERED)]
            newest = newest + 1 if size and newest + 1 < held else 0
            whole[U(base)] = header >> POWERED << POWERED | (size + 1) << SIZED | newest
            at = first + newest * words
            for _ in range(newer):
                before = at - words if at > first else first + (held - 1) * words
                for c in range(words):
                    whole[U(at + c)] = whole[U(before + c)]
                at = before
            whole[U(at)] = now << COUNTED
            for c in range(1, words):
                whole[U(at + c)] = 0
        if newer:
            for j in range(windows):
                progress[USED_LATE if now > top - spans[U(j)] else DROPPED_LATE] += 1
        here = whole[U(at)] & FULL
        if low >= 0:
            pool[U(at + low)] = min(pool[U(at + low)], value) if here else value
        if high >= 0:
            pool[U(at + high)] = max(pool[U(at + high)], value) if here else value
        if more is not None:
            if squares >= 0 and here:
                apart = value - pool[U(at + total)] / here
                pool[U(at + squares)] += apart * apart * (here / (here + 1.0))
            if last_at >= 0 and (here == 0 or time >= pool[U(at + last_at)]):
                pool[U(at + last_at)] = time
                if latest >= 0:
                    pool[U(at + latest)] = value
            if faded >= 0:
                pool[U(at + faded)] += value * 2.0 ** ((time - now * tile) / half_life)
            if distinct:
                register, rank = _rank(codes[i])
                register += at * 8 + registers
                sketch[register] = max(sketch[register], rank)
        if total >= 0:
            pool[U(at + total)] += value
        whole[U(at)] += 1
        row += reads
    progress[NEXT], progress[READ_ROW] = n, row


@njit(cache=True, nogil=True)
def clear(slots: I32, starts: I32, heap: I64, whole: I64) -> None:
    """Empties slots int32 [m], and gives back their blocks."""
    for slot in slots:
        start = np.int64(starts[slot])
        if start:
            _give(heap, whole, start, (whole[start * LINE] >> POWERED) - 1)
        starts[slot] = 0


@njit(cache=True, nogil=True)
def count(slots: I64, starts: I32, whole: I64, sizes: I32) -> None:
    """Fills sizes [m] with how many rows each of slots [m] has."""
    for i in range(len(slots)):
        prefetch(whole, np.int64(starts[slots[min(i + AHEAD, len(slots) - 1)]]) * LINE)
        sizes[i] = whole[np.int64(starts[slots[i]]) * LINE] >> SIZED & PART


@njit(cache=True, nogil=True)
def pack(
    slots: I64,
    words: int,
    places: I64,
    starts: I32,
    pool: F64,
    whole: I64,
    sketch: U8,
    packed: F64,
    filled: U16,
    registers: U8,
    ranks: U8,
) -> int:
    """Copies the rows of slots [m], one after the other and in order of time, to packed [their number in all, 2 + fields]: the
    tile's number, its count, the fields. Where something is counted distinct, filled [their number] (else [0]) says how many
    registers of each row are not zero, most often few of them, and these stand one after the other in registers and ranks,
    which have room for all of them; returns how many they are."""
    to, fields, k = 0, packed.shape[1] - 2, 0
    distinct = len(filled) > 0
    for i in range(len(slots)):
        ahead = np.int64(starts[slots[min(i + AHEAD, len(slots) - 1)]]) * LINE
        prefetch(whole, ahead)
        prefetch(whole, ahead + LINE)
        base = np.int64(starts[slots[i]]) * LINE
        header = whole[base]
        size, newest, held = header >> SIZED & PART, header & PART, places[header >> POWERED]
        for row in range(size):
            place = newest + 1 + row - size
            at = base + 1 + (place if place >= 0 else place + held) * words
            packed[to, 0], packed[to, 1] = whole[at] >> COUNTED, whole[at] & FULL
            for c in range(fields):
                packed[to, 2 + c] = pool[at + 1 + c]
            if distinct:
                before = k
                for word in range(at + 1 + fields, at + words):
                    if whole[word]:
                        for byte in range(word * 8, word * 8 + 8):
                            if sketch[byte]:
                                registers[k], ranks[k] = byte - (at + 1 + fields) * 8, sketch[byte]
                                k += 1
                filled[to] = k - before
            to += 1
    return k


@njit(cache=True, nogil=True)
def unpack(
    slots: I32,
    sizes: I32,
    packed: F64,
    filled: U16,
    registers: U8,
    ranks: U8,
    words: int,
    places: I64,
    starts: I32,
    heap: I64,
    pool: F64,
    whole: I64,
    sketch: U8,
) -> None:
    """The reverse, into empty slots; where a slot is -1, its rows are passed over. The caller has made room (`lines`)."""
    source, fields, k = 0, packed.shape[1] - 2, 0
    distinct = len(filled) > 0
    for i in range(len(slots)):
        size, first = int(sizes[i]), source
        source += size
        if slots[i] < 0 or size == 0:
            if distinct:
                for r in range(first, source):
                    k += filled[r]
            continue
        key = _smallest(places, size)
        start = _take(heap, whole, key - 1)
        starts[slots[i]] = start
        whole[start * LINE] = key << POWERED | size << SIZED | (size - 1)
        for r in range(size):
            at = start * LINE + 1 + r * words
            whole[at] = np.int64(packed[first + r, 0]) << COUNTED | np.int64(packed[first + r, 1])
            for c in range(fields):
                pool[at + 1 + c] = packed[first + r, 2 + c]
            if distinct:
                for word in range(at + 1 + fields, at + words):
                    whole[word] = 0
                for _ in range(filled[first + r]):
                    sketch[(at + 1 + fields) * 8 + registers[k]] = ranks[k]
                    k += 1
