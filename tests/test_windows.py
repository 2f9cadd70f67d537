"""The window kernels are what brute force says: ties, late events, reads of the past, any cut into batches."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.windows import cpu, naive

EVENTS = st.lists(
    st.builds(
        naive.Event,
        slot=st.integers(-1, 2),
        time=st.integers(-40, 120),
        value=st.none() | st.integers(-1000, 1000).map(float),
        reads=st.booleans(),
    ),
    max_size=60,
)
FEATURE = 3
UPDATES = 2 << FEATURE
ALL = np.array([cpu.COUNT, cpu.SUM, cpu.MIN, cpu.MAX, cpu.MEAN], np.int8)
CUTS = st.lists(st.integers(0, 60), max_size=4)


def columns(events: list[naive.Event]) -> tuple[np.ndarray, ...]:
    return (
        np.array([e.slot for e in events], np.int32),
        np.array([e.time for e in events], np.int64),
        np.array([np.nan if e.value is None else e.value for e in events], np.float64),
        np.array([e.reads + UPDATES * (e.value is not None) for e in events], np.uint32),
    )


def pieces(events: list[naive.Event], cuts: list[int]) -> list[list[naive.Event]]:
    edges = [0, *sorted(min(c, len(events)) for c in cuts), len(events)]
    return [events[a:b] for a, b in pairwise(edges)]


@given(EVENTS, CUTS, st.integers(1, 9), st.integers(1, 5))
def test_windows_are_exact(events: list[naive.Event], cuts: list[int], tile: int, tiles: int) -> None:
    newest, ids = np.full(3, cpu.NEVER), np.full((3, tiles), cpu.NEVER)
    count, (total, low, high) = np.full((3, tiles), -9), np.full((3, 3, tiles), np.nan)
    rows, late = [], 0
    for piece in pieces(events, cuts):
        out = np.full((5, sum(e.reads for e in piece)), 7.0)
        late += cpu.window(*columns(piece), FEATURE, tile, newest, ids, count, total, low, high, ALL, out)
        rows += out.T.tolist()
    expected, expected_late = naive.window(events, tile, tiles)
    assert late == expected_late
    means = [total / count if count else np.nan for count, total, _, _ in expected]
    exact = np.column_stack([np.array(expected, np.float64).reshape(-1, 4), means])
    np.testing.assert_array_equal(np.array(rows).reshape(-1, 5), exact)


@given(EVENTS, CUTS, st.integers(0, 50))
def test_last_values_are_exact(events: list[naive.Event], cuts: list[int], within: int) -> None:
    seen_at, seen = np.full((3, 1), cpu.NEVER), np.full((3, 1), np.nan)
    rows = []
    for piece in pieces(events, cuts):
        slots, times, values, bits = columns(piece)
        out = np.full((1, sum(e.reads for e in piece)), 7.0)
        cpu.last(slots, times, values[None, :], np.zeros(1, np.int64), bits, FEATURE, within, seen_at, seen, out)
        rows += out[0].tolist()
    np.testing.assert_array_equal(rows, naive.last(events, within))


def test_an_event_never_sees_itself() -> None:
    out = np.full((5, 1), np.nan)
    state = np.full(1, cpu.NEVER), np.full((1, 3), cpu.NEVER), np.zeros((1, 3), np.int64), *np.zeros((3, 1, 3))
    cpu.window(*columns([naive.Event(0, 5, 3.0, True)]), FEATURE, 1, *state, ALL, out)
    assert out[:, 0].tolist() == pytest.approx([0, 0, np.nan, np.nan, np.nan], nan_ok=True)
