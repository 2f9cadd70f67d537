"""From hashes to slots in arrays, with linear probing. kernels/entities/naive.py is the definition.

`table` uint64 [capacity, 2]: the hash (0: empty), and the slot with, in the upper half, the latest second of its updates (from
1970 to 2106); capacity is a power of two and at least twice the entries. An entry's home is said by the highest bits of its
hash, so that hashes with the same highest bits, a *page* of them, stand together whatever the capacity. `pinned` int32 [s] says
of a slot in which batch it was last wanted when slots were looked for. `free` int32 [s] is a stack of slots that were given
back. `books` int64 [BOOKS] is the rest: see the names below.

A slot is looked for only when a new entity needs one and there are `few` entities already: LOOK entries of the table are looked
at in turn, those without an update since a given second are freed, and if there are `most` entities, the one longest without an
update of those looked at has to leave. Entities of the batch at hand stay, so that more than `most` are held where a batch
alone has as many.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.prefetch import prefetch

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
ZERO = np.uint64(0)
SLOT, HALF = np.uint64(2**32 - 1), np.uint64(32)
LAST_SECOND = 2**32 - 1
USED, LIVE, HAND, FREE, BATCH, ADDED, EXPIRED, EVICTED = range(8)
BOOKS = 8
LOOK = 16
AHEAD = 16


def new_books() -> I64:
    """Of an empty table: slots ever given, entities, the next entry to look at, slots on the free stack, batches in which slots
    were looked for, entities ever added, expired and evicted."""
    return np.zeros(BOOKS, np.int64)


def new_table(entries: int = 0) -> U64:
    """An empty table with room for `entries`."""
    capacity = 16
    while capacity < 2 * entries:
        capacity *= 2
    return np.zeros((capacity, 2), np.uint64)


@njit(cache=True, nogil=True)
def _shift(capacity: int) -> np.uint64:
    """By how much a hash is shifted to give its home."""
    bits = 0
    while 1 << bits < capacity:
        bits += 1
    return np.uint64(64 - bits)


@njit(cache=True, nogil=True)
def _remove(table: U64, gap: int) -> None:
    """Empties an entry, and moves those up that it stood in the way of."""
    mask, shift = len(table) - 1, _shift(len(table))
    at = gap
    while True:
        at = (at + 1) & mask
        if table[at, 0] == ZERO:
            break
        home = np.int64(table[at, 0] >> shift)
        if (at - home) & mask >= (at - gap) & mask:
            table[gap, 0], table[gap, 1] = table[at, 0], table[at, 1]
            gap = at
    table[gap, 0] = ZERO


@njit(cache=True, nogil=True)
def place(
    table: U64,
    pinned: I32,
    free: I32,
    books: I64,
    hashes: U64,
    times: I64,
    bits: npt.NDArray[np.uint32],
    since: int,
    few: int,
    most: int,
    out: I32,
    freed: I32,
    gone: U64,
) -> int:
    """Fills out int32 [n] with the slot of each hash uint64 [n] at times int64 [n] (microseconds), -1 where it has none.

    Where bits[i] > 1 (updates), an absent entity gets a slot; where not, it gets none; a hash of 0 is no entity. since (a
    second), few, most: as above. Returns how many slots were freed, which are in freed int32 [min(LIVE, 2 * LOOK * n)],
    with the hashes that had them in gone; the caller empties them before they are used. The caller has made room: table for
    LIVE + n, pinned and free for USED + n.
    """
    mask, shift = len(table) - 1, _shift(len(table))
    missing = -1
    for i in range(len(hashes)):
        prefetch(table, hashes[min(i + AHEAD, len(hashes) - 1)] >> shift)
        h = hashes[i]
        out[i] = -1
        if h == ZERO:
            continue
        at = np.int64(h >> shift)
        while table[at, 0] != ZERO and table[at, 0] != h:
            at = (at + 1) & mask
        if table[at, 0] == ZERO:
            if missing < 0 and bits[i] > 1:
                missing = i
            continue
        entry = table[at, 1]
        out[i] = np.int32(entry & SLOT)
        if bits[i] > 1:
            second = np.uint64(min(max(times[i] // 1_000_000, 0), LAST_SECOND))
            if second > entry >> HALF:
                table[at, 1] = second << HALF | entry & SLOT
    return (
        _insert(table, pinned, free, books, hashes, times, bits, since, few, most, out, freed, gone, missing)
        if missing >= 0
        else 0
    )


@njit(cache=True, nogil=True)
def _insert(
    table: U64,
    pinned: I32,
    free: I32,
    books: I64,
    hashes: U64,
    times: I64,
    bits: npt.NDArray[np.uint32],
    since: int,
    few: int,
    most: int,
    out: I32,
    freed: I32,
    gone: U64,
    missing: int,
) -> int:
    """Gives slots to the entities that have none, from row `missing` on."""
    mask, shift = len(table) - 1, _shift(len(table))
    looks = books[LIVE] + len(hashes) >= few
    books[BATCH] += 1
    stamp, count = np.int32(books[BATCH] & 0x7FFFFFFF), 0
    if looks:
        for slot in out:
            if slot >= 0:
                pinned[slot] = stamp
    for i in range(missing, len(hashes)):
        h = hashes[i]
        if out[i] >= 0 or h == ZERO:
            continue
        at = np.int64(h >> shift)
        while table[at, 0] != ZERO and table[at, 0] != h:
            at = (at + 1) & mask
        second = np.uint64(min(max(times[i] // 1_000_000, 0), LAST_SECOND))
        if table[at, 0] == h:  # since this batch began
            entry = table[at, 1]
            out[i] = np.int32(entry & SLOT)
            if bits[i] > 1 and second > entry >> HALF:
                table[at, 1] = second << HALF | entry & SLOT
            continue
        if bits[i] <= 1:
            continue
        if looks and books[LIVE] >= few:
            for _ in range(2 if books[LIVE] > most else 1):
                count = _look(table, pinned, free, books, since, most, stamp, freed, gone, count)
            at = np.int64(h >> shift)
            while table[at, 0] != ZERO:
                at = (at + 1) & mask
        if books[FREE]:
            books[FREE] -= 1
            slot = np.int64(free[books[FREE]])
        else:
            slot = books[USED]
            books[USED] += 1
        table[at, 0], table[at, 1] = h, second << HALF | np.uint64(slot)
        pinned[slot] = stamp
        books[LIVE] += 1
        books[ADDED] += 1
        out[i] = slot
    return count


@njit(cache=True, nogil=True)
def _look(
    table: U64, pinned: I32, free: I32, books: I64, since: int, most: int, stamp: int, freed: I32, gone: U64, count: int
) -> int:
    """Looks at entries that no row of this batch wants; returns how many slots this batch has freed."""
    mask, shift = len(table) - 1, _shift(len(table))
    at = books[HAND] & mask
    oldest, seconds = ZERO, np.int64(0)
    looked = 0
    for _ in range(4 * LOOK):
        if looked == LOOK:
            break
        entry = table[at, 1]
        slot = np.int64(entry & SLOT)
        if table[at, 0] == ZERO or pinned[slot] == stamp:
            at = (at + 1) & mask
            continue
        looked += 1
        second = np.int64(entry >> HALF)
        if second < since:
            gone[count] = table[at, 0]
            _remove(table, at)
            free[books[FREE]] = freed[count] = slot
            books[FREE] += 1
            books[LIVE] -= 1
            books[EXPIRED] += 1
            count += 1
            continue
        if oldest == ZERO or second < seconds:
            oldest, seconds = table[at, 0], second
        at = (at + 1) & mask
    books[HAND] = at
    if books[LIVE] >= most and oldest != ZERO:
        at = np.int64(oldest >> shift)
        while table[at, 0] != oldest:
            at = (at + 1) & mask
        slot, gone[count] = np.int64(table[at, 1] & SLOT), oldest
        _remove(table, at)
        free[books[FREE]] = freed[count] = slot
        books[FREE] += 1
        books[LIVE] -= 1
        books[EVICTED] += 1
        count += 1
    return count


@njit(cache=True, nogil=True)
def _copy(table: U64, larger: U64) -> None:
    mask, shift = len(larger) - 1, _shift(len(larger))
    for i in range(len(table)):
        if table[i, 0] != ZERO:
            at = np.int64(table[i, 0] >> shift)
            while larger[at, 0] != ZERO:
                at = (at + 1) & mask
            larger[at, 0], larger[at, 1] = table[i, 0], table[i, 1]


def grown(table: U64, entries: int) -> U64:
    """A table with room for `entries`: the same if it has it, a larger one with the same entries if not."""
    if len(table) >= 2 * entries:
        return table
    larger = new_table(2 * entries)
    _copy(table, larger)
    return larger


@njit(cache=True, nogil=True)
def find(table: U64, hashes: U64, entries: I64) -> None:
    """Fills entries int64 [n] with the place in the table of each hash, -1 where it is not held."""
    mask, shift = len(table) - 1, _shift(len(table))
    for i in range(len(hashes)):
        prefetch(table, hashes[min(i + AHEAD, len(hashes) - 1)] >> shift)
        at = np.int64(hashes[i] >> shift)
        while table[at, 0] != ZERO and table[at, 0] != hashes[i]:
            at = (at + 1) & mask
        entries[i] = at if table[at, 0] != ZERO and hashes[i] != ZERO else -1


@njit(cache=True, nogil=True)
def members(table: U64, shard: int, shards: int, page: int, pages: int, entries: I64) -> int:
    """Fills entries int64 [capacity] with the places of the hashes of a shard (modulo shards) and page (their highest bits;
    pages is a power of two), and returns how many there are. Only a page's share of the table is looked at.
    """
    mask, shift, count = len(table) - 1, _shift(len(table)), 0
    of_page = _shift(pages)
    first, last = np.int64(0), np.int64(mask)
    if pages > 1:
        first = np.int64((np.uint64(page) << of_page) >> shift)
        last = np.int64(((np.uint64(page) << of_page) | ((np.uint64(1) << of_page) - np.uint64(1))) >> shift)
    for k in range(len(table)):
        at = (first + k) & mask
        h = table[at, 0]
        if h == ZERO:
            if first + k >= last:
                break
            continue
        if h % np.uint64(shards) == np.uint64(shard) and (pages == 1 or h >> of_page == np.uint64(page)):
            entries[count] = at
            count += 1
    return count
