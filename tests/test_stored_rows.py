"""Rows of stored features: given as the naive twin gives them, never another entity's, however many come and go."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.rows import Fetched, Rows
from features.views import View
from kernels.hashing import naive as hashing
from kernels.stored_rows import naive
from kernels.stored_rows.cpu import ABSENT, FLAGS, LATE, NONE

HASHES = [0, 1, 2, 2**63, 2**64 - 1]
WIDTHS = (2, 1, 3)
PARTS = ((0,), (1,), (0, 2))
TTLS = (0, 50, 70)
REFUSES = (False, True, False)
REFRESH = (10, 20, 30)
FILL = np.array([-1.0, np.nan, -3.0, -4.0, -5.0, -6.0], np.float32)


def views() -> list[View]:
    def view(v: int, width: int) -> View:
        return View(f"v{v}", ("c",), ("c",), (None,), tuple(f"f{k}" for k in range(width)), TTLS[v], None)

    return [view(v, width) for v, width in enumerate(WIDTHS)]


def entity(event: Any, view: int) -> int:
    return hashing.combine([event[part] for part in PARTS[view]])


events = st.lists(st.tuples(*[st.sampled_from(HASHES)] * 3, st.integers(0, 200)), max_size=7)
writes = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(HASHES), st.sampled_from(HASHES), st.none() | st.integers(0, 200))
)


@given(st.lists(st.tuples(events, writes, st.integers(0, 200)), max_size=6), st.booleans())
def test_reads_as_the_naive_twin(steps: Any, wall: bool) -> None:
    rows = Rows(views(), PARTS, REFUSES, REFRESH, 100)
    held: dict[tuple[int, int], naive.Row] = {}
    number = 0.0
    for batch, written, now in steps:
        for view, a, b, time in written:
            h = hashing.combine([a, b] if view == 2 else [a])
            if h:
                number += 1
                values = [number + k for k in range(WIDTHS[view])]
                fetched = Fetched(np.array(values, np.float32)[:, None], np.array([NONE if time is None else time]))
                rows.put(view, np.array([h], np.uint64), [b"x"], fetched, now)
                held[view, h] = naive.Row(values, time, now + REFRESH[view])
        hashes = np.array([[event[c] for event in batch] for c in range(3)], np.uint64).reshape(3, len(batch))
        times = np.array([event[3] for event in batch], np.int64)
        given = rows.read(hashes, FILL, times, now, wall)
        assert (given.absent, given.late) == ((given.missed == ABSENT).sum(), (given.missed == LATE).sum())
        for i, event in enumerate(batch):
            first, bits = 0, 0
            for v, width in enumerate(WIDTHS):
                h = entity(event, v)
                fill = FILL[first : first + width].tolist()
                expected = naive.give(
                    held.get((v, h)), h != 0, event[3], now, ttl=TTLS[v], fill=fill, refuses=REFUSES[v], wall=wall
                )
                np.testing.assert_array_equal(given.values[first : first + width, i], np.array(expected.values, np.float32))
                *four, refused = expected.flags
                bits |= sum(1 << (FLAGS * v + k) for k, flag in enumerate(four) if flag) | refused << (FLAGS * len(WIDTHS))
                absent = h != 0 and (v, h) not in held
                late = (v, h) in held and now > held[v, h].until
                assert given.missed[v, i] == (ABSENT if absent else LATE if late else 0)
                assert given.held[v, i] == (NONE if expected.time is None else expected.time)
                first += width
            assert given.flags[i] == bits


@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12, unique=True), max_size=40), st.integers(1, 20))
def test_rows_come_and_go_and_none_is_given_for_another(batches: list[list[int]], most: int) -> None:
    """What a batch has asked for is there after it was written, and at most `most` rows (or those of one batch) are held."""
    rows = Rows(views()[:1], PARTS[:1], REFUSES[:1], REFRESH[:1], most)
    nothing, widest = np.full(2, np.nan, np.float32), 0
    for batch in batches:
        widest = max(widest, len(batch))
        hashes = np.array([[hashing.mix(n) for n in batch]], np.uint64)
        times = np.zeros(len(batch), np.int64)
        given = rows.read(hashes, nothing, times, 0, False)
        if given.absent:
            absent, first = rows.missing(0, hashes, given.missed)
            names = [str(batch[k]).encode() for k in first]
            values = np.array([[batch[k] for k in first], [-batch[k] for k in first]], np.float32)
            rows.put(0, absent, names, Fetched(values, np.zeros(len(names), np.int64)), 0, len(batch))
        given = rows.read(hashes, nothing, times, 0, False)
        assert given.absent == 0
        assert not given.flags.any()
        assert given.values.tolist() == [batch, [-n for n in batch]]
        assert rows.held(0) <= max(most, widest)
        held, names = rows.due(0, 1_000_000, 100)
        assert {int(h): hashing.mix(int(name)) for h, name in zip(held, names, strict=True)} == {int(h): int(h) for h in held}
        assert len(held) == rows.held(0)


def test_a_row_that_has_gone_is_not_brought_back_by_reading_it_again() -> None:
    rows = Rows(views()[:1], PARTS[:1], REFUSES[:1], REFRESH[:1], 2)

    def put(*hashes: int, only_known: bool = False) -> None:
        fetched = Fetched(np.ones((2, len(hashes)), np.float32), np.zeros(len(hashes), np.int64))
        rows.put(0, np.array(hashes, np.uint64), [b"x"] * len(hashes), fetched, 0, only_known=only_known)

    def read(*hashes: int) -> list[bool]:
        times = np.zeros(len(hashes), np.int64)
        given = rows.read(np.array([hashes], np.uint64), np.full(2, np.nan, np.float32), times, 0, False)
        return (given.missed[0] == ABSENT).tolist()

    put(7, 8)
    assert read(8) == [False]
    put(9)
    put(7, only_known=True)
    assert read(7, 8, 9) == [True, False, False]
    assert rows.given_up(0) == 1
