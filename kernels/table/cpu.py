"""The table in two arrays, with linear probing. kernels/table/naive.py is the definition.

`keys` uint64 [capacity] (0 is empty), `slots` int32 [capacity]; capacity is a power of two and at least twice the entries.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
ZERO = np.uint64(0)


def new_table(entries: int = 0) -> tuple[U64, I32]:
    """An empty table with room for `entries`."""
    capacity = 16
    while capacity < 2 * entries:
        capacity *= 2
    return np.zeros(capacity, np.uint64), np.full(capacity, -1, np.int32)


@njit(cache=True, nogil=True)
def find(keys: U64, slots: I32, hashes: U64, out: I32) -> None:
    """Fills out int32 [n] with the slot of each hash uint64 [n], -1 where absent or 0."""
    mask = np.uint64(len(keys) - 1)
    for i in range(len(hashes)):
        h = hashes[i]
        out[i] = -1
        if h == ZERO:
            continue
        at = np.int64(h & mask)
        while keys[at] != ZERO:
            if keys[at] == h:
                out[i] = slots[at]
                break
            at = (at + 1) & (len(keys) - 1)


@njit(cache=True, nogil=True)
def insert(keys: U64, slots: I32, hashes: U64, out: I32, used: int) -> int:
    """As find, but gives absent hashes the next slots from `used` on; returns the new count.

    The caller has made room: capacity must be at least 2 * (used + n), see `grow`.
    """
    mask = np.uint64(len(keys) - 1)
    for i in range(len(hashes)):
        h = hashes[i]
        out[i] = -1
        if h == ZERO:
            continue
        at = np.int64(h & mask)
        while keys[at] != ZERO and keys[at] != h:
            at = (at + 1) & (len(keys) - 1)
        if keys[at] == ZERO:
            keys[at] = h
            slots[at] = used
            used += 1
        out[i] = slots[at]
    return used


@njit(cache=True, nogil=True)
def _copy(keys: U64, slots: I32, new_keys: U64, new_slots: I32) -> None:
    mask = np.uint64(len(new_keys) - 1)
    for i in range(len(keys)):
        if keys[i] != ZERO:
            at = np.int64(keys[i] & mask)
            while new_keys[at] != ZERO:
                at = (at + 1) & (len(new_keys) - 1)
            new_keys[at] = keys[i]
            new_slots[at] = slots[i]


def grow(keys: U64, slots: I32, entries: int) -> tuple[U64, I32]:
    """A table with room for `entries`: the same arrays if they have it, larger ones with the same contents if not."""
    if len(keys) >= 2 * entries:
        return keys, slots
    new_keys, new_slots = new_table(2 * entries)
    _copy(keys, slots, new_keys, new_slots)
    return new_keys, new_slots
