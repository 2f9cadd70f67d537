"""The rows with Numba. kernels/json_rows/naive.py is the definition.

What a row needs at most is known before it is written, so the kernel writes without looking where the buffer ends.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
CONSTANT, INTEGER, WORD, TIME, FLOAT, PLAIN, QUOTED = range(7)
KINDS = {"integer": INTEGER, "time": TIME, "float": FLOAT, "plain": PLAIN, "quoted": QUOTED}
LONGEST = {INTEGER: 20, TIME: 29, FLOAT: 24}
LONGEST_ESCAPE = 6
MOST_FLOAT32_DIGITS = 9
SURELY, MOST_FIVES, EXACT = 4e-16, 13, 2**53
"""What w * 10**places is as a float64 may be off by SURELY. It is exact where w * 5**places is below 2**53 (EXACT; an int64
takes it for up to 13 places): as it is for every text that lies in the middle between two float32s, which one of them is read
from for certain."""
DAY_US = 86_400_000_000
YEAR_1, YEAR_10000 = -62_135_596_800_000_000, 253_402_300_800_000_000
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
NULL = np.frombuffer(b"null", np.uint8)
NO_BYTES = np.empty(0, np.uint8)


Slot = Literal["integer", "time", "float", "plain", "quoted"]


class Words:
    """Texts that rows pick by code. The list may grow between calls, at its end."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.texts = list(texts)


Part: TypeAlias = "str | tuple[Slot] | Words"


