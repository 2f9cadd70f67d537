"""A Derived may read the event, stored and streaming features, and the Derived before it: the same served and in training."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.derived import compile_derived, evaluate, numbers_of
from features.expressions import compile_expression
from features.spec import Derived, Fields, Last, Stored, Window
from features.training import training_frame

COLUMNS = pa.schema(
    [("id", pa.int64()), ("at", pa.timestamp("us", "UTC")), ("card", pa.string()), ("lat", pa.float64()), ("lon", pa.float64())]
)
STREAMING = [
    Last("card", "lat", "lon", within="1d"),
    Window("card", "lat", over="1d", aggs=("age", "count")),
]
KMH = [
    Derived("km", "kilometres(lat, lon, lat_last_by_card, lon_last_by_card)"),
    Derived("kmh", "km / (lat_age_1d_by_card / 3600)"),
    Derived("again", "lat_count_1d_by_card > 0"),
]
VIENNA, BERLIN, SYDNEY = (48.208, 16.373), (52.520, 13.405), (-33.869, 151.209)


def flown(one: tuple[float, float], other: tuple[float, float]) -> float:
    """By the cosine rule, in plain floats."""
    (a, b), (c, d) = ([math.radians(x) for x in place] for place in (one, other))
    cosine = math.sin(a) * math.sin(c) + math.cos(a) * math.cos(c) * math.cos(d - b)
    return 6371 * math.acos(max(-1.0, min(1.0, cosine)))


def events(places: list[tuple[float, float]]) -> pa.Table:
    begin = datetime(2024, 3, 1, tzinfo=UTC)
    rows = [
        {"id": k, "at": begin + timedelta(hours=2 * k), "card": "c", "lat": lat, "lon": lon}
        for k, (lat, lon) in enumerate(places)
    ]
    return pa.Table.from_pylist(rows, COLUMNS)


def frame_of(features: list[Any], table: pa.Table, historical: Any = None) -> dict[str, list[Any]]:
    return training_frame(
        table,
        features=features,
        decide_on="True",
        time="at",
        ties=(),
        id="id",
        label=None,
        historical=historical,
    ).to_pydict()


def test_a_training_frame_has_the_speed_from_the_last_place() -> None:
    frame = frame_of([*STREAMING, *KMH], events([VIENNA, BERLIN, BERLIN, SYDNEY]))
    assert frame["km"][0] is None
    assert frame["kmh"][0] is None
    assert frame["km"][1:] == pytest.approx([flown(VIENNA, BERLIN), 0, flown(BERLIN, SYDNEY)], rel=1e-6, abs=1e-6)
    assert frame["kmh"][3] == pytest.approx(flown(BERLIN, SYDNEY) / 2, rel=1e-6)
    assert frame["again"] == [False, True, True, True]


def test_what_serves_and_what_trains_agree() -> None:
    features = [*STREAMING, *KMH, Fields("lat")]
    table = events([VIENNA, SYDNEY, BERLIN, VIENNA])
    frame = frame_of(features, table)
    names = [name for feature in STREAMING for name in feature.names]
    numbers = {name: np.array([np.nan if x is None else x for x in frame[name]]) for name in names}
    served = evaluate(compile_derived(features, COLUMNS, ()), table.to_batches()[0], numbers)
    assert {name: column.to_pylist() for name, column in served.items()} == {
        name: frame[name] for name in ("km", "kmh", "again")
    }


def test_stored_features_are_read_and_a_derived_one_reads_another() -> None:
    features = [Stored("card_v1"), Derived("far", "kilometres(lat, lon, profile__lat, profile__lon)"), Derived("d", "far * 2")]

    def historical(decided: pa.Table) -> pa.Table:
        home = pa.array([VIENNA[0], None], pa.float32()), pa.array([VIENNA[1], None], pa.float32())
        return pa.table({"profile__lat": home[0], "profile__lon": home[1]})

    frame = frame_of(features, events([BERLIN, BERLIN]), historical)
    assert frame["d"] == [pytest.approx(2 * flown(VIENNA, BERLIN), rel=1e-5), None]


def test_before_the_store_is_known_names_like_its_are_taken_for_its_features() -> None:
    features = [Stored("card_v1"), Derived("more", "profile__usual * 2")]
    assert [name for name, _ in compile_derived(features, COLUMNS, None)] == ["more"]
    with pytest.raises(ValueError, match="feature more: expression 'profile__usual \\* 2': no column profile__usual"):
        compile_derived(features, COLUMNS, ["profile__typical"])
    with pytest.raises(ValueError, match="no column profile__usual"):
        compile_derived(features[1:], COLUMNS, None)


def test_a_derived_one_cannot_read_one_that_comes_after_it() -> None:
    with pytest.raises(ValueError, match="feature twice: expression 'once \\* 2': no column once"):
        compile_derived([Derived("twice", "once * 2"), Derived("once", "lat")], COLUMNS, ())


def test_conditions_become_numbers() -> None:
    assert np.array_equal(numbers_of(pa.array([True, None, False])), [1, np.nan, 0], equal_nan=True)
    assert numbers_of(pa.array([True, False])).dtype == np.int8, "also where none is null"


degrees = st.floats(-90, 90), st.floats(-400, 400)


@given(st.tuples(*degrees), st.tuples(*degrees))
def test_kilometres_by_another_formula(one: tuple[float, float], other: tuple[float, float]) -> None:
    columns = pa.schema([(name, pa.float64()) for name in "abcd"])
    row = pa.RecordBatch.from_arrays([pa.array([x, None]) for x in (*one, *other)], schema=columns)
    got = compile_expression("kilometres(a, b, c, d)", columns)(row).to_pylist()
    assert got[0] == pytest.approx(flown(one, other), abs=0.2)
    assert got[1] is None


def test_kilometres_takes_numbers_and_refuses_what_is_no_place() -> None:
    row = pa.RecordBatch.from_pylist([{"a": 48.0}, {"a": 95.0}])
    assert compile_expression("kilometres(a, 16, 48, 16)", row.schema)(row).to_pylist() == [0.0, None]
    with pytest.raises(ValueError, match="kilometres takes 4 values, got 2"):
        compile_expression("kilometres(a, a)", row.schema)
