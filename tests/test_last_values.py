"""The last values are what brute force says, in any order of events and any cut into batches."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.last_values import cpu, naive

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
CONDITION = 3


@given(EVENTS, st.lists(st.integers(0, 60), max_size=4), st.integers(0, 50))
def test_last_values_are_exact(events: list[naive.Event], cuts: list[int], within: int) -> None:
    seen_at, seen = np.full((3, 1), cpu.NEVER), np.full((3, 1), np.nan)
    rows = []
    for a, b in pairwise([0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]):
        piece = events[a:b]
        slots = np.array([event.slot for event in piece], np.int32)
        times = np.array([event.time for event in piece], np.int64)
        values = np.array([[7.0] * len(piece), [np.nan if event.value is None else event.value for event in piece]])
        bits = np.array([event.reads + (2 << CONDITION) * (event.value is not None) for event in piece], np.uint32)
        out = np.full((1, sum(event.reads for event in piece)), 7.0)
        cpu.last(slots, times, values, np.ones(1, np.int64), bits, CONDITION, within, seen_at, seen, out)
        rows += out[0].tolist()
    np.testing.assert_array_equal(rows, naive.last(events, within))