class Writer:
    """Writes rows of text that are made of the same parts each time.

    parts: a constant text; ("integer",) for a column of int64 in decimal; ("time",) for microseconds since 1970-01-01 UTC,
    from YEAR_1 up to but not including YEAR_10000, as quoted RFC 3339 text with six digits; ("float",) for float32, the fewest
    digits that read back the same, null if not finite; ("plain",) for an Arrow column of
    strings without nulls, as they are, ("quoted",) as JSON strings; Words for a column of codes.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        merged: list[Part] = []
        for part in parts:
            last = merged[-1] if merged else None
            if isinstance(part, str) and isinstance(last, str):
                merged[-1] = last + part
            else:
                merged.append(part)
        self._parts = merged
        self._kinds, self._at, self._base = np.zeros((3, len(merged)), np.int32)
        self._words = [part for part in merged if isinstance(part, Words)]
        self._sizes: list[int] | None = None
        self._numbers = self._strings = 0
        for place, part in enumerate(merged):
            if isinstance(part, str):
                self._kinds[place] = CONSTANT
                continue
            kind = self._kinds[place] = WORD if isinstance(part, Words) else KINDS[part[0]]
            if kind in (PLAIN, QUOTED):
                self._at[place] = self._strings
                self._strings += 1
            else:
                self._at[place] = self._numbers
                self._numbers += 1
        self._columns = [kind for kind in self._kinds.tolist() if kind != CONSTANT]

    def _layout(self) -> None:
        """The table of constants and words, and the most that a row takes without its strings."""
        table, places, self._width = bytearray(), [0], 0
        for place, part in enumerate(self._parts):
            self._base[place] = len(places) - 1
            longest = LONGEST.get(int(self._kinds[place]), 0)
            for text in [part] if isinstance(part, str) else part.texts if isinstance(part, Words) else []:
                encoded = text.encode()
                table += encoded
                places.append(len(table))
                longest = max(longest, len(encoded))
            self._width += longest
        self._table, self._places = np.frombuffer(bytes(table), np.uint8), np.array(places, np.int32)
        self._sizes = [len(words.texts) for words in self._words]

    def _write(self, columns: Sequence[Any], n: int) -> tuple[U8, I64]:
        """The bytes of all rows, and where each begins and ends [n + 1]."""
        if self._sizes != [len(words.texts) for words in self._words]:
            self._layout()
        numbers = np.empty((self._numbers, n), np.int64)
        floats = numbers.view(np.float64)
        edges = np.empty((self._strings, n + 1), np.int32)
        data: list[U8] = []
        number = text = used = room = 0
        for kind, column in zip(self._columns, columns, strict=True):
            if kind not in (PLAIN, QUOTED):
                (floats if kind == FLOAT else numbers)[number] = column
                number += 1
                continue
            ends, characters = _buffers(column)
            edges[text] = ends
            edges[text] += np.int32(used)
            used += len(characters)
            room += len(characters) if kind == PLAIN else LONGEST_ESCAPE * len(characters) + 2 * n
            data.append(characters)
            text += 1
        out, places = np.empty(self._width * n + room, np.uint8), np.empty(n + 1, np.int64)
        strings = data[0] if len(data) == 1 else np.concatenate(data) if data else NO_BYTES
        strings.flags.writeable = False  # as some are: else Numba compiles for each kind, mid-stream
        write(self._kinds, self._at, self._base, self._table, self._places, numbers, floats, edges, strings, out, places)
        return out, places

    def rows(self, columns: Sequence[Any], n: int) -> list[bytes]:
        """n rows, from a column [n] for each part that is not constant, in order."""
        out, ends = self._write(columns, n)
        whole, places = out[: ends[-1]].tobytes(), ends.tolist()
        return [whole[a:b] for a, b in pairwise(places)]

    def texts(self, columns: Sequence[Any], n: int) -> pa.Array:
        """The same as an Arrow column of strings."""
        out, ends = self._write(columns, n)
        return pa.Array.from_buffers(pa.string(), n, [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(out)])


def _buffers(column: pa.Array) -> tuple[I32, U8]:
    """Where each string ends, from 0 on [n + 1], and the bytes of all."""
    _, offsets, data = column.buffers()
    if not len(column):
        return np.zeros(1, np.int32), NO_BYTES
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    if data is None:
        return ends, NO_BYTES
    start = int(ends[0])
    return ends - np.int32(start), np.frombuffer(data, np.uint8)[start : int(ends[-1])]


@njit(cache=True, nogil=True)
def _digits(out: U8, p: int, value: int, count: int) -> int:
    """Writes the last `count` digits of a value >= 0."""
    for k in range(count - 1, -1, -1):
        out[p + k] = 48 + value % 10
        value //= 10
    return p + count


@njit(cache=True, nogil=True)
def _integer(out: U8, p: int, value: int) -> int:
    left = np.uint64(value)
    if value < 0:
        out[p] = 45
        p += 1
        left = np.uint64(0) - left
    count, power = 1, left
    while power >= np.uint64(10):
        power //= np.uint64(10)
        count += 1
    for k in range(count - 1, -1, -1):
        out[p + k] = np.uint8(np.uint64(48) + left % np.uint64(10))
        left //= np.uint64(10)
    return p + count


@njit(cache=True, nogil=True)
def _time(out: U8, p: int, micros: int) -> int:
    """Writes a quoted time. The date is that of a day's number by 400-year eras that begin in March."""
    days, rest = micros // DAY_US, micros % DAY_US
    shifted = days + 719_468
    era = shifted // 146_097
    of_era = shifted - era * 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    day = of_year - (153 * month + 2) // 5 + 1
    month = month + 3 if month < 10 else month - 9
    year += era * 400 + (1 if month <= 2 else 0)
    seconds = rest // 1_000_000
    out[p] = 34
    p = _digits(out, p + 1, year, 4)
    out[p] = 45
    p = _digits(out, p + 1, month, 2)
    out[p] = 45
    p = _digits(out, p + 1, day, 2)
    out[p] = 84
    p = _digits(out, p + 1, seconds // 3600, 2)
    out[p] = 58
    p = _digits(out, p + 1, seconds // 60 % 60, 2)
    out[p] = 58
    p = _digits(out, p + 1, seconds % 60, 2)
    out[p] = 46
    p = _digits(out, p + 1, rest % 1_000_000, 6)
    out[p] = 90
    out[p + 1] = 34
    return p + 2


@njit(cache=True, nogil=True)
def _float(out: U8, p: int, value: float) -> int:
    """Writes a float32: the fewest digits w such that w * 10**-q is nearest to it, for certain."""
    if not np.isfinite(value):
        for k in range(4):
            out[p + k] = NULL[k]
        return p + 4
    if value < 0:
        out[p] = 45
        p += 1
        value = -value
    if value == 0:
        out[p] = 48
        return p + 1
    exponent = math.floor(math.log10(value))
    w, q = 0, 0
    for digits in range(1, MOST_FLOAT32_DIGITS + 1):
        q = digits - 1 - exponent
        w = int(np.rint(value * 10.0**q)) if q >= 0 else int(np.rint(value / 10.0**-q))
        back = w / 10.0**q if q >= 0 else w * 10.0**-q
        doubt = 0.0 if -MOST_FIVES <= q <= 0 and w * 5**-q < EXACT else SURELY
        if np.float32(back * (1 - doubt)) == value and np.float32(back * (1 + doubt)) == value:
            break
    while w % 10 == 0:
        w //= 10
        q -= 1
    digits, left = 0, w
    while left > 0:
        left //= 10
        digits += 1
    place = digits - q
    if -4 <= place <= 9:
        if q <= 0:
            p = _digits(out, p, w, digits)
            for _ in range(-q):
                out[p] = 48
                p += 1
            return p
        if place <= 0:
            out[p] = 48
            out[p + 1] = 46
            return _digits(out, p + 2, w, q)
        power = 10**q
        p = _digits(out, p, w // power, place)
        out[p] = 46
        return _digits(out, p + 1, w % power, q)
    power = 10 ** (digits - 1)
    out[p] = np.uint8(48 + w // power)
    p += 1
    if digits > 1:
        out[p] = 46
        p = _digits(out, p + 1, w % power, digits - 1)
    out[p] = 101
    p += 1
    if place < 1:
        out[p] = 45
        p += 1
    return _digits(out, p, abs(place - 1), 2)


@njit(cache=True, nogil=True)
def _quoted(out: U8, p: int, data: U8, start: int, end: int) -> int:
    out[p] = 34
    p += 1
    for k in range(start, end):
        c = data[k]
        if c >= 32 and c != 34 and c != 92:
            out[p] = c
            p += 1
            continue
        out[p] = 92
        short = 0
        if c == 34 or c == 92:
            short = c
        elif c == 8:
            short = 98
        elif c == 9:
            short = 116
        elif c == 10:
            short = 110
        elif c == 12:
            short = 102
        elif c == 13:
            short = 114
        if short:
            out[p + 1] = short
            p += 2
        else:
            out[p + 1] = 117
            out[p + 2] = 48
            out[p + 3] = 48
            out[p + 4] = HEX[c >> 4]
            out[p + 5] = HEX[c & 15]
            p += 6
    out[p] = 34
    return p + 1


@njit(cache=True, nogil=True)
def write(
    kinds: I32,
    at: I32,
    base: I32,
    words: U8,
    words_at: I32,
    numbers: I64,
    floats: F64,
    edges: I32,
    strings: U8,
    out: U8,
    ends: I64,
) -> None:
    """Writes n rows of P pieces to out, row i at out[ends[i] : ends[i + 1]].

    kinds, at, base int32 [P]: what a piece is; its row in numbers int64 [K, n] (INTEGER, TIME, the codes of WORD), in floats,
    the same memory (FLOAT), or in edges int32 [S, n + 1] (PLAIN, QUOTED: places in strings); and its first text in the table
    `words`, of which text t is words[words_at[t] : words_at[t + 1]] (CONSTANT, WORD).
    """
    p = 0
    ends[0] = 0
    for i in range(len(ends) - 1):
        for k in range(len(kinds)):
            kind = kinds[k]
            if kind in (CONSTANT, WORD):
                t = base[k] if kind == CONSTANT else base[k] + numbers[at[k], i]
                for q in range(words_at[t], words_at[t + 1]):
                    out[p] = words[q]
                    p += 1
            elif kind == INTEGER:
                p = _integer(out, p, numbers[at[k], i])
            elif kind == TIME:
                p = _time(out, p, numbers[at[k], i])
            elif kind == FLOAT:
                p = _float(out, p, floats[at[k], i])
            elif kind == PLAIN:
                for q in range(edges[at[k], i], edges[at[k], i + 1]):
                    out[p] = strings[q]
                    p += 1
            else:
                p = _quoted(out, p, strings, edges[at[k], i], edges[at[k], i + 1])
        ends[i + 1] = p
