"""The windows are what brute force over raw events says: every aggregate, ties, late events, reads of the past, any cut."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernels.windows import cpu, naive

EVENTS = st.lists(
    st.builds(
        naive.Event,
        slot=st.integers(-1, 2),
        time=st.integers(-40, 120),
        value=st.none() | st.integers(-1000, 1000).map(float),
        reads=st.booleans(),
        code=st.integers(0, 40).map(lambda k: k * 0x9E3779B97F4A7 % 2**52),
    ),
    max_size=80,
)
CUTS = st.lists(st.integers(0, 80), max_size=5)
CONDITION = 3
EXACT = ("count", "sum", "min", "max", "mean", "last", "age")
HALF_LIFE = 13.0


class Store:
    """A pool with what the aggregates of some windows need, poisoned; it grows by as little as it may."""

    def __init__(self, tile: int, spans: list[int], aggregates: tuple[str, ...], late: bool = True) -> None:
        order = [cpu.AGGREGATES.index(name) for name in aggregates]
        fields = sorted({field for name in aggregates for field in cpu.NEEDS.get(name, ())})
        columns = np.full(len(cpu.FIELDS), -1)
        columns[fields] = np.arange(len(fields)) + 1
        self.width = len(order) * len(spans)
        self.plan = (
            tile,
            late,
            np.array(spans),
            np.arange(len(spans) + 1) * len(order),
            np.array(order * len(spans)),
            np.arange(self.width)[::-1].copy(),
            columns,
            0.5 ** (np.arange(spans[-1]) * tile / HALF_LIFE),
            HALF_LIFE,
        )
        self.fields, self.registers = len(fields), cpu.REGISTERS if "distinct" in aggregates else 0
        self.more = cpu.more(fields, "distinct" in aggregates)
        words = cpu.width(len(fields), "distinct" in aggregates)
        self.rows = words, cpu.places(words)
        self.starts, self.heap, self.pool = np.zeros(3, np.int32), cpu.new_heap(), np.zeros(cpu.LINE)
        self.late = np.zeros(2, np.int64)

    def feed(self, events: list[naive.Event]) -> np.ndarray:
        """float64 [reads, windows, aggregates]."""
        slots = np.array([event.slot for event in events], np.int32)
        times = np.array([event.time for event in events], np.int64)
        values = np.array([np.nan if event.value is None else event.value for event in events])
        codes = np.array([float(event.code) for event in events])
        bits = np.array([event.reads + (2 << CONDITION) * (event.value is not None) for event in events], np.uint32)
        out = np.full((self.width, sum(event.reads for event in events)), 7.0)
        progress = np.zeros(6, np.int64)
        while progress[cpu.NEXT] < len(events):
            cpu.window(
                slots, times, values, codes, bits, CONDITION, *self.plan, *self.rows, *self.state(), progress, out, self.more
            )
            self.grow(int(progress[cpu.WANTED]))
        self.late += progress[[cpu.USED_LATE, cpu.DROPPED_LATE]]
        return out[::-1].T.reshape(-1, len(self.plan[2]), len(self.plan[4]) // len(self.plan[2]))

    def packed(self, rows: int) -> np.ndarray:
        """Poisoned rows, as they are dumped."""
        return np.full((rows, 2 + self.fields), np.nan)

    def state(self) -> tuple[np.ndarray, ...]:
        """The starts, the heap, and the pool's views."""
        return self.starts, self.heap, self.pool, self.pool.view(np.int64), self.pool.view(np.uint8)

    def dump(self, slot: int) -> tuple[np.ndarray, ...]:
        """A slot's rows, and how many registers of each are not zero, which, and their ranks."""
        slots, sizes = np.array([slot]), np.empty(1, np.int32)
        starts, _, *pool = self.state()
        cpu.count(slots, starts, pool[1], sizes)
        tiles, filled = self.packed(sizes[0]), np.full(sizes[0] if self.registers else 0, 999, np.uint16)
        found = np.full((2, len(filled) * self.registers), 99, np.uint8)
        count = cpu.pack(slots, *self.rows, starts, *pool, tiles, filled, *found)
        assert count == filled.sum()
        return tiles, filled, *found[:, :count]

    def load(self, slot: int, tiles: np.ndarray, *sketch: np.ndarray) -> None:
        """The reverse, after another that is not wanted."""
        sizes = np.array([len(tiles)] * 2, np.int32)
        self.grow(cpu.lines(sizes, self.rows[1]))
        none = [np.empty(0, np.uint16), *np.empty((2, 0), np.uint8)]
        twice = [np.concatenate([each, each]) for each in (tiles, *(sketch or none))]
        cpu.unpack(np.array([-1, slot], np.int32), sizes, *twice, *self.rows, *self.state())

    def grow(self, lines: int) -> None:
        """Makes room for so many lines more than were given out."""
        wanted = (int(self.heap[cpu.TOP]) + lines) * cpu.LINE - len(self.pool)
        self.pool = np.concatenate([self.pool, np.full(max(wanted, 0), np.nan)])

    def fed(self, events: list[naive.Event], cuts: list[int]) -> np.ndarray:
        """The same, in pieces."""
        edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
        return np.concatenate([self.feed(events[a:b]) for a, b in pairwise(edges)])


