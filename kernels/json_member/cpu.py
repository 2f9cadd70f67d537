"""The members with Numba, all objects into one buffer. kernels/json_member/naive.py is the definition.

Taken is an object whose last member has the name, written without escapes, and is null, as it is in an event that is sent to be
completed. That is certain from its last bytes, if it is known to be a JSON object.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from kernels.json_member.naive import with_member

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
BOOL = npt.NDArray[np.bool_]
QUOTE, COMMA, COLON, OPEN, CLOSE = (ord(c) for c in '",:{}')
NULL = np.frombuffer(b"null", np.uint8)


def with_members(messages: pa.Array, name: str, numbers: pa.Array) -> list[bytes]:
    """n JSON objects, each with `name` set to the string of its numbers, each of which is followed by a comma.

    messages: binary [n] without nulls, known to be JSON objects; numbers: their texts, string [n * k] without nulls.
    """
    n = len(messages)
    if not n:
        return []
    places, data = _buffers(messages)
    edges, digits = _buffers(numbers)
    room = int(places[-1] - places[0]) + int(edges[-1] - edges[0]) + len(numbers) + 2 * n
    out, ends, rare = np.empty(room, np.uint8), np.empty(n + 1, np.int64), np.zeros(n, np.bool_)
    key = np.frombuffer(f'"{name}"'.encode(), np.uint8)
    splice(data, places, key, digits, edges, out, ends, rare)
    column = pa.Array.from_buffers(pa.large_binary(), n, [None, pa.py_buffer(ends), pa.py_buffer(out)])
    values: list[bytes] = column.to_pylist()
    each = len(numbers) // n
    for i in np.flatnonzero(rare).tolist():
        values[i] = with_member(messages[i].as_py(), name, numbers.slice(i * each, each).to_pylist())
    return values


def _buffers(column: pa.Array) -> tuple[I32, U8]:
    """Where each item begins and ends [n + 1] in the bytes; both read-only, for one compiled kernel."""
    _, offsets, data = column.buffers()
    n = len(column)
    places = np.frombuffer(offsets, np.int32, n + 1, column.offset * 4) if n else np.zeros(1, np.int32)
    characters = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    places.flags.writeable = characters.flags.writeable = False
    return places, characters


@njit(cache=True, nogil=True)
def _back(data: U8, p: int, start: int) -> int:
    """The place after the last byte of data[start:p] that is no white space."""
    while p > start and (data[p - 1] == 32 or data[p - 1] == 10 or data[p - 1] == 13 or data[p - 1] == 9):
        p -= 1
    return p


@njit(cache=True, nogil=True)
def _ends_with(data: U8, p: int, start: int, word: U8) -> bool:
    if p - start < len(word):
        return False
    same = True
    for k in range(len(word)):
        same &= data[p - len(word) + k] == word[k]
    return same


@njit(cache=True, nogil=True)
def _null_at(data: U8, start: int, end: int, key: U8) -> int:
    """Where the null begins that is the value of the object's last member, if that has the key; -1 otherwise."""
    p = _back(data, end, start)
    if p == start or data[p - 1] != CLOSE:
        return -1
    p = _back(data, p - 1, start)
    if not _ends_with(data, p, start, NULL):
        return -1
    null = p - 4
    p = _back(data, null, start)
    if p == start or data[p - 1] != COLON:
        return -1
    p = _back(data, p - 1, start)
    if not _ends_with(data, p, start, key):
        return -1
    p = _back(data, p - len(key), start)
    if p == start or (data[p - 1] != COMMA and data[p - 1] != OPEN):
        return -1
    return null


@njit(cache=True, nogil=True)
def _copy(data: U8, start: int, end: int, out: U8, to: int) -> int:
    source, target = data[start:end], out[to : to + end - start]
    for k in range(len(target)):
        target[k] = source[k]
    return to + end - start


@njit(cache=True, nogil=True)
def splice(data: U8, places: I32, key: U8, digits: U8, edges: I32, out: U8, ends: I64, rare: BOOL) -> None:
    """Writes n objects data[places[i] : places[i + 1]] to out, object i at out[ends[i] : ends[i + 1]].

    key: the name in its quotes; edges int32 [n * k + 1]: places in `digits` of the k numbers of each. rare bool [n], false
    before: set where the member was not found at the end; nothing is written for it.
    """
    n = len(rare)
    each = (len(edges) - 1) // n
    to = 0
    ends[0] = 0
    for i in range(n):
        start, end = np.int64(places[i]), np.int64(places[i + 1])
        null = _null_at(data, start, end, key)
        if null < 0:
            rare[i] = True
        else:
            to = _copy(data, start, null, out, to)
            out[to] = QUOTE
            to += 1
            for k in range(i * each, (i + 1) * each):
                for at in range(edges[k], edges[k + 1]):
                    out[to] = digits[at]
                    to += 1
                out[to] = COMMA
                to += 1
            out[to] = QUOTE
            to = _copy(data, null + 4, end, out, to + 1)
        ends[i + 1] = to
