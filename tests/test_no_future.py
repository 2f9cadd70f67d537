"""No feature knows what comes after its event."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from features.training import training_frame
from models.flights_history import flights, history, month_ends
from ops.replay import between
from streams.flights import flights as pipeline

T = datetime(2013, 10, 10, 15, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def week() -> pa.Table:
    return between(history(), "at", datetime(2013, 10, 8, tzinfo=UTC), datetime(2013, 10, 13, tzinfo=UTC))


def frame(events: pa.Table) -> pl.DataFrame:
    features = [feature for feature in pipeline.features if type(feature).__name__ != "Stored"]
    made = training_frame(
        events, features=features, decide_on=pipeline.decide_on, time="at", ties=pipeline.events.ties, id="flight_id",
        label=pipeline.label, historical=None,
    )  # fmt: skip
    return pl.DataFrame(made)


def test_labels_permuted_after_a_time_change_no_feature_before_it(week: pa.Table) -> None:
    rng = np.random.default_rng(0)
    later = (pl.Series(week["at"]) >= T).to_numpy()
    changed = week
    for name in ("arr_delay", "dep_delay", "temp", "wind_speed"):
        values = pl.Series(week[name]).to_numpy().copy()
        values[later] = rng.permutation(np.nan_to_num(values[later], nan=99.0))
        kept = pl.Series(week[name]).is_null().to_numpy()
        column = pa.array(np.where(kept, np.nan, values), from_pandas=True)
        changed = changed.set_column(changed.schema.get_field_index(name), name, column)
    before, after = frame(week), frame(changed)
    features = [name for name in before.columns if name not in ("label", "event_id", "event_time")]
    early = before["event_time"] < T
    assert before.filter(early)[features].equals(after.filter(early)[features])
    assert not before.filter(~early)[features].equals(after.filter(~early)[features])
    assert not before["label"].equals(after["label"])


def test_an_event_is_not_among_those_it_sees(week: pa.Table) -> None:
    """Events of the same minute count as the order says: arrived and departed before scheduled, as brute force confirms."""
    made = frame(week).sort("event_id")
    events = pl.DataFrame(week)
    board = events.filter(pl.col("kind").cast(pl.String) == "scheduled", pl.col("at") > T).sort("at").gather_every(97).head(40)
    departed = events.filter(pl.col("kind").cast(pl.String) == "departed")
    for row in board.iter_rows(named=True):
        seen = departed.filter(
            pl.col("origin") == row["origin"], pl.col("at") <= row["at"], pl.col("at") >= row["at"] - pl.duration(hours=2)
        )
        got = made.filter(pl.col("event_id") == row["flight_id"]).row(0, named=True)
        assert got["dep_delay_count_2h_by_origin"] == seen.height
        assert got["dep_delay_mean_2h_by_origin"] == pytest.approx(seen["dep_delay"].mean())
        assert got["dep_delay_max_2h_by_origin"] == seen["dep_delay"].max()


def test_stored_history_is_of_flights_that_had_arrived() -> None:
    """By brute force on one carrier, at each month's end."""
    arrived = flights().filter(pl.col("carrier") == "B6", pl.col("arrived").is_not_null())
    for row in month_ends()["carrier"].filter(pl.col("carrier") == "B6").iter_rows(named=True):
        known = arrived.filter(pl.col("arrived") < row["event_timestamp"])
        assert row["flights"] == known.height
        assert row["late_share"] == pytest.approx((known["arr_delay"] >= 15).mean(), rel=1e-6)
        assert known["arrived"].max() < row["event_timestamp"]
