"""From hashes to slots in arrays, with linear probing. kernels/entities/naive.py is the definition.

`table` uint64 [capacity, 2]: hash (0: empty) and slot; capacity is a power of two and at least twice the entries.
`held` int64 [s, 3], by slot: the hash (0: the slot is free), the latest time of its updates, and the batch it was last in.
`books` int64 [BOOKS] is the rest: see the names below.

A slot is looked for only when a new entity needs one and there are `few` slots already: LOOK of them are looked at in turn,
those without an update since a given time are freed, and if there are `most` entities, the one longest without an update of
those looked at has to leave.
Entities of the batch at hand stay, so that more than `most` are held where a batch alone has as many.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
ZERO = np.uint64(0)
HASH, AT, STAMP = range(3)
USED, LIVE, HAND, FREE, BATCH, ADDED, EXPIRED, EVICTED = range(8)
BOOKS = 8
LOOK = 16


def new_books() -> I64:
    """Of an empty table: slots ever given, entities, next slot to look at, last freed slot (-1: none), batches, entities
    ever added, expired and evicted."""
    books = np.zeros(BOOKS, np.int64)
    books[FREE] = -1
    return books


def new_table(entries: int = 0) -> U64:
    """An empty table with room for `entries`."""
    capacity = 16
    while capacity < 2 * entries:
        capacity *= 2
    return np.zeros((capacity, 2), np.uint64)


@njit(cache=True, nogil=True)
def _remove(table: U64, hash: np.uint64) -> None:
    """Takes an entry out, and moves those up that it stood in the way of."""
    mask = len(table) - 1
    gap = np.int64(hash & np.uint64(mask))
    while table[gap, 0] != hash:
        gap = (gap + 1) & mask
    at = gap
    while True:
        at = (at + 1) & mask
        if table[at, 0] == ZERO:
            break
        home = np.int64(table[at, 0] & np.uint64(mask))
        if (at - home) & mask >= (at - gap) & mask:
            table[gap, 0], table[gap, 1] = table[at, 0], table[at, 1]
            gap = at
    table[gap, 0] = ZERO


@njit(cache=True, nogil=True)
def _free(table: U64, held: I64, books: I64, slot: int, freed: I32, count: int) -> int:
    _remove(table, np.uint64(held[slot, HASH]))
    held[slot, HASH], held[slot, AT] = 0, books[FREE]
    books[FREE] = slot
    books[LIVE] -= 1
    freed[count] = slot
    return count + 1


@njit(cache=True, nogil=True)
def place(
    table: U64,
    held: I64,
    books: I64,
    hashes: U64,
    times: I64,
    bits: npt.NDArray[np.uint32],
    since: int,
    few: int,
    most: int,
    out: I32,
    freed: I32,
) -> int:
    """Fills out int32 [n] with the slot of each hash uint64 [n] at times int64 [n] (microseconds), -1 where it has none.

    Where bits[i] > 1 (updates), an absent entity gets a slot; where not, it gets none; a hash of 0 is no entity. since, few,
    most: as above. Returns how many slots were freed, which are in freed int32 [min(USED, LOOK * n)]; the caller empties them
    before they are used. The caller has made room: table for LIVE + n, held for USED + n.
    """
    mask = np.uint64(len(table) - 1)
    books[BATCH] += 1
    stamp, count = books[BATCH], 0
    used = books[USED]  # slots of before this batch
    for i in range(len(hashes)):
        h = hashes[i]
        out[i] = -1
        if h == ZERO:
            continue
        at = np.int64(h & mask)
        while table[at, 0] != ZERO and table[at, 0] != h:
            at = (at + 1) & np.int64(mask)
        updates = bits[i] > 1
        if table[at, 0] == ZERO:
            if not updates:
                continue
            oldest = -1
            for _ in range(min(LOOK, used) if books[USED] >= few else 0):
                slot = books[HAND]
                books[HAND] = slot + 1 if slot + 1 < used else 0
                if held[slot, HASH] == 0 or held[slot, STAMP] == stamp:
                    continue
                if held[slot, AT] < since:
                    count = _free(table, held, books, slot, freed, count)
                    books[EXPIRED] += 1
                elif oldest < 0 or held[slot, AT] < held[oldest, AT]:
                    oldest = slot
            if books[LIVE] >= most and oldest >= 0:
                count = _free(table, held, books, oldest, freed, count)
                books[EVICTED] += 1
            slot = books[FREE]
            if slot >= 0:
                books[FREE] = held[slot, AT]
            else:
                slot = books[USED]
                books[USED] += 1
            at = np.int64(h & mask)  # what was freed may have moved entries
            while table[at, 0] != ZERO:
                at = (at + 1) & np.int64(mask)
            table[at, 0], table[at, 1] = h, slot
            held[slot, HASH], held[slot, AT] = np.int64(h), times[i]
            books[LIVE] += 1
            books[ADDED] += 1
        else:
            slot = np.int64(table[at, 1])
        if updates:
            held[slot, AT] = max(held[slot, AT], times[i])
        held[slot, STAMP] = stamp
        out[i] = slot
    return count


@njit(cache=True, nogil=True)
def _copy(table: U64, larger: U64) -> None:
    mask = len(larger) - 1
    for i in range(len(table)):
        if table[i, 0] != ZERO:
            at = np.int64(table[i, 0] & np.uint64(mask))
            while larger[at, 0] != ZERO:
                at = (at + 1) & mask
            larger[at] = table[i]


def grown(table: U64, entries: int) -> U64:
    """A table with room for `entries`: the same if it has it, a larger one with the same entries if not."""
    if len(table) >= 2 * entries:
        return table
    larger = new_table(2 * entries)
    _copy(table, larger)
    return larger
