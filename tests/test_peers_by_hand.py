"""The peers' features item by item are headrace's own, on made events and on real ones."""

import math
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import decided

from bench.peers.flights_by_hand import TILE, TILES, Model, answer, at_origin, at_plane, board, decide, decode
from features.spec import Stored
from kernels.last_values import naive as last_values
from kernels.windows.naive import AGGREGATES, Event, window
from streams.flights import flights

HOUR = 3600
MOMENTS = st.integers(0, 9 * HOUR)
DELAYS = st.integers(-60, 600).map(float)


@given(st.lists(st.tuples(MOMENTS, st.one_of(st.none(), DELAYS)), max_size=60))
def test_a_window_is_that_of_the_definition_in_any_order(told: list[tuple[int, float | None]]) -> None:
    state, got = None, []
    for at, delay in told:
        kind = "scheduled" if delay is None else "departed"
        state, row = at_origin(state, {"kind": kind, "at": float(at), "dep_delay": delay})
        if row is not None:
            got.append([row[f"dep_delay_{name}_2h_by_origin"] for name in ("count", "mean", "max")])
    read, _, _ = window([Event(0, at, delay, delay is None) for at, delay in told], int(TILE) * (TILES - 1), int(TILE))
    expected = [[AGGREGATES[name](seen) for name in ("count", "mean", "max")] for seen in read]
    np.testing.assert_allclose(np.array(got).reshape(-1, 3), np.array(expected).reshape(-1, 3), rtol=1e-12)


@given(st.lists(st.tuples(st.integers(0, 60 * HOUR), st.one_of(st.none(), DELAYS)), max_size=60))
def test_last_values_are_those_of_the_definition_in_any_order(told: list[tuple[int, float | None]]) -> None:
    plane, weather = None, None
    by_plane, by_origin = [], []
    for at, value in told:
        read = value is None
        plane, known = at_plane(plane, {"kind": "scheduled" if read else "arrived", "at": float(at), "arr_delay": value})
        weather, seen = at_origin(weather, {"kind": "scheduled" if read else "weather", "at": float(at), "temp": value})
        if known is not None and seen is not None:
            by_plane.append(known["arr_delay_last_by_tailnum"])
            by_origin.append(seen["temp_last_by_origin"])
    events = [last_values.Event(0, at, value, value is None) for at, value in told]
    np.testing.assert_array_equal(by_plane, last_values.last(events, 12 * HOUR))
    np.testing.assert_array_equal(by_origin, last_values.last(events, 3 * HOUR))


@pytest.mark.parametrize(
    ("wind", "score", "decision"),
    [(60.0, 0.9, "watch"), (59.9, 0.5, "late"), (math.nan, 0.3, "watch"), (0.0, 0.29, "on_time"), (61.0, 0.1, "watch")],
)
def test_a_storm_comes_before_the_score(wind: float, score: float, decision: str) -> None:
    assert decide({"wind_speed_last_by_origin": wind}, float(np.float32(score))) == decision


def test_three_days_of_october_are_decided_as_headrace_decides_them(tmp_path: Path) -> None:
    """Fields, derived columns, windows, last values, matrix, score and policy; stored features are the venvs' tests' matter."""
    sent, ours = decided(tmp_path, [feature for feature in flights.features if not isinstance(feature, Stored)])
    model, origins, planes, theirs = Model(tmp_path / "model"), {}, {}, []
    for _, value in sent:
        event = decode(value)
        origin, plane, row = event.get("origin"), event.get("tailnum"), board(event)
        for states, entity, step in ((origins, origin, at_origin), (planes, plane, at_plane)):
            state, seen = step(states.get(entity), event)
            row |= seen or {}
            if entity is not None:
                states[entity] = state
        if event["kind"] == "scheduled":
            theirs.append((row, orjson.loads(answer(row, model))))

    assert len(ours) == len(theirs) > 2_000
    assert {decision["decision"] for decision in ours} == {"late", "watch", "on_time"}
    for decision, (row, said) in zip(ours, theirs, strict=True):
        assert (said["event_id"], said["decision"]) == (decision["event_id"], decision["decision"])
        assert said["score"] == pytest.approx(decision["score"], abs=1e-5)
        for name, expected in decision["features"].items():
            got = row[name]
            assert got == pytest.approx(math.nan if expected is None else expected, nan_ok=True), name
