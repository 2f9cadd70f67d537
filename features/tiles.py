"""What a group of streaming features keeps of its entities, by slot.

Windows of one value and condition with tiles of one width share them, whatever their lengths and aggregates: they are one
`Tiles`. Last values are kept in `Lasts`.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from features.growing import Growing
from features.spec import Last, Window, seconds
from features.streaming import Group
from kernels.last_values import cpu as last_values
from kernels.windows import cpu as windows

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]

MICROSECONDS = 1_000_000
NO_SKETCH = {name: np.frombuffer(b"", kind) for name, kind in (("filled", "u2"), ("registers", "u1"), ("ranks", "u1"))}


class Tiles:
    """The tiles of windows that differ in length and aggregates only."""

    def __init__(self, group: Group, members: Sequence[tuple[Window, Sequence[int]]]) -> None:
        """members: windows, each with its rows of the output."""
        members = sorted(members, key=lambda member: seconds(member[0].over))
        first = members[0][0]
        aggregates = [windows.AGGREGATES.index(agg) for window, _ in members for agg in window.aggs]
        fields = sorted({field for window, _ in members for agg in window.aggs for field in windows.NEEDS.get(agg, ())})
        columns = np.full(len(windows.FIELDS), -1)
        columns[fields] = np.arange(len(fields)) + 1
        taken = {each.kind: group.inputs.index(each) for window, _ in members for each in window.inputs}
        self._distinct = any("distinct" in window.aggs for window, _ in members)
        plain = next(taken[kind] for kind in ("number", "presence", "code") if kind in taken)
        self._inputs = plain, taken.get("code", plain)
        self._condition = group.conditions.index(first.where)
        spans = np.array([seconds(window.over) // window.tile_seconds + 1 for window, _ in members])
        half_life = seconds(first.half_life) / first.tile_seconds if first.half_life else 0.0
        self._plan = (
            first.tile_seconds * MICROSECONDS,
            first.late == "use",
            spans,
            np.cumsum([0, *(len(window.aggs) for window, _ in members)]),
            np.array(aggregates),
            np.array([row for _, rows in members for row in rows]),
            columns,
            0.5 ** (np.arange(spans[-1]) / half_life) if half_life else np.empty(0),
            half_life * first.tile_seconds * MICROSECONDS,
        )
        self._fields = len(fields)
        self._more = windows.more(fields, self._distinct)
        words = windows.width(len(fields), self._distinct)
        self._rows = words, windows.places(words)
        self._starts, self._heap = Growing((), np.int32), windows.new_heap()
        self._pool = Growing((windows.LINE,), np.float64)
        self._room(0)
        self.used_late = self.dropped_late = 0

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(array.nbytes for array in (self._starts.array, self._heap, self._pool.array))

    @property
    def _state(self) -> tuple[I32, I64, F64, I64, npt.NDArray[np.uint8]]:
        """What the kernels take; while it is held, the pool cannot grow in place."""
        pool = self._pool.array.reshape(-1)
        return self._starts.array, self._heap, pool, pool.view(np.int64), pool.view(np.uint8)

    def update(self, slots: I32, times: I64, values: F64, bits: npt.NDArray[np.uint32], out: F64) -> None:
        """Reads and updates, event by event; fills its rows of out."""
        progress = np.zeros(5, np.int64)
        number, code = self._inputs
        while progress[windows.NEXT] < len(slots):
            if progress[windows.WANTED]:
                self._room(int(progress[windows.WANTED]))
            windows.window(
                slots,
                times,
                values[number],
                values[code],
                bits,
                self._condition,
                *self._plan,
                *self._rows,
                *self._state,
                progress,
                out,
                self._more,
            )
        self.used_late += int(progress[windows.USED_LATE])
        self.dropped_late += int(progress[windows.DROPPED_LATE])

    def grow(self, slots: int) -> None:
        """Makes room for so many slots."""
        self._starts.grow(slots)

    def _room(self, lines: int) -> None:
        self._pool.grow(int(self._heap[windows.TOP]) + lines)

    def clear(self, slots: I32) -> None:
        """Empties slots."""
        starts, heap, _, whole, _ = self._state
        windows.clear(slots, starts, heap, whole)

    def dump(self, slots: I64) -> Arrays:
        """What these slots hold."""
        starts, _, pool, whole, registers = self._state
        sizes = np.empty(len(slots), np.int32)
        windows.count(slots, starts, whole, sizes)
        rows = int(sizes.sum())
        packed, filled = np.empty((rows, 2 + self._fields)), np.empty(rows if self._distinct else 0, np.uint16)
        found = np.empty((2, len(filled) * windows.REGISTERS), np.uint8)
        count = windows.pack(slots, *self._rows, starts, pool, whole, registers, packed, filled, *found)
        arrays: Arrays = {"sizes": sizes, "tiles": packed}
        return (
            arrays | {"filled": filled, "registers": found[0, :count], "ranks": found[1, :count]} if self._distinct else arrays
        )

    def load(self, slots: I32, arrays: Arrays) -> None:
        """The reverse, into empty slots; -1 where one is not wanted."""
        sizes, packed = arrays["sizes"], arrays["tiles"]
        self._room(windows.lines(sizes[slots >= 0], self._rows[1]))
        sketch = [arrays.get(name, none) for name, none in NO_SKETCH.items()]
        windows.unpack(slots, sizes, packed, *sketch, *self._rows, *self._state)


class Lasts:
    """The last values of one feature."""

    def __init__(self, group: Group, feature: Last, rows: range) -> None:
        self._rows = slice(rows.start, rows.stop)
        self._inputs = np.array([group.inputs.index(each) for each in feature.inputs], np.int64)
        self._condition = group.conditions.index(feature.where)
        self._within = seconds(feature.within) * MICROSECONDS
        self._seen_at = Growing((len(rows),), np.int64)
        self._seen = Growing((len(rows),), np.float64)
        self.used_late = self.dropped_late = 0

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return self._seen_at.array.nbytes + self._seen.array.nbytes

    def update(self, slots: I32, times: I64, values: F64, bits: npt.NDArray[np.uint32], out: F64) -> None:
        """Reads and updates, event by event; fills its rows of out."""
        state = self._seen_at.array, self._seen.array
        last_values.last(slots, times, values, self._inputs, bits, self._condition, self._within, *state, out[self._rows])

    def grow(self, slots: int) -> None:
        """Makes room for so many slots."""
        before = len(self._seen_at)
        self._seen_at.grow(slots)
        self._seen.grow(slots)
        self._seen_at.array[before:] = last_values.NEVER

    def clear(self, slots: I32) -> None:
        """Empties slots."""
        self._seen_at.array[slots] = last_values.NEVER

    def dump(self, slots: I64) -> Arrays:
        """What these slots hold."""
        return {"seen_at": self._seen_at.array[slots], "seen": self._seen.array[slots]}

    def load(self, slots: I32, arrays: Arrays) -> None:
        """The reverse, into empty slots; -1 where one is not wanted."""
        wanted = slots >= 0
        self._seen_at.array[slots[wanted]] = arrays["seen_at"][wanted]
        self._seen.array[slots[wanted]] = arrays["seen"][wanted]


def stores(group: Group) -> list[Tiles | Lasts]:
    """What holds the group's features."""
    rows, at = [], 0
    for feature in group.features:
        rows.append(range(at, at + len(feature.names)))
        at += len(feature.names)
    made: list[Tiles | Lasts] = []
    members = [(feature, of) for feature, of in zip(group.features, rows, strict=True) if isinstance(feature, Window)]
    for _, alike in groupby(sorted(members, key=lambda member: _tiles(member[0])), key=lambda member: _tiles(member[0])):
        made.append(Tiles(group, list(alike)))
    for feature, of in zip(group.features, rows, strict=True):
        if isinstance(feature, Last):
            made.append(Lasts(group, feature, of))
    return made


def _tiles(window: Window) -> tuple[Any, ...]:
    """What windows have in common that share tiles."""
    return window.where, window.value, window.tile_seconds, window.half_life, window.late
