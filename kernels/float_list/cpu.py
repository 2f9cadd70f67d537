"""Lists of numbers with Numba, eight digits at a time. kernels/float_list/naive.py is the definition.

Taken is what is plain and certain: numbers of at most 19 digits that count, of which float32 is known without doubt. Everything
else is left to the definition, and so is everything wrong.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
BOOL = npt.NDArray[np.bool_]
COMMA, MINUS, PLUS, POINT, ZERO, SPACE, BIG_E, SMALL_E = (ord(c) for c in ",-+.0 Ee")
U0, U1, U8_, U10, U16, U32, U56 = (np.uint64(n) for n in (0, 1, 8, 10, 16, 32, 56))
ONES = np.uint64(0x0101010101010101)
ZEROS = np.uint64(0x3030303030303030)
NINES = np.uint64(0x7676767676767676)
TOPS = np.uint64(0x8080808080808080)
SEVEN, NINE, A_ZERO, A_POINT, A_COMMA = (np.uint64(n) for n in (7, 9, ZERO, POINT, COMMA))
PAIRS = np.uint64(0x000000FF000000FF)
HUNDREDS = np.uint64(100 + (1_000_000 << 32))
UNITS = np.uint64(1 + (10_000 << 32))
EXACT = np.uint64(2**53)
ROOM = np.array([10 ** (19 - k) for k in range(9)], np.uint64)
TENS = np.array([10**k for k in range(9)], np.uint64)
MOST_EXPONENT = 60
MOST_EXACT_EXPONENT = 22
POWERS = np.array([float(10**k) for k in range(MOST_EXPONENT + 1)])
DOUBT = 1e-15
"""More than what two or three roundings to float64 can be wrong by, relative to the value."""


@njit(cache=True, nogil=True)
def _byte(data: U8, p: int) -> int:
    return int(np.int64(data[np.uint64(p)]))


@njit(cache=True, nogil=True)
def _is_space(c: int, text: bool) -> bool:
    """Whether a byte is white space of JSON; inside a string only the space itself stands as it is."""
    return c <= SPACE and (c == SPACE or (not text and (c == 9 or c == 10 or c == 13)))


@njit(cache=True, nogil=True)
def _eight(data: U8, p: int) -> np.uint64:
    """The eight bytes at p, the first one lowest; the compiler makes one load of it."""
    at = np.uint64(p)
    word = np.uint64(data[at])
    for k in range(1, 8):
        word |= np.uint64(data[at + np.uint64(k)]) << np.uint64(8 * k)
    return word


@njit(cache=True, nogil=True)
def _edge(word: np.uint64) -> np.uint64:
    """The lowest bit of the first byte that is no digit, 0 if all eight are digits. word: bytes less "0", by xor."""
    other = (((word + NINES) | word) & TOPS) >> SEVEN
    return other & (~other + U1)


@njit(cache=True, nogil=True)
def _before(edge: np.uint64) -> int:
    """How many bytes are below that bit."""
    return int(np.int64((((edge - U1) & ONES) * ONES) >> U56))


@njit(cache=True, nogil=True)
def _value(word: np.uint64, count: int) -> np.uint64:
    """The number of the lowest `count` (1 to 8) bytes, digits less "0", the first one most significant."""
    word <<= np.uint64(64 - 8 * count)
    word = word * U10 + (word >> U8_)
    return ((word & PAIRS) * HUNDREDS + ((word >> U16) & PAIRS) * UNITS) >> U32


@njit(cache=True, nogil=True)
def _digits(data: U8, p: int, w: np.uint64) -> tuple[int, np.uint64, bool]:
    """Appends the digits at p to w: the place after them, w, and whether it still fits."""
    limit = len(data) - 8
    while p <= limit:
        word = _eight(data, p) ^ ZEROS
        count = _before(_edge(word))
        if count == 0:
            return p, w, True
        if w >= ROOM[count]:
            return p, w, False
        w = w * TENS[count] + _value(word, count)
        p += count
        if count < 8:
            return p, w, True
    c = _byte(data, p) - ZERO
    while 0 <= c <= 9:
        if w >= ROOM[1]:
            return p, w, False
        w = w * U10 + np.uint64(c)
        p += 1
        c = _byte(data, p) - ZERO
    return p, w, True


@njit(cache=True, nogil=True)
def _number(data: U8, p: int) -> tuple[int, np.uint64, int, bool]:
    """Reads the number at p, which a byte that is not of a number ends: the place after it or -1 where it is not plain, its
    digits w and exponent q, and whether it is negative."""
    negative = _byte(data, p) == MINUS
    if negative:
        p += 1
    start = p
    p, w, fits = _digits(data, p, U0)
    if not fits or p == start or (p > start + 1 and _byte(data, start) == ZERO):
        return -1, U0, 0, False
    q, whole = 0, True
    if _byte(data, p) == POINT:
        whole = False
        start = p + 1
        p, w, fits = _digits(data, start, w)
        if not fits or p == start:
            return -1, U0, 0, False
        q = start - p
    if _byte(data, p) == SMALL_E or _byte(data, p) == BIG_E:
        whole = False
        p += 1
        sign = -1 if _byte(data, p) == MINUS else 1
        if _byte(data, p) == MINUS or _byte(data, p) == PLUS:
            p += 1
        start = p
        exponent = 0
        c = _byte(data, p) - ZERO
        while 0 <= c <= 9 and p < start + 3:
            exponent = exponent * 10 + c
            p += 1
            c = _byte(data, p) - ZERO
        if p == start or p == start + 3:
            return -1, U0, 0, False
        q += sign * exponent
    if q < -MOST_EXPONENT or q > MOST_EXPONENT:
        return -1, U0, 0, False
    return p, w, q, negative and not (whole and w == U0)


@njit(cache=True, nogil=True)
def _alike(data: U8, p: int, size: int, text: bool, low: float, high: float, row: F32) -> bool:
    """Reads the list data[p : p + size] if all its numbers are written as a digit, a point and the same count of digits, from
    1 to 8, with nothing but commas between them. False: it is not such a list, and the row is not to be used.

    Then it is known where each number stands, and nothing has to be decided before all are read.
    """
    width = len(row)
    if size < 3 or p + 10 > len(data):
        return False
    count = _before(_edge(_eight(data, p + 2) ^ ZEROS))
    step = count + 3
    left = size - width * step
    if count == 0 or left < -1 or left > 0 or (left == 0 and not text) or p + (width - 1) * step + 10 > len(data):
        return False
    shift = np.uint64(64 - 8 * count)
    wanted, tens, power = TOPS >> shift, TENS[count], POWERS[count]
    bad, inside = U0, True
    for k in range(width):
        at = p + k * step
        word = _eight(data, at + 2) ^ ZEROS
        first = np.uint64(data[np.uint64(at)]) ^ A_ZERO
        bad |= ((word + NINES) | word) & wanted
        bad |= np.uint64(first > NINE) | (np.uint64(data[np.uint64(at + 1)]) ^ A_POINT)
        value = np.float64(np.int64(first * tens + _value(word, count))) / power
        inside &= low <= value <= high
        row[k] = value
    for k in range(width + left):
        bad |= np.uint64(data[np.uint64(p + (k + 1) * step - 1)]) ^ A_COMMA
    return bad == U0 and inside


@njit(cache=True, nogil=True)
def lists(
    data: U8,
    starts: I32,
    lengths: I32,
    present: BOOL,
    text: bool,
    low: float,
    high: float,
    out: F32,
    rare: BOOL,
) -> None:
    """Reads n lists data[starts[i] : starts[i] + lengths[i]] of numbers between commas into out float32 [n, width].

    present bool [n]: whether there is a list; the row is zero where not. A byte that belongs to no number must stand after
    each list. text: it is that of a JSON string, and a comma may stand at its end. low, high: what each number must be in.
    rare bool [n]: set where a list was not taken; its row is then not to be used.
    """
    width = out.shape[1]
    safe = len(data) - 10
    usual_edge, usual = U0, 8
    for i in range(len(starts)):
        if not present[i]:
            out[i, :] = 0
            continue
        p = np.int64(starts[i])
        end = p + lengths[i]
        row = out[i]
        if _alike(data, p, end - p, text, low, high, row):
            continue
        count = 0
        good = False
        while True:
            while _is_space(_byte(data, p), text):
                p += 1
            begin = p
            negative = False
            first = _byte(data, p) - ZERO
            if first == MINUS - ZERO:
                negative = True
                p += 1
                first = _byte(data, p) - ZERO
            q = 0
            if 0 <= first <= 9 and p <= safe and _byte(data, p + 1) == POINT:
                word = _eight(data, p + 2) ^ ZEROS
                edge = _edge(word)
                if edge != usual_edge:
                    usual_edge, usual = edge, _before(edge)
                w = np.uint64(first) * TENS[usual] + _value(word, usual)
                q = -usual
                p += 2 + usual
                if usual == 8 and 0 <= _byte(data, p) - ZERO <= 9:
                    nine = p
                    p, w, fits = _digits(data, p, w)
                    q = nine - p - 8 if fits else 0
            if q == 0 or _byte(data, p) | 32 == SMALL_E:
                p, w, q, negative = _number(data, begin)
                if p < 0:
                    break
            if w <= EXACT and -MOST_EXACT_EXPONENT <= q <= MOST_EXACT_EXPONENT:
                value = np.float64(w) / POWERS[-q] if q < 0 else np.float64(w) * POWERS[q]
                if negative:
                    value = -value
                rounded = np.float32(value)
                if not (low <= value <= high):
                    break
            else:
                value = np.float64(w) / POWERS[-q] if q < 0 else np.float64(w) * POWERS[q]
                if negative:
                    value = -value
                less, more = value * (1 - DOUBT), value * (1 + DOUBT)
                rounded = np.float32(less)
                if rounded != np.float32(more) or not (low <= less <= high and low <= more <= high):
                    break
            if count == width:
                break
            row[count] = rounded
            count += 1
            while _is_space(_byte(data, p), text):
                p += 1
            if _byte(data, p) == COMMA:
                p += 1
                if p < end or not text:
                    continue
            good = p == end and count == width
            break
        if not good:
            rare[i] = True
