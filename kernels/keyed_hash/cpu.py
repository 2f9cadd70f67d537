"""The keyed hash over Arrow buffers, with Numba. kernels/keyed_hash/naive.py is the definition; SHA-256 is as in FIPS 180-4."""

import hashlib
from decimal import Decimal, localcontext

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
BLOCK = 64
DIGITS = 32
SHORT, LANES, FEW = 55, 64, 16
"""Texts of one block, how many of them are hashed side by side, and how many are worth it: it costs as much as for all."""
ALL = np.empty(0, np.bool_)
PRIMES = [n for n in range(2, 312) if all(n % d for d in range(2, int(n**0.5) + 1))]


def _fractions(root: str) -> U32:
    """The first 32 bits of the fractions of the first 64 primes' roots."""
    with localcontext() as context:
        context.prec = 60
        roots = [Decimal(prime).sqrt() if root == "square" else Decimal(prime) ** (Decimal(1) / 3) for prime in PRIMES]
        return np.array([int(each % 1 * 2**32) for each in roots], np.uint32)


K = _fractions("cube")
BEGIN = _fractions("square")[:8]
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


@njit(cache=True, nogil=True, inline="always")
def turned(x: np.uint32, n: int) -> np.uint32:
    return np.uint32((x >> np.uint32(n)) | np.uint32(x << np.uint32(32 - n)))


@njit(cache=True, nogil=True)
def compress(state: U32, block: U8, w: U32) -> None:
    """Adds a block uint8 [64] to a state uint32 [8]; w: room, uint32 [64]."""
    for t in range(16):
        at = 4 * t
        w[t] = (
            (np.uint32(block[at]) << np.uint32(24))
            | (np.uint32(block[at + 1]) << np.uint32(16))
            | (np.uint32(block[at + 2]) << np.uint32(8))
            | np.uint32(block[at + 3])
        )
    for t in range(16, 64):
        s0 = turned(w[t - 15], 7) ^ turned(w[t - 15], 18) ^ (w[t - 15] >> np.uint32(3))
        s1 = turned(w[t - 2], 17) ^ turned(w[t - 2], 19) ^ (w[t - 2] >> np.uint32(10))
        w[t] = np.uint32(w[t - 16] + s0 + w[t - 7] + s1)
    a, b, c, d, e, f, g, h = state
    for t in range(64):
        s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
        t1 = np.uint32(h + s1 + ((e & f) ^ (~e & g)) + K[t] + w[t])
        s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
        t2 = np.uint32(s0 + ((a & b) ^ (a & c) ^ (b & c)))
        h, g, f, e, d, c, b, a = g, f, e, np.uint32(d + t1), c, b, a, np.uint32(t1 + t2)
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d
    state[4] += e
    state[5] += f
    state[6] += g
    state[7] += h


@njit(cache=True, nogil=True)
def compress_side_by_side(state: U32, w: U32) -> None:
    """Adds a block to each of L states uint32 [8, L], as `compress` does; w uint32 [64, L]: its first 16 rows are the words of
    the blocks.

    What a round does with L messages is one loop over them, which a processor does eight or sixteen at a time. Where a round
    moves a, ..., h on by one, here the rows stand still and their names move.
    """
    lanes = w.shape[1]
    for t in range(16, 64):
        for k in range(lanes):
            x, y = w[t - 15, k], w[t - 2, k]
            s0 = turned(x, 7) ^ turned(x, 18) ^ (x >> np.uint32(3))
            s1 = turned(y, 17) ^ turned(y, 19) ^ (y >> np.uint32(10))
            w[t, k] = np.uint32(w[t - 16, k] + s0 + w[t - 7, k] + s1)
    begun = state.copy()
    for t in range(64):
        a, b, c, d = state[-t & 7], state[1 - t & 7], state[2 - t & 7], state[3 - t & 7]
        e, f, g, h = state[4 - t & 7], state[5 - t & 7], state[6 - t & 7], state[7 - t & 7]
        words, constant = w[t], K[t]
        for k in range(lanes):
            s1 = turned(e[k], 6) ^ turned(e[k], 11) ^ turned(e[k], 25)
            t1 = np.uint32(h[k] + s1 + ((e[k] & f[k]) ^ (~e[k] & g[k])) + constant + words[k])
            s0 = turned(a[k], 2) ^ turned(a[k], 13) ^ turned(a[k], 22)
            d[k] = np.uint32(d[k] + t1)
            h[k] = np.uint32(t1 + s0 + ((a[k] & b[k]) ^ (a[k] & c[k]) ^ (b[k] & c[k])))
    state += begun


@njit(cache=True, nogil=True)
def hash_short(
    rows: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int32],
    data: U8,
    inner: U32,
    outer: U32,
    state: U32,
    w: U32,
    out: U8,
) -> None:
    """Hashes the texts of rows int64 [L], each of SHORT bytes at most, side by side; state uint32 [8, L], w uint32 [64, L]:
    room."""
    for k in range(len(rows)):
        at, end = offsets[rows[k]], offsets[rows[k] + 1]
        left = end - at
        for t in range(16):
            w[t, k] = 0
        for j in range(left):
            w[j >> 2, k] |= np.uint32(data[at + j]) << np.uint32(24 - 8 * (j & 3))
        w[left >> 2, k] |= np.uint32(0x80) << np.uint32(24 - 8 * (left & 3))
        w[15, k] = np.uint32(8 * (64 + left))
        for j in range(8):
            state[j, k] = inner[j]
    compress_side_by_side(state, w)
    for k in range(len(rows)):
        for j in range(8):
            w[j, k] = state[j, k]
            state[j, k] = outer[j]
        w[8, k] = np.uint32(0x80000000)
        for j in range(9, 15):
            w[j, k] = 0
        w[15, k] = 768  # bits: the key's block and the inner hash
    compress_side_by_side(state, w)
    for k in range(len(rows)):
        for j in range(DIGITS):
            out[rows[k], j] = HEX[(state[j >> 3, k] >> np.uint32(28 - 4 * (j & 7))) & np.uint32(15)]