def expected(events: list[naive.Event], tile: int, spans: list[int], aggregates: tuple[str, ...], late: bool) -> Any:
    """The definition's: float64 [reads, windows, aggregates], late updates used and dropped."""
    windows, counts = [], np.zeros(2, np.int64)
    for span in spans:
        seen, used, dropped = naive.window(events, (span - 1) * tile, tile, late, HALF_LIFE)
        windows.append([[naive.AGGREGATES[name](each) for name in aggregates] for each in seen])
        counts += used, dropped
    return np.array(windows).reshape(len(spans), -1, len(aggregates)).transpose(1, 0, 2), counts


@given(
    EVENTS,
    CUTS,
    st.integers(1, 9),
    st.lists(st.integers(2, 12), min_size=1, max_size=3, unique=True).map(sorted),
    st.booleans(),
)
@example([naive.Event(0, 0, 1.0, True), naive.Event(0, -1, 2.0, True), naive.Event(0, -1, 3.0, True)], [], 1, [2], True)
def test_what_is_exact_is_exact(events: list[naive.Event], cuts: list[int], tile: int, spans: list[int], late: bool) -> None:
    """Sums of whole numbers are exact in any order, so one bit of difference is a fault; windows of several lengths at once."""
    store = Store(tile, spans, EXACT, late)
    wanted, counts = expected(events, tile, spans, EXACT, late)
    np.testing.assert_array_equal(store.fed(events, cuts), wanted)
    assert store.late.tolist() == counts.tolist()


@given(
    EVENTS,
    CUTS,
    st.integers(1, 9),
    st.lists(st.integers(2, 12), min_size=1, max_size=3, unique=True).map(sorted),
    st.booleans(),
)
def test_what_is_rounded_is_near(events: list[naive.Event], cuts: list[int], tile: int, spans: list[int], late: bool) -> None:
    names = ("std", "rate", "decayed", "sum")
    events = [naive.Event(e.slot, e.time, e.value and e.value / 7 + 1e6, e.reads) for e in events]
    got, (wanted, _) = Store(tile, spans, names, late).fed(events, cuts), expected(events, tile, spans, names, late)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-6)


@given(EVENTS, CUTS, st.integers(1, 9), st.integers(2, 12))
def test_distinct_is_the_sketch_of_the_windows_events(events: list[naive.Event], cuts: list[int], tile: int, span: int) -> None:
    seen, _, _ = naive.window(events, (span - 1) * tile, tile)
    sketched = [naive.sketched([code for _, _, code in each.held]) for each in seen]
    got = Store(tile, [span], ("distinct", "max")).fed(events, cuts)
    np.testing.assert_allclose(got[:, 0, 0], sketched, rtol=1e-12)


