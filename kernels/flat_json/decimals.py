"""Decimal numbers of JSON text to the nearest float64, and times to microseconds, where that is plain and certain."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

U8 = npt.NDArray[np.uint8]
MOST_DIGITS = 19
MOST_EXPONENT = 40
UNCERTAIN = -(2**63)
U0, U1, U10, U11, U32, U63, U64 = (np.uint64(n) for n in (0, 1, 10, 11, 32, 63, 64))
LOW32 = np.uint64(2**32 - 1)
ONES = np.uint64(2**64 - 1)
TEN = np.uint64(10)
EXACT = np.uint64(2**53)
POWERS = 10.0 ** np.arange(23)
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
        if w != U0:
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
            if w != U0:
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
