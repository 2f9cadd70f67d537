"""Parts of local time are what the naive twin says, and what the zone's own clock shows."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.expressions import TIMES, offsets
from kernels.local_time import cpu, naive

WHOLE = st.integers(-(2**40), 2**40)


@given(
    st.lists(WHOLE, max_size=33), st.lists(WHOLE, min_size=1, max_size=5, unique=True), st.data(),
    st.sampled_from([1, 60, 3600]), st.integers(0, 5), st.integers(1, 24),
)  # fmt: skip
def test_parts_are_those_of_the_naive_twin(
    times: list[int], since: list[int], data: st.DataObject, unit: int, shift: int, modulo: int
) -> None:
    since.sort()
    moved = data.draw(st.lists(st.integers(-50_000, 50_000), min_size=len(since), max_size=len(since)))
    out = np.full(len(times), -1)
    cpu.parts(np.array(times, np.int64), np.array(since), np.array(moved), unit, shift, modulo, out)
    assert out.tolist() == naive.parts(times, since, moved, unit, shift, modulo)


@given(st.lists(st.datetimes(datetime(1902, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC)), max_size=20))
def test_a_zones_clock_shows_the_same(times: list[datetime]) -> None:
    local = [time.replace(microsecond=0).astimezone(ZoneInfo("America/New_York")) for time in times]
    micros = np.array([int(time.timestamp()) * 1_000_000 for time in local], np.int64)
    shown = {"hour": [t.hour for t in local], "minute_of_day": [t.hour * 60 + t.minute for t in local]}
    for name, expected in (shown | {"weekday": [t.weekday() for t in local]}).items():
        out = np.empty(len(times), np.int64)
        cpu.parts(micros, *offsets("America/New_York"), *TIMES[name], out)
        assert out.tolist() == expected
