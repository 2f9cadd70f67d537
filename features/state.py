"""What a worker knows of a group of streaming features: entities with slots, and arrays by slot.

Windows of one value and condition with tiles of one width share them, whatever their lengths and aggregates: they are one
`Tiles`. Last values are kept in `Lasts`. Both are fed by the same slots.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from features.growing import Growing
from features.spec import Last, Window, seconds
from features.streaming import Cut, Group
from kernels.entities import cpu as entities
from kernels.last_values import cpu as last_values
from kernels.windows import cpu as windows

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
Dump = dict[str, Any]

STATE_VERSION = 3
MICROSECONDS = 1_000_000
UNBOUNDED = 2**62
FEW = 10_000
"""Entities that a state may hold before idle ones have to leave."""


class Tiles:
    """The tiles of windows that differ in length and aggregates only. out_rows: for each window, its rows of the output."""

    def __init__(self, group: Group, members: Sequence[tuple[Window, Sequence[int]]]) -> None:
        members = sorted(members, key=lambda member: seconds(member[0].over))
        first = members[0][0]
        aggregates = [windows.AGGREGATES.index(agg) for window, _ in members for agg in window.aggs]
        fields = sorted({field for window, _ in members for agg in window.aggs for field in windows.NEEDS.get(agg, ())})
        columns = np.full(len(windows.FIELDS), -1)
        columns[fields] = np.arange(len(fields)) + 2
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
        self._runs = Growing((4,), np.int32)
        self._heap = windows.new_heap()
        self._pool = Growing((2 + len(fields),), np.float64)
        self._sketch = Growing((windows.REGISTERS if self._distinct else 0,), np.uint8)
        self.used_late = self.dropped_late = 0

    def update(self, slots: I32, times: I64, values: F64, bits: npt.NDArray[np.uint32], out: F64) -> None:
        """Reads and updates, event by event; fills its rows of out."""
        progress = np.zeros(6, np.int64)
        number, code = self._inputs
        while progress[windows.NEXT] < len(slots):
            if progress[windows.WANTED]:
                self._room(int(progress[windows.WANTED]))
            state = self._runs.array, self._heap, self._pool.array, self._sketch.array
            windows.window(
                slots, times, values[number], values[code], bits, self._condition, *self._plan, *state, progress, out
            )
            del state  # what is looked at cannot grow
        self.used_late += int(progress[windows.USED_LATE])
        self.dropped_late += int(progress[windows.DROPPED_LATE])

    def grow(self, slots: int) -> None:
        """Makes room for so many slots."""
        self._runs.grow(slots)

    def _room(self, rows: int) -> None:
        self._pool.grow(int(self._heap[windows.TOP]) + rows)
        self._sketch.grow(len(self._pool))

    def clear(self, slots: I32) -> None:
        """Empties slots."""
        windows.clear(slots, self._runs.array, self._heap, self._pool.array)

    def dump(self, slots: I64) -> Arrays:
        """What these slots hold."""
        runs, pool, sketches = self._runs.array, self._pool.array, self._sketch.array
        sizes = runs[slots, windows.SIZE]
        packed, sketch = (np.empty((int(sizes.sum()), each.shape[1]), each.dtype) for each in (pool, sketches))
        windows.pack(slots, runs, pool, sketches, packed, sketch)
        return {"sizes": sizes, "tiles": packed} | ({"sketch": sketch} if self._distinct else {})

    def load(self, slots: I32, arrays: Arrays) -> None:
        """The reverse, into empty slots."""
        sizes, packed = arrays["sizes"], arrays["tiles"]
        sketch = arrays.get("sketch", np.empty((0, 0), np.uint8))
        self._room(windows.SMALLEST * len(slots) + 2 * int(sizes.sum()))
        windows.unpack(slots, sizes, packed, sketch, self._runs.array, self._heap, self._pool.array, self._sketch.array)


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
        """The reverse, into empty slots."""
        self._seen_at.array[slots], self._seen.array[slots] = arrays["seen_at"], arrays["seen"]


class State:
    """What a worker knows of one group.

    It may hold several shards at once; what is dumped and loaded is one shard, the entities whose hash is that number
    modulo the number of shards.
    """

    def __init__(self, group: Group, most: int = 0) -> None:
        """most: entities held; one more, and one that had no update for long leaves. 0: as many as there are."""
        self.group = group
        self._most = most or UNBOUNDED
        self._clock = -UNBOUNDED
        self._idle = retention(group) * MICROSECONDS
        self._table, self._books = entities.new_table(), entities.new_books()
        self._pinned, self._free = Growing((), np.int32), Growing((), np.int32)
        self._parts_of: tuple[int, ...] = ()
        self._parts: list[I64] = []
        self._stores = stores(group)
        self._features = [repr(feature) for feature in group.features]

    def update(self, cut: Cut, clock: int | None = None) -> F64:
        """Feeds a cut; returns the group's features [f, rows that read], NaN where there is no value.

        clock: the time in microseconds that the stream is known to have passed, by which entities count as idle; if not given,
        the latest of the rows fed before.
        """
        _, hashes, times, bits, values, _ = cut
        for array in (hashes, times, bits, values):
            array.flags.writeable = False  # as some are: else Numba compiles for each kind, mid-stream
        slots = self._slots(hashes, times, bits, self._clock if clock is None else clock)
        out = np.empty((len(self.group.names), int(np.count_nonzero(bits & 1))))
        for store in self._stores:
            store.update(slots, times, values, bits, out)
        if clock is None and len(times):
            self._clock = max(self._clock, int(times.max()))
        return out

    @property
    def late(self) -> tuple[int, int]:
        """Late updates used, and dropped, counted once for each window."""
        used = dropped = 0
        for store in self._stores:
            used, dropped = used + store.used_late, dropped + store.dropped_late
        return used, dropped

    @property
    def entities(self) -> tuple[int, int, int]:
        """How many entities are held, have expired, and were evicted."""
        books = self._books
        return int(books[entities.LIVE]), int(books[entities.EXPIRED]), int(books[entities.EVICTED])

    def dump(self, shard: int = 0, shards: int = 1) -> Dump:
        """One shard of the state as plain data: a versioned dict of (dtype, shape, bytes)."""
        now = shards, *self._books[[entities.ADDED, entities.EXPIRED, entities.EVICTED]].tolist()
        if self._parts_of != now:
            self._parts_of, self._parts = now, self._split(shards)
        entries = self._table[self._parts[shard]]
        here = (entries[:, 1] & entities.SLOT).astype(np.int64)
        arrays: Arrays = {"keys": entries[:, 0], "seconds": (entries[:, 1] >> entities.HALF).astype(np.uint32)}
        for j, store in enumerate(self._stores):
            arrays |= {f"{j}.{name}": array for name, array in store.dump(here).items()}
        return {
            "version": STATE_VERSION,
            "features": self._features,
            "clock": self._clock,
            "arrays": {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
        }

    def _split(self, shards: int) -> list[I64]:
        """The entries of the table of each shard."""
        filled = np.flatnonzero(self._table[:, 0])
        shard = (self._table[filled, 0] % np.uint64(shards)).astype(np.int64)
        order = np.argsort(shard, kind="stable")
        return np.split(filled[order], np.searchsorted(shard[order], np.arange(1, shards)))

    def load(self, dump: Dump) -> None:
        """Adds a shard. Raises ValueError for a dump of another version or of other features."""
        if dump["version"] != STATE_VERSION:
            raise ValueError(f"state of {self.group.entity}: expected version {STATE_VERSION}, got {dump['version']}")
        if dump["features"] != self._features:
            raise ValueError(f"state of {self.group.entity}: expected the features {self._features}, got {dump['features']}")
        arrays = {name: np.frombuffer(data, kind).reshape(shape) for name, (kind, shape, data) in dump["arrays"].items()}
        self._clock = max(self._clock, dump["clock"])
        keys, times = arrays["keys"], arrays["seconds"].astype(np.int64) * MICROSECONDS
        slots = self._slots(keys, times, np.full(len(keys), 2, np.uint32), -UNBOUNDED)
        for j, store in enumerate(self._stores):
            store.load(slots, {name[len(f"{j}.") :]: array for name, array in arrays.items() if name.startswith(f"{j}.")})

    def _slots(self, hashes: npt.NDArray[np.uint64], times: I64, bits: npt.NDArray[np.uint32], clock: int) -> I32:
        """The slot of each entity [n]; those that update get one if they have none, those that only read do not (-1)."""
        n, books = len(hashes), self._books
        out = np.empty(n, np.int32)
        used, held = int(books[entities.USED]), int(books[entities.LIVE])
        freed = np.empty(min(held, 2 * entities.LOOK * n), np.int32)
        self._table = entities.grown(self._table, held + n)
        self._pinned.grow(used + n)
        self._free.grow(used + n)
        since = (clock - self._idle) // MICROSECONDS
        room = self._table, self._pinned.array, self._free.array
        count = entities.place(*room, books, hashes, times, bits, since, min(FEW, self._most), self._most, out, freed)
        for store in self._stores:
            if count:
                store.clear(freed[:count])
            if books[entities.USED] > used:
                store.grow(int(books[entities.USED]))
        return out


def retention(group: Group) -> int:
    """Seconds after which an update cannot be seen any more by any feature of the group."""
    return max(
        seconds(each.over) + each.tile_seconds if isinstance(each, Window) else seconds(each.within) for each in group.features
    )


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
