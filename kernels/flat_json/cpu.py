"""The messages of an Arrow binary column in one pass over its bytes. kernels/flat_json/naive.py is the definition.

Taken is what is plain and certain: a flat object, strings without escapes, numbers that round for certain, right types, values
in their bounds, no field twice. Everything else is left to the definition, and so is everything wrong. Of a vector only the
place is found: kernels/float_list reads it.

One file, because Numba's cache knows a compiled function by its own file: it would keep what an edited import was.
"""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
BOOL = npt.NDArray[np.bool_]
TEXT, NUMBER, INTEGER, TIME, KIND, VECTOR, VECTOR_TEXT = range(7)
QUOTE, COMMA, COLON, OPEN, CLOSE, MINUS, BRACKET, END_BRACKET = (ord(c) for c in '",:{}-[]')
LITERALS = np.frombuffer(b"truenullfalse", np.uint8)
HIGHEST = np.uint64(2**63 - 1)
MOST_DIGITS = 19
MOST_EXPONENT = 40
UNCERTAIN = -(2**63)
U0, U1, U10, U11, U32, U63 = (np.uint64(n) for n in (0, 1, 10, 11, 32, 63))
LOW32 = np.uint64(2**32 - 1)
ONES = np.uint64(2**64 - 1)
TEN = np.uint64(10)
EXACT = np.uint64(2**53)
POWERS = np.array([float(10**k) for k in range(23)])
DAYS_BEFORE = np.array([0, 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365])
DAYS_TO_1970 = 1969 * 365 + 1969 // 4 - 1969 // 100 + 1969 // 400


def _fives() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """5**q as 128 bits with the first one set, cut off (not rounded), times 2**e: uint64 [2, 81] and e int64 [81]."""
    bits, exponents = np.empty((2, 2 * MOST_EXPONENT + 1), np.uint64), np.empty(2 * MOST_EXPONENT + 1, np.int64)
    for at in range(2 * MOST_EXPONENT + 1):
        q = at - MOST_EXPONENT
        five = 5 ** abs(q)
        length = five.bit_length()
        exponents[at] = length - 128 if q >= 0 else -(127 + length)
        whole = five << (128 - length) if q >= 0 else (1 << (127 + length)) // five
        bits[0, at], bits[1, at] = whole >> 64, whole & (2**64 - 1)
    return bits, exponents


FIVES, FIVES_EXPONENT = _fives()


@njit(cache=True, nogil=True)
def byte(data: U8, p: int) -> int:
    """data[p] for p >= 0, without the look whether p counts from the end."""
    return int(np.int64(data[np.uint64(p)]))


@njit(cache=True, nogil=True)
def _product(a: np.uint64, b: np.uint64) -> tuple[np.uint64, np.uint64]:
    """The high and low 64 bits of a * b."""
    a1, a0, b1, b0 = a >> U32, a & LOW32, b >> U32, b & LOW32
    low, left, right = a0 * b0, a1 * b0, a0 * b1
    middle = (low >> U32) + (left & LOW32) + (right & LOW32)
    return a1 * b1 + (left >> U32) + (right >> U32) + (middle >> U32), a * b


@njit(cache=True, nogil=True)
def nearest(w: np.uint64, q: int) -> float:
    """The float64 nearest to w * 10**q; NaN where that is not certain.

    Exact operands up to 2**53 and 10**22 are rounded once, by the multiplication or division. Else w is multiplied with
    128 bits of 5**q: the true product lies less than 2**64 above the 192 bits computed, so that it is certain how it
    rounds unless the bits beyond the 53rd are those of a half or one step below it.
    """
    if w == U0:
        return 0.0
    if w <= EXACT and -22 <= q <= 22:
        return np.float64(w) / POWERS[-q] if q < 0 else np.float64(w) * POWERS[q]
    if q < -MOST_EXPONENT or q > MOST_EXPONENT:
        return np.nan
    exponent = FIVES_EXPONENT[q + MOST_EXPONENT] + q + 128
    for step in (32, 16, 8, 4, 2, 1):
        if w >> np.uint64(64 - step) == U0:
            w <<= np.uint64(step)
            exponent -= step
    top, low = _product(w, FIVES[0, q + MOST_EXPONENT])
    carried, _ = _product(w, FIVES[1, q + MOST_EXPONENT])
    rest = low + carried
    if rest < low:
        top += U1
    beyond = U11 if top >> U63 else U10
    half = U1 << (beyond - U1)
    tail = top & ((U1 << beyond) - U1)
    if (tail == half and rest == U0) or (tail == half - U1 and rest == ONES):
        return np.nan
    mantissa = (top >> beyond) + (U1 if tail >= half else U0)
    return math.ldexp(np.float64(mantissa), exponent + np.int64(beyond))


