"""The messages read by the thousand, with Numba. kernels/feast_values/naive.py is the definition.

A row is f features and the time they are from; a row of nothing from no time is that of an entity that the store does not have.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
NONE = -(2**63)
READ, MORE, WRONG = range(3)
CR, LF, MINUS, ZERO, DOLLAR, STAR, UNDERSCORE = 13, 10, 45, 48, 36, 42, 95
NAME_ENDS, CELL_ENDS, CELLS_END, TEXT_ENDS = 31, 30, 29, 28


@njit(cache=True, nogil=True)
def _varint(data: U8, at: int, end: int) -> tuple[np.int64, int]:
    """The number at a place, and the place after it; -1 where the data ends within it."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(64):
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        shift += np.uint64(7)
        if byte < np.uint64(128):
            return np.int64(value), at
    return np.int64(0), -1


@njit(cache=True, nogil=True)
def _fixed(data: U8, at: int, size: int) -> np.uint64:
    value = np.uint64(0)
    for k in range(size - 1, -1, -1):
        value = (value << np.uint64(8)) | np.uint64(data[at + k])
    return value


@njit(cache=True, nogil=True)
def _number(data: U8, at: int, end: int, bits: npt.NDArray[np.uint64], halves: npt.NDArray[np.uint32]) -> tuple[float, bool]:
    """The number in a message, NaN for null and none, and whether it is one. bits uint64 [1], halves uint32 [1]: to work in."""
    found = np.nan
    while at < end:
        tag, at = _varint(data, at, end)
        field = tag >> 3
        if at < 0:
            return found, False
        if tag & 7 == 0 and (field == 3 or field == 4 or field == 7 or field == 8 or field == 19):
            value, at = _varint(data, at, end)
            if at < 0:
                return found, False
            found = np.nan if field == 19 else np.float64(value)
        elif tag == 41 and at + 8 <= end:
            bits[0] = _fixed(data, at, 8)
            found = bits.view(np.float64)[0]
            at += 8
        elif tag == 53 and at + 4 <= end:
            halves[0] = np.uint32(_fixed(data, at, 4))
            found = np.float64(halves.view(np.float32)[0])
            at += 4
        else:
            return found, False
    return found, True


@njit(cache=True, nogil=True)
def _microseconds(data: U8, at: int, end: int) -> tuple[np.int64, bool]:
    """The time in a message, and whether it is one."""
    seconds, nanos = np.int64(0), np.int64(0)
    while at < end:
        tag, at = _varint(data, at, end)
        if at < 0 or (tag != 8 and tag != 16):
            return seconds, False
        value, at = _varint(data, at, end)
        if at < 0:
            return seconds, False
        if tag == 8:
            seconds = value
        else:
            nanos = value
    return seconds * 1_000_000 + (nanos + 500) // 1000, True


@njit(cache=True, nogil=True)
def _length(data: U8, at: int, end: int) -> tuple[np.int64, int]:
    """The decimal number that a line of Redis holds after its first byte, and the place after the line; -1 where it ends."""
    value, sign, at = np.int64(0), np.int64(1), at + 1
    while at + 1 < end:
        byte = data[at]
        if byte == CR:
            return value * sign, at + 2
        if byte == MINUS:
            sign = np.int64(-1)
        else:
            value = value * 10 + (np.int64(byte) - ZERO)
        at += 1
    return value, -1