@njit(cache=True, nogil=True)
def hash_one(at: int, end: int, data: U8, inner: U32, outer: U32, state: U32, block: U8, w: U32, out: U8) -> None:
    """Hashes the text data[at : end] to out uint8 [32]; state uint32 [8], block uint8 [64], w uint32 [64]: room."""
    bits = np.uint64(64 + end - at) * np.uint64(8)
    state[:] = inner
    while end - at >= 64:
        compress(state, data[at : at + 64], w)
        at += 64
    left = end - at
    block[:] = 0
    block[:left] = data[at:end]
    block[left] = 0x80
    if left >= 56:
        compress(state, block, w)
        block[:] = 0
    for k in range(8):
        block[63 - k] = np.uint8((bits >> np.uint64(8 * k)) & np.uint64(255))
    compress(state, block, w)
    block[:] = 0
    for k in range(32):
        block[k] = np.uint8((state[k >> 2] >> np.uint32(24 - 8 * (k & 3))) & np.uint32(255))
    block[32] = 0x80
    block[62] = 3  # 768 bits: the key's block and the inner hash
    state[:] = outer
    compress(state, block, w)
    for k in range(DIGITS):
        out[k] = HEX[(state[k >> 3] >> np.uint32(28 - 4 * (k & 7))) & np.uint32(15)]


@njit(cache=True, nogil=True)
def hash_texts(offsets: npt.NDArray[np.int32], data: U8, valid: npt.NDArray[np.bool_], inner: U32, outer: U32, out: U8) -> None:
    """Hashes n texts: offsets int32 [n + 1] into data uint8, valid bool [n] ([0]: all); inner and outer uint32 [8]: the states
    after the key's blocks; fills out uint8 [n, 32] with digits, zeros where not valid."""
    w, block, state = np.empty(64, np.uint32), np.empty(64, np.uint8), np.empty(8, np.uint32)
    rows, many, words = np.empty(LANES, np.int64), np.empty((8, LANES), np.uint32), np.empty((64, LANES), np.uint32)
    waiting = 0
    for i in range(len(out)):
        if len(valid) and not valid[i]:
            out[i] = 0
            continue
        at, end = offsets[i], offsets[i + 1]
        if end - at <= SHORT:
            rows[waiting] = i
            waiting += 1
            if waiting == LANES:
                hash_short(rows, offsets, data, inner, outer, many, words, out)
                waiting = 0
            continue
        hash_one(at, end, data, inner, outer, state, block, w, out[i])
    if waiting >= FEW:
        hash_short(rows[:waiting], offsets, data, inner, outer, many, words, out)
        waiting = 0
    for k in range(waiting):
        hash_one(offsets[rows[k]], offsets[rows[k] + 1], data, inner, outer, state, block, w, out[rows[k]])


class KeyedHash:
    """Hashes columns with one key, of any length."""

    def __init__(self, key: bytes) -> None:
        block = np.zeros(BLOCK, np.uint8)
        short = hashlib.sha256(key).digest() if len(key) > BLOCK else key
        block[: len(short)] = np.frombuffer(short, np.uint8)
        room = np.empty(64, np.uint32)
        self._inner, self._outer = BEGIN.copy(), BEGIN.copy()
        compress(self._inner, block ^ np.uint8(0x36), room)
        compress(self._outer, block ^ np.uint8(0x5C), room)

    @property
    def fingerprint(self) -> str:
        """Eight digits that tell keys apart and nothing of the key."""
        return str(self(pa.array(["the key's fingerprint"]))[0])[:8]

    def __call__(self, column: pa.Array) -> pa.Array:
        """The hashes of a string or binary column, of its type; null where it is null. Whole numbers are hashed as the text of
        their digits, to string. Raises TypeError for a column of another type."""
        if pa.types.is_integer(column.type):
            column = column.cast(pa.string())
        if not (pa.types.is_string(column.type) or pa.types.is_binary(column.type)):
            raise TypeError(f"expected a column of strings or whole numbers to hash, got {column.type}")
        n = len(column)
        if not n:
            return pa.array([], column.type)
        _, offsets, data = column.buffers()
        starts = np.frombuffer(offsets, np.int32, n + 1, column.offset * 4)
        characters = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
        starts.flags.writeable = characters.flags.writeable = False  # else Numba compiles for each kind, mid-stream
        valid = ALL if column.null_count == 0 else column.is_valid().to_numpy(zero_copy_only=False)
        out = np.empty((n, DIGITS), np.uint8)
        hash_texts(starts, characters, valid, self._inner, self._outer, out)
        ends = np.arange(0, DIGITS * (n + 1), DIGITS, dtype=np.int32)
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little")) if len(valid) else None
        return pa.Array.from_buffers(column.type, n, [bitmap, pa.py_buffer(ends), pa.py_buffer(out)])