@njit(cache=True, nogil=True)
def number(data: U8, p: int) -> tuple[int, np.uint64, int, bool, bool]:
    """Reads the number at p, which a byte that is not of a number ends: the place after it or -1 where it is not plain,
    digits w, exponent q, is it negative, is it whole (no point, no exponent)."""
    negative = byte(data, p) == 45
    if negative:
        p += 1
    w, digits, q, whole = U0, 0, 0, True
    start = p
    c = byte(data, p) - 48
    while 0 <= c <= 9:
        w = w * TEN + np.uint64(c)
        if digits > 0 or c > 0:
            digits += 1
        p += 1
        c = byte(data, p) - 48
    if p == start or (p > start + 1 and byte(data, start) == 48):
        return -1, U0, 0, False, False
    if byte(data, p) == 46:
        whole = False
        p += 1
        start = p
        c = byte(data, p) - 48
        while 0 <= c <= 9:
            w = w * TEN + np.uint64(c)
            if digits > 0 or c > 0:
                digits += 1
            p += 1
            c = byte(data, p) - 48
        if p == start:
            return -1, U0, 0, False, False
        q = start - p
    if byte(data, p) == 101 or byte(data, p) == 69:
        whole = False
        p += 1
        sign = -1 if byte(data, p) == 45 else 1
        if byte(data, p) == 45 or byte(data, p) == 43:
            p += 1
        start = p
        exponent = 0
        c = byte(data, p) - 48
        while 0 <= c <= 9 and p < start + 3:
            exponent = exponent * 10 + c
            p += 1
            c = byte(data, p) - 48
        if p == start or p == start + 3:
            return -1, U0, 0, False, False
        q += sign * exponent
    if digits > MOST_DIGITS or q < -MOST_EXPONENT or q > MOST_EXPONENT:
        return -1, U0, 0, False, False
    return p, w, q, negative, whole


@njit(cache=True, nogil=True)
def _digits(data: U8, p: int, count: int) -> int:
    """The whole number of `count` digits at p; a negative number below -10**9 if one is none."""
    value = 0
    for at in range(p, p + count):
        c = byte(data, at) - 48
        if c < 0 or c > 9:
            return -(10**12)
        value = value * 10 + c
    return value


@njit(cache=True, nogil=True)
def time(data: U8, p: int, end: int) -> int:
    """Microseconds since 1970-01-01 of the text YYYY-MM-DDTHH:MM:SS[.f]Z in data[p:end], f of 1 to 6 digits; else UNCERTAIN."""
    size = end - p
    if size < 20 or size > 27 or size == 21 or byte(data, end - 1) != 90 or byte(data, p + 10) != 84:
        return UNCERTAIN
    if byte(data, p + 4) != 45 or byte(data, p + 7) != 45 or byte(data, p + 13) != 58 or byte(data, p + 16) != 58:
        return UNCERTAIN
    year, month, day = _digits(data, p, 4), _digits(data, p + 5, 2), _digits(data, p + 8, 2)
    hour, minute, second = _digits(data, p + 11, 2), _digits(data, p + 14, 2), _digits(data, p + 17, 2)
    if year < 1 or month < 1 or month > 12 or day < 1 or hour < 0 or minute < 0 or second < 0:
        return UNCERTAIN
    if hour > 23 or minute > 59 or second > 59:
        return UNCERTAIN
    leap = 1 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 0
    if day > DAYS_BEFORE[month + 1] - DAYS_BEFORE[month] + (leap if month == 2 else 0):
        return UNCERTAIN
    fraction = 0
    if size > 20:
        fraction = _digits(data, p + 20, size - 21)
        if byte(data, p + 19) != 46 or fraction < 0:
            return UNCERTAIN
        for _ in range(27 - size):
            fraction *= 10
    past = year - 1
    days = past * 365 + past // 4 - past // 100 + past // 400 - DAYS_TO_1970
    days += DAYS_BEFORE[month] + (leap if month > 2 else 0) + day - 1
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + fraction


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
def _until(data: U8, p: int, end: int, wanted: int) -> int:
    """The place of the first byte `wanted` in data[p:end], or end. Whole blocks are looked at in one go."""
    while p + 64 <= end:
        found = False
        for at in range(p, p + 64):
            found |= byte(data, at) == wanted
        if found:
            break
        p += 64
    while p < end and byte(data, p) != wanted:
        p += 1
    return p


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
    int32 [*, m] (texts and the insides of vectors, places in data), valid bool [F, m], all zero before; m >= n. rare bool [n]:
    the message was not taken, and its row holds zeros.
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
            if (c == BRACKET and kind_of_value == VECTOR) or (c == QUOTE and kind_of_value == VECTOR_TEXT):
                p += 1
                q = _until(data, p, end - 1, END_BRACKET if c == BRACKET else QUOTE)
                if q == end - 1:
                    break
                starts[slot, i], lengths[slot, i] = p, q - p
                p = q + 1
            elif c == QUOTE:
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
                    taken &= not (seen and types[f] >= VECTOR)  # nobody would look whether it is JSON
        rare[i] = not taken
        if clear or not taken:
            for f in range(fields):
                if not (taken and on[row, f]):
                    valid[f, i] = False
                    if types[f] == NUMBER:
                        floats[slots[f], i] = 0.0
                    elif types[f] in (TEXT, VECTOR, VECTOR_TEXT):
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