@njit(cache=True, nogil=True)
def replies(data: U8, at: int, end: int, row: int, values: F32, times: I64) -> tuple[int, int, int]:
    """Reads answers of Redis to HMGET of f features and the time, from data[at:end], into the rows from `row` on.

    Fills values float32 [f, k] and times int64 [k], as far as whole answers are there. Returns where it is in the data, the
    next row, and READ, MORE (there are rows to come) or WRONG (what is there is no such answer).
    """
    f = len(values)
    bits, halves = np.empty(1, np.uint64), np.empty(1, np.uint32)
    while row < len(times):
        here = at
        if here >= end:
            return at, row, MORE
        if data[here] != STAR:
            return at, row, WRONG
        count, here = _length(data, here, end)
        if here < 0:
            return at, row, MORE
        if count != f + 1:
            return at, row, WRONG
        known, time = False, np.int64(0)
        for k in range(f + 1):
            if here >= end:
                return at, row, MORE
            kind = data[here]
            if kind != DOLLAR and kind != UNDERSCORE:
                return at, row, WRONG
            size, here = _length(data, here, end)
            if here < 0 or (size >= 0 and kind == DOLLAR and here + size + 2 > end):
                return at, row, MORE
            if size < 0 or kind == UNDERSCORE:
                size = np.int64(0)
                after = here
            else:
                after = here + size + 2
            if k < f:
                value, good = _number(data, here, here + size, bits, halves)
                values[k, row] = value
                known = known or not np.isnan(value)
            else:
                time, good = _microseconds(data, here, here + size)
            if not good:
                return at, row, WRONG
            here = after
        times[row] = time if known or time != 0 else NONE
        at = here
        row += 1
    return at, row, READ


@njit(cache=True, nogil=True)
def _message_end(data: U8, at: int, end: int) -> int:
    """Where a message ends that something follows which no message can begin with; -1 where it is none."""
    while at < end and data[at] != CELL_ENDS and data[at] != CELLS_END:
        tag, at = _varint(data, at, end)
        if at < 0:
            return -1
        kind = tag & 7
        if kind == 0:
            _, at = _varint(data, at, end)
        elif kind == 1:
            at += 8
        elif kind == 2:
            size, at = _varint(data, at, end)
            at = at + size if 0 <= size <= end - at and at >= 0 else -1
        elif kind == 5:
            at += 4
        else:
            return -1
        if at < 0:
            return -1
    return at if at < end else -1


@njit(cache=True, nogil=True)
def _place(data: U8, at: int, stop: int, names: U8, name_ends: I64, guess: int) -> int:
    """Which of the names data[at:stop] is, -1 if none; looked for from `guess` on."""
    f = len(name_ends)
    for step in range(f):
        k = guess + step if guess + step < f else guess + step - f
        first = name_ends[k - 1] if k else 0
        if name_ends[k] - first == stop - at:
            same = True
            for j in range(stop - at):
                if names[first + j] != data[at + j]:
                    same = False
                    break
            if same:
                return k
    return -1


@njit(cache=True, nogil=True)
def cells(data: U8, names: U8, name_ends: I64, row: int, values: F32, stamps: I64) -> int:
    """Reads the cells of m entities of SQLite, one text after the other in data, into the rows from `row` on.

    Byte 28 is between two texts. A text is empty (no such entity), or name, byte 31, value, any number of times with byte 30
    between them, then byte 29 and their time. f names, one after the other in names, each up to name_ends int64 [f]; other
    names are passed over. Fills values float32 [f, k] where there is a cell, and stamps int64 [m, 2] with where the times
    begin and end, -1 where there is none. Returns where in data the first text begins that is not so, -1 if all m are.
    """
    bits, halves = np.empty(1, np.uint64), np.empty(1, np.uint32)
    at, end, guess, begin = 0, len(data), 0, 0
    for i in range(len(stamps)):
        begin = at
        stamps[i, 0] = stamps[i, 1] = -1
        if at < end and data[at] != TEXT_ENDS:
            while True:
                stop = at
                while stop < end and data[stop] != NAME_ENDS and data[stop] != TEXT_ENDS:
                    stop += 1
                if stop == end or data[stop] == TEXT_ENDS:
                    return begin
                feature = _place(data, at, stop, names, name_ends, guess)
                at = stop + 1
                stop = _message_end(data, at, end)
                if stop < 0:
                    return begin
                if feature >= 0:
                    value, good = _number(data, at, stop, bits, halves)
                    if not good:
                        return begin
                    values[feature, row + i] = value
                    guess = feature + 1
                at = stop + 1
                if data[stop] == CELLS_END:
                    break
            stamps[i, 0] = at
            while at < end and data[at] != TEXT_ENDS:
                at += 1
            stamps[i, 1] = at
        at += 1
    return -1 if at == end + 1 or not len(stamps) else begin