def test_distinct_is_near_the_number_of_different_values() -> None:
    """docs/features.md says: an error of 6.5% at one standard deviation, less for few; here of 200 seeds for each size."""
    for size, deviation in ((1, 0.003), (10, 0.045), (100, 0.055), (1_000, 0.065), (20_000, 0.065)):
        errors = []
        for seed in range(200):
            codes = np.random.default_rng((size, seed)).integers(0, 2**52, size)
            registers = np.zeros(cpu.REGISTERS, np.uint8)
            rest = codes // cpu.REGISTERS | 1 << cpu.RANKS
            np.maximum.at(registers, codes % cpu.REGISTERS, np.log2(rest & -rest).astype(np.uint8) + 1)
            errors.append(cpu.estimate(registers) / size - 1)
        assert np.sqrt(np.mean(np.square(errors))) < deviation * 1.15
        assert abs(np.mean(errors)) < deviation / 4 + 0.002


def test_a_spread_far_from_zero_is_not_lost() -> None:
    """A sum of squares would have no digit left of it."""
    values = [1e9 + k % 3 for k in range(300)]
    events = [naive.Event(0, k, value, False) for k, value in enumerate(values)] + [naive.Event(0, 300, None, True)]
    got = Store(7, [100], ("std",)).feed(events)[0, 0, 0]
    assert got == pytest.approx(np.std(values, ddof=1), rel=1e-6)


def test_an_event_never_sees_itself() -> None:
    for name in cpu.AGGREGATES:
        got = Store(1, [3], (name,)).feed([naive.Event(0, 5, 3.0, True, 11)])[0, 0, 0]
        assert got == 0 if name in ("count", "sum", "rate", "distinct", "decayed") else math.isnan(got)


def test_what_has_expired_is_given_back() -> None:
    """An entity with an event in each tile for long needs no more room than its longest window has tiles, doubled twice."""
    store = Store(1, [100], ("sum",))
    for k in range(0, 100_000, 1000):
        store.feed([naive.Event(0, k + j, 1.0, j == 999) for j in range(1000)])
    assert store.heap[cpu.TOP] <= 1 + 1 + 2 + 4 + 8 + 16 + 32
    assert len(store.pool) <= 64 * cpu.LINE
    cpu.clear(np.array([0], np.int32), store.starts, store.heap, store.pool.view(np.int64))
    before = len(store.pool)
    store.feed([naive.Event(1, k, 1.0, False) for k in range(100)])
    assert len(store.pool) == before


def test_a_count_that_is_full_goes_on_in_another_row() -> None:
    """Of the same tile: nothing is lost of it, in order, late, or moved to a larger block."""
    names = ("count", "sum", "max", "std")
    store = Store(10, [4], names)
    tiles, n = store.packed(3), float(cpu.FULL - 1)
    tiles[:, :2] = [(7, n), (8, n), (9, 1.0)]
    tiles[:, 2:] = 0.0
    store.load(0, tiles)
    times = [71, 75, 95, 76, 85, 86, 77, 96, 87]
    store.feed([naive.Event(0, at, 5.0, False) for at in times])
    got = store.feed([naive.Event(0, 99, None, True)])[0, 0]
    many = 2 * n + 1
    mean = 5.0 * len(times) / (many + len(times))
    spread = many * mean**2 + len(times) * (5.0 - mean) ** 2
    np.testing.assert_allclose(got, [many + len(times), 5.0 * len(times), 5.0, math.sqrt(spread / (many + len(times) - 1))])


@given(EVENTS, EVENTS, st.booleans())
def test_what_is_packed_and_unpacked_goes_on_as_if_it_never_was(
    before: list[naive.Event], after: list[naive.Event], late: bool
) -> None:
    for names in (("count", "mean", "min"), ("distinct", "last", "max")):
        store, again = Store(5, [3, 9], names, late), Store(5, [3, 9], names, late)
        store.feed(before)
        for slot in range(3):
            again.load(slot, *store.dump(slot))
        np.testing.assert_array_equal(again.feed(after), store.feed(after))
