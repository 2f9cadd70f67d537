"""The hash over Arrow buffers, with Numba. kernels/hashing/naive.py is the definition."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

U64 = npt.NDArray[np.uint64]
PRIME = np.uint64(0x9E3779B97F4A7C15)
M1 = np.uint64(0xBF58476D1CE4E5B9)
M2 = np.uint64(0x94D049BB133111EB)
ALL = np.empty(0, np.bool_)
S27, S30, S31, ZERO, ONE = (np.uint64(n) for n in (27, 30, 31, 0, 1))


@njit(cache=True, nogil=True, inline="always")
def mix(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> S30)) * M1
    x = (x ^ (x >> S27)) * M2
    return x ^ (x >> S31)


@njit(cache=True, nogil=True)
def hash_strings(offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_], out: U64) -> None:
    """Hashes n strings: offsets int32 [n + 1] into data uint8, valid bool [n] ([0]: all); fills out uint64 [n], 0 where not."""
    for i in range(len(out)):
        if len(valid) and not valid[i]:
            out[i] = ZERO
            continue
        start, end = offsets[i], offsets[i + 1]
        h = mix(np.uint64(end - start) + PRIME)
        at = start
        while at < end:
            word = ZERO
            stop = min(at + 8, end)
            for j in range(stop - 1, at - 1, -1):
                word = (word << np.uint64(8)) | np.uint64(data[j])
            h = mix((h ^ word) + PRIME)
            at += 8
        out[i] = h if h != ZERO else ONE


@njit(cache=True, nogil=True)
def hash_integers(values: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_], out: U64) -> None:
    """Hashes int64 [n]; valid as for strings; fills out uint64 [n], 0 where not valid."""
    length = mix(np.uint64(8) + PRIME)
    for i in range(len(out)):
        h = mix((length ^ np.uint64(values[i])) + PRIME)
        out[i] = ZERO if len(valid) and not valid[i] else h if h != ZERO else ONE


@njit(cache=True, nogil=True)
def combine(first: U64, second: U64, out: U64) -> None:
    """Joins two hashes [n] into out [n]; 0 where either is 0."""
    for i in range(len(out)):
        if first[i] == ZERO or second[i] == ZERO:
            out[i] = ZERO
            continue
        h = mix((first[i] ^ second[i]) + PRIME)
        out[i] = h if h != ZERO else ONE


def hash_column(column: pa.Array) -> U64:
    """The hashes uint64 [n] of a string, binary, dictionary or integer column; 0 where null.

    Raises TypeError for a column of another type.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    out = np.empty(len(column), np.uint64)
    valid = ALL if column.null_count == 0 else column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(column.type):
        filled = column if column.null_count == 0 else pc.fill_null(column, 0)
        hash_integers(filled.cast(pa.int64()).to_numpy(), valid, out)
    elif pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        _, offsets, data = column.buffers()
        if len(column):
            starts = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
            characters = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
            starts.flags.writeable = characters.flags.writeable = False  # else Numba compiles for each kind, mid-stream
            hash_strings(starts, characters, valid, out)
    else:
        raise TypeError(f"expected an entity column of strings or integers, got {column.type}")
    return out


def hash_columns(columns: Sequence[pa.Array]) -> U64:
    """The hashes uint64 [n] of an entity of one or several columns; 0 where any of them is null."""
    out = hash_column(columns[0])
    for column in columns[1:]:
        out = combined(out, hash_column(column))
    return out


def combined(first: U64, second: U64) -> U64:
    """The hashes uint64 [n] of two columns' as one; 0 where either is."""
    out = np.empty_like(first)
    combine(first, second, out)
    return out
