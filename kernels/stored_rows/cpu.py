"""The rows in arrays, with Numba. kernels/stored_rows/naive.py is the definition of what an event is given.

One table for V views: `keys` uint64 [capacity] (0 is empty; a row's entity hash, told apart by view) and `slots` int32
[capacity], the row within its view. `meta` int64 [R, 5] holds of each row its key, the time of its values (NONE: there is no
such entity), until when it need not be read again, when it is due to be, and the tick of the read that last asked for it;
`values` float32 [all cells]. Times are microseconds. `views` int64 [V, 7 + P] says of each view where its rows begin in `meta`
and in `values`, its width, its first column in what is given, its ttl, whether it refuses, how many rows it may have, and
which of the C hashed columns make up its entity (-1: no more). `counts` int64 [V, 3]: rows in use, where to look next for one
to give up, and how many were given up.

These do not let go of the GIL: that is what keeps a read from seeing half of a row that another thread writes.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
PRIME = np.uint64(0x9E3779B97F4A7C15)
M1 = np.uint64(0xBF58476D1CE4E5B9)
M2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31, ZERO, ONE = (np.uint64(n) for n in (27, 30, 31, 0, 1))
KEY, TIME, UNTIL, DUE, TICK = range(5)
META = 5
FIRST, BASE, WIDTH, COLUMN, TTL, REFUSES, CAPACITY, PARTS = range(8)
USED, HAND, GIVEN_UP = range(3)
COUNTS = 3
MISSING, STALE, FUTURE, UNREAD = (1 << k for k in range(4))
FLAGS = 4
ABSENT, LATE = 1, 2
NONE = -(2**63)
SAMPLE = 8


@njit(cache=True, inline="always")
def _mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> S30)) * M1
    x = (x ^ (x >> S27)) * M2
    return x ^ (x >> S31)


@njit(cache=True)
def entity(hashes: U64, views: I64, v: int, out: U64) -> None:
    """Fills out uint64 [n] with the hash of each event's entity in view v, 0 where a column is null."""
    for i in range(len(out)):
        h = hashes[views[v, PARTS], i]
        for p in range(PARTS + 1, views.shape[1]):
            c = views[v, p]
            if c < 0:
                break
            if h == ZERO or hashes[c, i] == ZERO:
                h = ZERO
                break
            h = _mix((h ^ hashes[c, i]) + PRIME)
            if h == ZERO:
                h = ONE
        out[i] = h


@njit(cache=True, inline="always")
def _key(h: np.uint64, v: int) -> np.uint64:
    key = h ^ (np.uint64(v) * PRIME)
    return key if key != ZERO else ONE


def hash_of(keys: U64, v: int) -> U64:
    """The hashes of entities of view v from their keys in the table."""
    return keys ^ np.uint64(v * int(PRIME) % 2**64)


@njit(cache=True, inline="always")
def _place(keys: U64, key: np.uint64) -> np.int64:
    """Where a key is in the table, or would be."""
    at = np.int64(key & np.uint64(len(keys) - 1))
    while keys[at] != ZERO and keys[at] != key:
        at = (at + 1) & (len(keys) - 1)
    return at


@njit(cache=True)
def read(
    hashes: U64, views: I64, keys: U64, slots: I32, meta: I64, values: F32, fill: F32,
    times: I64, now: int, wall: bool, tick: int, out: F32, flags: I64, missed: U8, held: I64,
) -> tuple[int, int]:  # fmt: skip
    """What n events at times int64 [n] are given at `now`, from hashes uint64 [C, n].

    Returns how many rows are not there, and how many should have been read again.

    fill float32 [F], by column: given instead of what is stale or was never read. wall: age is measured by `now`, not by the
    event's time. Fills out float32 [F, n], missed uint8 [V, n] (ABSENT, LATE, else 0), held int64 [V, n] with the time of the
    row that is held (NONE where there is none) and flags int64 [n]: bits of view v from 4 * v on, and bit 4 * V for a refusal.
    """
    absent = late = 0
    V = len(views)
    refused = np.int64(1) << (FLAGS * V)
    for i in range(len(flags)):
        flags[i] = 0
    for v in range(V):
        first, base, width, column = views[v, FIRST], views[v, BASE], views[v, WIDTH], views[v, COLUMN]
        ttl, refuses, bit = views[v, TTL], views[v, REFUSES], FLAGS * v
        for i in range(len(flags)):
            missed[v, i] = 0
            held[v, i] = NONE
            h = hashes[views[v, PARTS], i]
            for p in range(PARTS + 1, views.shape[1]):
                c = views[v, p]
                if c < 0:
                    break
                if h == ZERO or hashes[c, i] == ZERO:
                    h = ZERO
                    break
                h = _mix((h ^ hashes[c, i]) + PRIME)
                if h == ZERO:
                    h = ONE
            if h == ZERO:
                flags[i] |= np.int64(MISSING) << bit
                for f in range(width):
                    out[column + f, i] = np.nan
                continue
            at = _place(keys, _key(h, v))
            if keys[at] == ZERO:
                missed[v, i] = ABSENT
                absent += 1
                flags[i] |= (np.int64(MISSING | UNREAD) << bit) | (refused if refuses else 0)
                for f in range(width):
                    out[column + f, i] = fill[column + f]
                continue
            row = first + slots[at]
            meta[row, TICK] = tick
            unread = now > meta[row, UNTIL]
            time = meta[row, TIME]
            held[v, i] = time
            if unread:
                missed[v, i] = LATE
                late += 1
                flags[i] |= np.int64(UNREAD) << bit
            if time == NONE:
                flags[i] |= np.int64(MISSING) << bit
                if unread and refuses:
                    flags[i] |= refused
                for f in range(width):
                    out[column + f, i] = fill[column + f] if unread else np.nan
            elif ttl > 0 and (now if wall else times[i]) - time > ttl:
                flags[i] |= (np.int64(STALE) << bit) | (refused if refuses else 0)
                for f in range(width):
                    out[column + f, i] = fill[column + f]
            else:
                if time > times[i]:
                    flags[i] |= np.int64(FUTURE) << bit
                cell = base + np.int64(slots[at]) * width
                for f in range(width):
                    out[column + f, i] = values[cell + f]
    return absent, late


