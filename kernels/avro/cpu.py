"""The messages of an Arrow binary column in one pass over their bytes, each by its writer's program.

kernels/avro/naive.py is the definition. Taken is what is certainly right: bytes as the schema says them up to the last, values
in their bounds. Everything wrong is left to the definition, and so is what has no instruction.

An instruction is four numbers: op, a, b, c. It has a field f as a, and says how its number is written (INT to BOOLEAN) as b:

    END                 the message ends here             SKIP a              a number written as a
    LEAVE               the message is left               SKIP_ENUM a         a number in [0, a)
    JUMP a              go on at a                        SKIP_BYTES a        a bytes
    UNION a, b          a number k in [0, b): to aux[a+k]  SKIP_SIZED          a length and as many bytes
    BLOCKS a, b, c      an array or map: a is behind it, b the place of its counter, c whether its items take no bytes
    LOOP a, b           the next item of the BLOCKS at a, whose counter is b
    KEEP, BACK          remember this place in the message; go back to it
    NUMBER f, b         INTEGER f, b                      VECTOR f, b         an array of numbers
    TIME f, b           a number in units of b microseconds; -1000: in nanoseconds
    TEXT f, b           TEXT_KIND f, b                    b bytes, or a length before them where b is -1
    DECIMAL f, b, c     the same as a number, of which the last c digits are behind the point
    ENUM_TEXT f, b, c   ENUM_KIND f, b, c                 a number k in [0, c): aux[b + 2k] and [b + 2k + 1], or aux[b + k]

One file, because Numba's cache knows a compiled function by its own file: it would keep what an edited import was.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]
(
    END, LEAVE, JUMP, UNION, BLOCKS, LOOP, KEEP, BACK, SKIP, SKIP_ENUM, SKIP_BYTES, SKIP_SIZED, NUMBER, INTEGER, TIME, TEXT,
    TEXT_KIND, DECIMAL, ENUM_TEXT, ENUM_KIND, VECTOR,
) = range(21)  # fmt: skip
INT, LONG, FLOAT, DOUBLE, BOOLEAN = range(5)
MOST_LOOPS = 16
HEAD = 5
EXACT = 2**53
POWERS = np.array([float(10**k) for k in range(23)])
MOST_MICROS = 2**63 - 1
LARGEST = float(np.finfo(np.float32).max)
U1, U7, U127 = np.uint64(1), np.uint64(7), np.uint64(127)


@njit(cache=True, nogil=True)
def _byte(data: U8, p: int) -> int:
    return int(np.int64(data[np.uint64(p)]))


@njit(cache=True, nogil=True)
def heads(data: U8, offsets: I32, present: BOOL, max_bytes: int, ids: I64) -> None:
    """The schema ids [n] of messages data[offsets[i] : offsets[i + 1]], -1 where there is none or the message is too large.
    present bool [n]: whether there is a message; [0]: all are there."""
    for i in range(len(ids)):
        p, size = np.int64(offsets[i]), np.int64(offsets[i + 1]) - offsets[i]
        ids[i] = -1
        if (len(present) == 0 or present[i]) and HEAD <= size <= max_bytes and _byte(data, p) == 0:
            high = (_byte(data, p + 1) << 24) | (_byte(data, p + 2) << 16)
            ids[i] = high | (_byte(data, p + 3) << 8) | _byte(data, p + 4)


@njit(cache=True, nogil=True)
def _long(data: U8, p: int, end: int) -> tuple[int, int]:
    """The number at p and the place after it, which is -1 if it does not end before `end` or is none of 64 bits."""
    if p >= end:
        return 0, -1
    c = _byte(data, p)
    p += 1
    if c < 128:
        return (c >> 1) ^ -(c & 1), p
    n, shift = np.uint64(c) & U127, np.uint64(7)
    for k in range(9):
        if p >= end:
            return 0, -1
        c = _byte(data, p)
        p += 1
        if k == 8 and c > 1:
            return 0, -1
        n |= (np.uint64(c) & U127) << shift
        shift += U7
        if c < 128:
            return int(np.int64(n >> U1) ^ -np.int64(n & U1)), p
    return 0, -1


@njit(cache=True, nogil=True)
def _whole(data: U8, p: int, end: int, source: int) -> tuple[int, int]:
    """The same of an INT, LONG or BOOLEAN."""
    if source == BOOLEAN:
        if p >= end or _byte(data, p) > 1:
            return 0, -1
        return _byte(data, p), p + 1
    value, p = _long(data, p, end)
    if source == INT and (value < -(2**31) or value > 2**31 - 1):
        return 0, -1
    return value, p


@njit(cache=True, nogil=True)
def _number(data: U8, p: int, end: int, source: int, bits: I64, double: F64, single: F32) -> tuple[float, int]:
    """The same as float64, of a FLOAT or DOUBLE too. double and single are other views of bits [1]."""
    if source != FLOAT and source != DOUBLE:
        value, p = _whole(data, p, end, source)
        return float(value), p
    size = 4 if source == FLOAT else 8
    if size > end - p:
        return 0.0, -1
    n = np.int64(0)
    for k in range(size):
        n |= np.int64(_byte(data, p + k)) << np.int64(8 * k)
    bits[0] = n
    return (float(single[0]) if source == FLOAT else double[0]), p + size


@njit(cache=True, nogil=True)
def _sized(data: U8, p: int, end: int, size: int) -> tuple[int, int]:
    """How many bytes stand where (-1 if not before `end`): `size`, or if that is -1 as many as the number at p says."""
    if size < 0:
        size, p = _long(data, p, end)
        if size < 0:
            return 0, -1
    if p < 0 or size > end - p:
        return 0, -1
    return size, p


@njit(cache=True, nogil=True)
def _is_text(data: U8, p: int, end: int) -> bool:
    """Whether data[p:end] is UTF-8 (RFC 3629, section 4)."""
    while p < end:
        c = _byte(data, p)
        if c < 0x80:
            p += 1
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= c <= 0xDF:
            size = 2
        elif 0xE0 <= c <= 0xEF:
            size = 3
            low, high = 0xA0 if c == 0xE0 else low, 0x9F if c == 0xED else high
        elif 0xF0 <= c <= 0xF4:
            size = 4
            low, high = 0x90 if c == 0xF0 else low, 0x8F if c == 0xF4 else high
        else:
            return False
        if p + size > end or _byte(data, p + 1) < low or _byte(data, p + 1) > high:
            return False
        for at in range(p + 2, p + size):
            if _byte(data, at) < 0x80 or _byte(data, at) > 0xBF:
                return False
        p += size
    return True


@njit(cache=True, nogil=True)
def _find(data: U8, p: int, size: int, words: U8, word_at: I32) -> int:
    """Which of the words is data[p : p + size]; -1 if none. Word k is words[word_at[k] : word_at[k + 1]]."""
    for k in range(len(word_at) - 1):
        if word_at[k + 1] - word_at[k] == size:
            same = True
            for at in range(size):
                same &= _byte(data, p + at) == _byte(words, word_at[k] + at)
            if same:
                return k
    return -1


@njit(cache=True, nogil=True)
def scan(
    data: U8,
    offsets: I32,
    which: I32,
    code: I64,
    aux: I32,
    entries: I32,
    wide_at: I32,
    types: I8,
    slots: I32,
    low: F64,
    high: F64,
    whole_low: I64,
    whole_high: I64,
    kinds: U8,
    kind_at: I32,
    on: BOOL,
    required: BOOL,
    whole: I64,
    floats: F64,
    codes: I8,
    starts: I32,
    lengths: I32,
    wide: F32,
    valid: BOOL,
    rare: BOOL,
) -> None:
    """Reads n messages data[offsets[i] : offsets[i + 1]] by the programs which [n]; those of none, -1, are left.

    code int64 [*, 4], aux and entries are those of `Code.arrays`; wide float32 [n, *] has the numbers of all vectors, and
    wide_at int32 [F + 1] where in a row those of a field begin. From types on to rare: kernels/flat_json/layout.py says what
    they are. A text starts at a place in data or, where that is negative, at -1 - start in the symbols.
    """
    fields = len(types)
    bits = np.zeros(1, np.int64)
    double, single = bits.view(np.float64), bits.view(np.float32)
    counters = np.zeros(MOST_LOOPS, np.int64)
    for i in range(len(rare)):
        taken = False
        kind, kept = 0, 0
        p, end = int(offsets[i]) + HEAD, int(offsets[i + 1])
        at = int(entries[which[i]]) if which[i] >= 0 else -1
        while at >= 0:
            op, a, b, c = code[at, 0], code[at, 1], code[at, 2], code[at, 3]
            at += 1
            if op == NUMBER:
                number, p = _number(data, p, end, b, bits, double, single)
                if p < 0 or not (low[a] <= number <= high[a]):
                    break
                floats[slots[a], i] = number
                valid[a, i] = True
            elif op == TEXT:
                size, p = _sized(data, p, end, b)
                if p < 0 or size > whole_high[a] or not _is_text(data, p, p + size):
                    break
                starts[slots[a], i], lengths[slots[a], i] = p, size
                valid[a, i] = True
                p += size
            elif op in (INTEGER, TIME):
                value, p = _whole(data, p, end, b if op == INTEGER else LONG)
                if p < 0:
                    break
                if op == INTEGER:
                    if value > whole_high[a]:
                        break
                else:
                    if b < 0:
                        value = value // 1000
                    else:
                        if value > MOST_MICROS // b or value < -(MOST_MICROS // b):
                            break
                        value *= b
                    if value >= whole_high[a]:
                        break
                if value < whole_low[a]:
                    break
                whole[slots[a], i] = value
                valid[a, i] = True
            elif op == UNION:
                value, p = _long(data, p, end)
                if p < 0 or value < 0 or value >= b:
                    break
                at = int(aux[a + value])
            elif op == JUMP:
                at = a
            elif op in (ENUM_KIND, ENUM_TEXT, SKIP_ENUM):
                value, p = _long(data, p, end)
                if p < 0 or value < 0 or value >= (a if op == SKIP_ENUM else c):
                    break
                if op == SKIP_ENUM:
                    continue
                if op == ENUM_KIND:
                    kind = int(aux[b + value])
                    if kind < 0:
                        break
                    codes[i] = kind
                else:
                    size = int(aux[b + 2 * value + 1])
                    if size > whole_high[a]:
                        break
                    starts[slots[a], i], lengths[slots[a], i] = -1 - aux[b + 2 * value], size
                valid[a, i] = True
            elif op == TEXT_KIND:
                size, p = _sized(data, p, end, b)
                if p < 0:
                    break
                kind = _find(data, p, size, kinds, kind_at)
                if kind < 0:
                    break
                codes[i] = kind
                valid[a, i] = True
                p += size
            elif op in (SKIP_BYTES, SKIP_SIZED):
                size, p = _sized(data, p, end, a if op == SKIP_BYTES else -1)
                if p < 0:
                    break
                p += size
            elif op == SKIP:
                value, p = _whole(data, p, end, a)
                if p < 0:
                    break
            elif op == BLOCKS:
                bad = False
                while True:
                    value, p = _long(data, p, end)
                    if p < 0:
                        bad = True
                        break
                    if value == 0:
                        at = a
                        break
                    if value < 0:
                        size, p = _sized(data, p, end, -1)
                        if p < 0:
                            bad = True
                            break
                        p += size
                    elif c == 0:
                        counters[b] = value
                        break
                if bad:
                    break
            elif op == LOOP:
                counters[b] -= 1
                at = a + 1 if counters[b] > 0 else a
            elif op == DECIMAL:
                size, p = _sized(data, p, end, b)
                if p < 0 or size > 7 or size == 0:
                    break
                value = _byte(data, p)
                if value > 127:
                    value -= 256
                for k in range(1, size):
                    value = (value << 8) | _byte(data, p + k)
                number = float(value) / POWERS[c]
                if value > EXACT or value < -EXACT or not (low[a] <= number <= high[a]):
                    break
                floats[slots[a], i] = number
                valid[a, i] = True
                p += size
            elif op == VECTOR:
                to, stop = int(wide_at[a]), int(wide_at[a + 1])
                good = True
                while good:
                    count, p = _long(data, p, end)
                    if p < 0 or count == 0:
                        break
                    if count < 0:
                        count = -count
                        size, p = _sized(data, p, end, -1)
                    good = p >= 0 and 0 < count <= stop - to
                    if good:
                        for _ in range(count):
                            number, p = _number(data, p, end, b, bits, double, single)
                            near = np.float32(number)
                            if p < 0 or not (low[a] <= number <= high[a]) or not np.isfinite(near):
                                good = False
                                break
                            wide[i, to] = near
                            to += 1
                if not good or p < 0 or to != stop:
                    break
                valid[a, i] = True
            elif op == KEEP:
                kept = p
            elif op == BACK:
                p = kept
            else:
                taken = op == END and p == end
                break
        if taken:
            for f in range(fields):
                if on[kind, f]:
                    taken &= valid[f, i] or not required[kind, f]
        rare[i] = not taken
        if not taken:
            continue
        for f in range(fields):
            if not valid[f, i] or not on[kind, f]:
                valid[f, i] = False
                if types[f] == 1:
                    floats[slots[f], i] = 0.0
                elif types[f] == 0:
                    lengths[slots[f], i] = 0
                elif types[f] == 4:
                    codes[i] = 0
                elif types[f] < 4:
                    whole[slots[f], i] = 0
