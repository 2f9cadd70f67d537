"""The messages of an Arrow binary column in one pass over its bytes. kernels/flat_json/naive.py is the definition.

Taken is what is plain and certain: a flat object, strings without escapes, numbers that round for certain, right types, values
in their bounds, no field twice. Everything else is left to the definition, and so is everything wrong.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from kernels.flat_json.decimals import UNCERTAIN, byte, nearest, number, time

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]
TEXT, NUMBER, INTEGER, TIME, KIND = range(5)
QUOTE, COMMA, COLON, OPEN, CLOSE, MINUS = (ord(c) for c in '",:{}-')
LITERALS = np.frombuffer(b"truenullfalse", np.uint8)
HIGHEST = np.uint64(2**63 - 1)


@njit(cache=True, nogil=True)
def _is_space(c: int) -> bool:
    return c <= 32 and (c == 32 or c == 10 or c == 13 or c == 9)


@njit(cache=True, nogil=True)
def _spaces(data: U8, p: int) -> int:
    while _is_space(byte(data, p)):
        p += 1
    return p


@njit(cache=True, nogil=True)
def _inside(data: U8, p: int, end: int) -> tuple[int, int]:
    """Where the first member of the object data[p:end] or its closing brace is, and the place after that brace; -1 if none.

    Whatever stops at a brace needs no look at the end from here on.
    """
    while end > p and _is_space(byte(data, end - 1)):
        end -= 1
    if end - p < 2 or byte(data, end - 1) != CLOSE:
        return -1, -1
    p = _spaces(data, p)
    return (_spaces(data, p + 1), end) if byte(data, p) == OPEN else (-1, -1)


@njit(cache=True, nogil=True)
def _utf8(data: U8, p: int, end: int) -> int:
    """The length of the UTF-8 character of more than one byte at p, 0 if it is none (RFC 3629, section 4)."""
    c = byte(data, p)
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
        return 0
    if p + size > end or byte(data, p + 1) < low or byte(data, p + 1) > high:
        return 0
    for at in range(p + 2, p + size):
        if byte(data, at) < 0x80 or byte(data, at) > 0xBF:
            return 0
    return size


@njit(cache=True, nogil=True)
def _string(data: U8, p: int, end: int) -> int:
    """The place of the quote that ends the string begun before p; -1 for escapes, control characters, bad UTF-8 or no end."""
    while p < end:
        c = byte(data, p)
        if c == 34:
            return p
        if c < 32 or c == 92:
            return -1
        if c < 128:
            p += 1
        else:
            size = _utf8(data, p, end)
            if size == 0:
                return -1
            p += size
    return -1


@njit(cache=True, nogil=True)
def _is(data: U8, p: int, words: U8, start: int, end: int) -> bool:
    for at in range(start, end):
        if byte(data, p) != byte(words, at):
            return False
        p += 1
    return True


@njit(cache=True, nogil=True)
def _find(data: U8, p: int, end: int, words: U8, word_at: I32) -> int:
    """Which of the words is data[p:end]; -1 if none. Word k is words[word_at[k] : word_at[k + 1]]."""
    for k in range(len(word_at) - 1):
        if word_at[k + 1] - word_at[k] == end - p and _is(data, p, words, word_at[k], word_at[k + 1]):
            return k
    return -1


@njit(cache=True, nogil=True)
def _literal(data: U8, p: int, end: int) -> int:
    """The place after true, false or null at p; -1 if there is none."""
    for start in (0, 4, 8):
        size = 5 if start == 8 else 4
        if byte(data, p) == byte(LITERALS, start) and p + size < end and _is(data, p, LITERALS, start, start + size):
            return p + size
    return -1


@njit(cache=True, nogil=True)
def scan(
    data: U8,
    offsets: I32,
    present: BOOL,
    max_bytes: int,
    names: U8,
    name_at: I32,
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
    memo: I32,
    whole: I64,
    floats: F64,
    codes: I8,
    starts: I32,
    lengths: I32,
    valid: BOOL,
    rare: BOOL,
) -> None:
    """Reads n messages data[offsets[i] : offsets[i + 1]], but for those that are not present [n] ([0]: all are).

    Of F fields: names and name_at [F + 1], types int8 [F], slots int32 [F] (the field's row in the output of its type), bounds
    low, high (numbers) and whole_low, whole_high [F] (integers, times up to but not including the high one, a text's bytes).
    Of K kinds: kinds and kind_at [K + 1]; on and required bool [max(K, 1), F]: does the kind have the field, must it be there.
    memo int32 [K + 1, F + 1], kept between calls: which field came after which, by kind, -1 at first.

    Fills whole int64 [*, m] (integers; times in microseconds), floats [*, m], codes int8 [m] (kinds), starts and lengths
    int32 [*, m] (texts, places in data), valid bool [F, m], all zero before; m >= n. rare bool [n]: the message was not
    taken, and its row holds zeros.
    """
    fields = len(types)
    stamps = np.full(fields, -1, np.int64)
    for i in range(len(rare)):
        p, end = -1, -1
        if (len(present) == 0 or present[i]) and offsets[i + 1] - offsets[i] <= max_bytes:
            p, end = _inside(data, int(offsets[i]), int(offsets[i + 1]))
        taken = p >= 0 and p == end - 1
        kind = -1
        before = fields
        while 0 <= p < end - 1 and byte(data, p) == QUOTE:
            p += 1
            f = int(memo[kind + 1, before])
            if f >= 0:
                size = name_at[f + 1] - name_at[f]
                if p + size < end and byte(data, p + size) == QUOTE and _is(data, p, names, name_at[f], name_at[f + 1]):
                    p += size
                else:
                    f = -1
            if f < 0:
                q = _string(data, p, end)
                if q < 0:
                    break
                f = _find(data, p, q, names, name_at)
                p = q
                if f >= 0:
                    memo[kind + 1, before] = f
            p = _spaces(data, p + 1)
            if byte(data, p) != COLON:
                break
            p = _spaces(data, p + 1)
            kind_of_value, slot = -1, 0
            if f >= 0:
                if stamps[f] >> 1 == i:
                    break
                before = f
                stamps[f] = 2 * i + 1
                kind_of_value, slot = types[f], slots[f]
            c = byte(data, p)
            if c == QUOTE:
                p += 1
                q = _string(data, p, end)
                if q < 0:
                    break
                if kind_of_value == TEXT:
                    if q - p > whole_high[f]:
                        break
                    starts[slot, i], lengths[slot, i] = p, q - p
                elif kind_of_value == TIME:
                    micros = time(data, p, q)
                    if micros == UNCERTAIN or micros < whole_low[f] or micros >= whole_high[f]:
                        break
                    whole[slot, i] = micros
                elif kind_of_value == KIND:
                    kind = _find(data, p, q, kinds, kind_at)
                    if kind < 0:
                        break
                    codes[i] = kind
                elif f >= 0:
                    break
                p = q + 1
            elif c == MINUS or 48 <= c <= 57:
                p, digits, exponent, negative, plain = number(data, p)
                if p < 0:
                    break
                if kind_of_value == NUMBER:
                    value = nearest(digits, exponent)
                    if negative and not (plain and digits == 0):
                        value = -value
                    if not (low[f] <= value <= high[f]):
                        break
                    floats[slot, i] = value
                elif kind_of_value == INTEGER:
                    if not plain or digits > HIGHEST:
                        break
                    count = -int(np.int64(digits)) if negative else int(np.int64(digits))
                    if count < whole_low[f] or count > whole_high[f]:
                        break
                    whole[slot, i] = count
                elif f >= 0:
                    break
            else:
                q = _literal(data, p, end)
                if q < 0 or (f >= 0 and c != 110):
                    break
                if f >= 0:
                    stamps[f] = 2 * i
                p = q
            p = _spaces(data, p)
            if byte(data, p) == COMMA:
                p = _spaces(data, p + 1)
            else:
                taken = byte(data, p) == CLOSE and p == end - 1
                break
        if kind < 0 and len(kind_at) > 1:
            taken = False
        row = max(kind, 0)
        clear = False
        if taken:
            for f in range(fields):
                seen = stamps[f] == 2 * i + 1
                if on[row, f]:
                    valid[f, i] = seen
                    taken &= seen or not required[row, f]
                else:
                    clear |= seen
        rare[i] = not taken
        if clear or not taken:
            for f in range(fields):
                if not (taken and on[row, f]):
                    valid[f, i] = False
                    if types[f] == NUMBER:
                        floats[slots[f], i] = 0.0
                    elif types[f] == TEXT:
                        lengths[slots[f], i] = 0
                    elif types[f] == KIND:
                        codes[i] = 0
                    else:
                        whole[slots[f], i] = 0


@njit(cache=True, nogil=True)
def gather(data: U8, side: U8, starts: I32, lengths: I32, offsets: I32, out: U8) -> None:
    """Texts [t, n] to the offsets int32 [t, n + 1] of Arrow strings that share the bytes out [lengths.sum()].

    A text begins at its start in data, or, where that is negative, at -1 - start in side.
    """
    to = 0
    for t in range(len(offsets)):
        for i in range(offsets.shape[1] - 1):
            offsets[t, i] = to
            size = lengths[t, i]
            start = np.int64(starts[t, i])
            if start >= 0:
                for at in range(start, start + size):
                    out[to] = data[at]
                    to += 1
            else:
                for at in range(-1 - start, -1 - start + size):
                    out[to] = side[at]
                    to += 1
        offsets[t, -1] = to