@njit(cache=True)
def _remove(keys: U64, slots: I32, key: np.uint64) -> None:
    """Takes a key out, and moves those after it that would not be found any more."""
    mask = len(keys) - 1
    hole = _place(keys, key)
    at = hole
    while True:
        at = (at + 1) & mask
        if keys[at] == ZERO:
            break
        home = np.int64(keys[at] & np.uint64(mask))
        if ((at - home) & mask) >= ((at - hole) & mask):
            keys[hole] = keys[at]
            slots[hole] = slots[at]
            hole = at
    keys[hole] = ZERO


@njit(cache=True)
def _free(meta: I64, first: int, capacity: int, hand: int, tick: int) -> int:
    """The row to give up: of the next few the one asked for longest ago, but none that this tick asked for."""
    best, oldest = -1, tick
    for k in range(capacity):
        row = (hand + k) % capacity
        if meta[first + row, TICK] < oldest:
            best, oldest = row, meta[first + row, TICK]
        if best >= 0 and k >= SAMPLE - 1:
            break
    return best


@njit(cache=True)
def put(
    v: int, hashes: U64, views: I64, counts: I64, keys: U64, slots: I32, meta: I64, values: F32,
    new: F32, times: I64, until: int, due: I64, tick: int, only_known: bool, rows: I32,
) -> None:  # fmt: skip
    """Writes k rows of view v: new float32 [f, k] of times int64 [k] (NONE: no such entity), to be read again at due int64 [k].

    Fills rows int32 [k] with where they are; -1: not written, since only_known and not there, or since all rows are of this
    tick. The caller has made room in the table.
    """
    first, base, width, capacity = views[v, FIRST], views[v, BASE], views[v, WIDTH], views[v, CAPACITY]
    for j in range(len(hashes)):
        key = _key(hashes[j], v)
        at = _place(keys, key)
        row = -1
        if keys[at] != ZERO:
            row = slots[at]
        elif not only_known:
            if counts[v, USED] < capacity:
                row = counts[v, USED]
                counts[v, USED] += 1
            else:
                row = _free(meta, first, capacity, counts[v, HAND], tick)
                if row >= 0:
                    counts[v, HAND] = (row + 1) % capacity
                    counts[v, GIVEN_UP] += 1
                    _remove(keys, slots, np.uint64(meta[first + row, KEY]))
                    at = _place(keys, key)
            if row >= 0:
                keys[at] = key
                slots[at] = row
                meta[first + row, KEY] = np.int64(key)
                meta[first + row, TICK] = tick
        rows[j] = row
        if row >= 0:
            meta[first + row, TIME] = times[j]
            meta[first + row, UNTIL] = until
            meta[first + row, DUE] = due[j]
            for f in range(width):
                values[base + np.int64(row) * width + f] = new[f, j]


@njit(cache=True)
def find_due(v: int, views: I64, counts: I64, meta: I64, now: int, start: int, look: int, out: I64) -> tuple[int, int]:
    """Looks through `look` rows of view v from `start` on; fills out int64 with those due by now until it is full.

    Returns how many it found and where to go on.
    """
    found, used = 0, counts[v, USED]
    row = start if start < used else 0
    for _ in range(min(look, used)):
        if found == len(out):
            break
        if meta[views[v, FIRST] + row, DUE] <= now:
            out[found] = row
            found += 1
        row = row + 1 if row + 1 < used else 0
    return found, row


@njit(cache=True, nogil=True)
def rehash(keys: U64, slots: I32, new_keys: U64, new_slots: I32) -> None:
    """Copies the table to a larger one; it lets go of the GIL, since readers go on with the old one and only one writes."""
    for i in range(len(keys)):
        if keys[i] != ZERO:
            at = _place(new_keys, keys[i])
            new_keys[at] = keys[i]
            new_slots[at] = slots[i]
