"""The rows of a service's views that a worker holds: bounded arrays, found by the hash of the entity."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.views import View
from kernels.stored_rows import cpu

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FIRST_ROWS = 64


class Given(NamedTuple):
    """What n events are given: values float32 [F, n] and flags int64 [n]. missed uint8 [V, n]: which rows are not there
    (ABSENT) and which should have been read again (LATE); absent, late: how many. held int64 [V, n]: the rows' times,
    cpu.NONE where there is none."""

    values: F32
    flags: I64
    missed: U8
    held: I64
    absent: int
    late: int


@dataclass(frozen=True)
class Fetched:
    """k entities of a view as the store has them: values float32 [f, k], times int64 [k] in microseconds, cpu.NONE where
    there is no such entity."""

    values: F32
    times: I64


Read = Callable[[View, Sequence[bytes]], Fetched]


class Rows:
    """The rows of V views over C hashed columns, at most `most` of each (or as many as a batch has, if that is more).

    One thread reads; any may write. parts: for each view the columns of its entity. refuses: for each view. refresh_us: for
    each view, how long a row is good before it should be read again; it is due at a moment of its own, after 50% to 80%
    of that, so that rows do not all come due together, and are read in time.
    """

    def __init__(
        self,
        views: Sequence[View],
        parts: Sequence[Sequence[int]],
        refuses: Sequence[bool],
        refresh_us: Sequence[int],
        most: int,
    ) -> None:
        V = len(views)
        self._views = np.full((V, cpu.PARTS + max(map(len, parts))), -1, np.int64)
        column = 0
        for v, view in enumerate(views):
            width = len(view.features)
            self._views[v, : cpu.PARTS] = 0, 0, width, column, view.ttl_us, refuses[v], 0
            self._views[v, cpu.PARTS : cpu.PARTS + len(parts[v])] = parts[v]
            column += width
        self._counts = np.zeros((V, cpu.COUNTS), np.int64)
        self._most = most
        self._refresh_us = refresh_us
        self._tick = 0
        self._entities: list[npt.NDArray[Any]] = [np.empty(0, object) for _ in views]
        self._look_from = [0] * V
        self._writing = threading.Lock()
        self._arrays = (
            self._views, np.zeros(16, np.uint64), np.full(16, -1, np.int32),
            np.zeros((0, cpu.META), np.int64), np.zeros(0, np.float32),
        )  # fmt: skip
        with self._writing:
            self._make_room([min(most, FIRST_ROWS)] * V)
        for v, view in enumerate(views[:1]):  # kernels are compiled now, not when the first event waits
            self.put(
                v, np.zeros(0, np.uint64), [], Fetched(np.zeros((len(view.features), 0), np.float32), np.zeros(0, np.int64)), 0
            )
            self.due(v, 0, 1)

    def read(self, hashes: U64, fill: F32, times_us: I64, now_us: int, wall: bool) -> Given:
        """What n events at times int64 [n] are given at now_us, from hashes uint64 [C, n] (kernels/stored_rows)."""
        n, V = len(times_us), len(self._views)
        self._tick += 1
        out, flags = np.empty((len(fill), n), np.float32), np.empty(n, np.int64)
        missed, held = np.empty((V, n), np.uint8), np.empty((V, n), np.int64)
        absent, late = cpu.read(
            hashes, *self._arrays, fill, times_us, now_us, wall, self._tick, out, flags, missed, held,
        )  # fmt: skip
        return Given(out, flags, missed, held, absent, late)

    def missing(self, view: int, hashes: U64, missed: U8) -> tuple[U64, I64]:
        """The hashes of the view's entities that are missed, each once, and the first event of each."""
        events = np.flatnonzero(missed[view])
        found = np.empty(hashes.shape[1], np.uint64)
        cpu.entity(hashes, self._views, view, found)
        unique, first = np.unique(found[events], return_index=True)
        return unique, events[first]

    def put(
        self,
        view: int,
        hashes: U64,
        entities: Sequence[bytes],
        fetched: Fetched,
        now_us: int,
        room: int = 0,
        only_known: bool = False,
    ) -> None:
        """Writes rows of k different entities, read from the store at now_us. room: how many rows are needed at once.

        only_known: those that are no longer held are left out.
        """
        refresh = self._refresh_us[view]
        spread = 0.5 + 0.3 * (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53
        due = now_us + (refresh * spread).astype(np.int64)
        rows = np.empty(len(hashes), np.int32)
        with self._writing:
            if not only_known:
                self._make_room([self._wanted(v, len(hashes) * (v == view), room) for v in range(len(self._views))])
            views, *table = self._arrays
            cpu.put(
                view, hashes, views, self._counts, *table, fetched.values, fetched.times,
                now_us + refresh, due, self._tick, only_known, rows,
            )  # fmt: skip
            kept = rows >= 0
            names = np.empty(len(entities), object)
            names[:] = entities
            self._entities[view][rows[kept]] = names[kept]

    def due(self, view: int, now_us: int, most: int, look: int = 16_384) -> tuple[U64, list[bytes]]:
        """Up to `most` rows that are due, of the next `look`: their hashes and entities."""
        found = np.empty(most, np.int64)
        with self._writing:
            views, _, _, meta, _ = self._arrays
            count, self._look_from[view] = cpu.find_due(
                view, views, self._counts, meta, now_us, self._look_from[view], look, found
            )
            rows = found[:count]
            keys = meta[views[view, cpu.FIRST] + rows, cpu.KEY].view(np.uint64)
            return cpu.hash_of(keys, view), self._entities[view][rows].tolist()

    def held(self, view: int) -> int:
        """How many rows it holds of a view."""
        return int(self._counts[view, cpu.USED])

    def given_up(self, view: int) -> int:
        """How many rows of a view made room for others."""
        return int(self._counts[view, cpu.GIVEN_UP])

    def _wanted(self, view: int, more: int, room: int) -> int:
        """How many rows a view should have room for when `more` come."""
        capacity = int(self._views[view, cpu.CAPACITY])
        wanted = self.held(view) + more
        return capacity if wanted <= capacity else max(capacity, min(max(wanted, 2 * capacity), max(self._most, room, more)))

    def _make_room(self, capacities: Sequence[int]) -> None:
        """Larger arrays with the same rows, if these are not large enough; a reader goes on with the old ones meanwhile."""
        old = self._arrays
        views, keys, slots, meta, values = old
        if capacities == views[:, cpu.CAPACITY].tolist():
            return
        views = views.copy()
        views[:, cpu.CAPACITY] = capacities
        views[:, cpu.FIRST] = np.cumsum([0, *capacities[:-1]])
        views[:, cpu.BASE] = np.cumsum([0, *(views[:, cpu.WIDTH] * capacities)[:-1]])
        meta = np.empty((sum(capacities), cpu.META), np.int64)
        values = np.empty(int((views[:, cpu.WIDTH] * capacities).sum()), np.float32)
        for v, (before, after) in enumerate(zip(old[0], views, strict=True)):
            used, width = self.held(v), before[cpu.WIDTH]
            meta[after[cpu.FIRST] :][:used] = old[3][before[cpu.FIRST] :][:used]
            values[after[cpu.BASE] :][: used * width] = old[4][before[cpu.BASE] :][: used * width]
            entities = np.empty(capacities[v], object)
            entities[:used] = self._entities[v][:used]
            self._entities[v] = entities
        if len(keys) < 2 * sum(capacities):
            size = 1 << (2 * sum(capacities) - 1).bit_length()
            keys, slots = np.zeros(size, np.uint64), np.full(size, -1, np.int32)
            cpu.rehash(old[1], old[2], keys, slots)
        self._views = views
        self._arrays = views, keys, slots, meta, values
