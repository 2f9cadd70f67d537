"""Backfill's frame is what the job serves, whatever the pipeline, the partitions, the batches and the order in the file."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pay_repo import DAY, make_repo
from payments import Arithmetic, decisions, payments
from payments import settings as job
from prometheus_client import CollectorRegistry

from features.spec import Derived, Feature, Fields, Label, Last, Stored, Window
from models.spec import Input, ModelSpec
from ops.backfill import backfill
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.run import run
from streams.source import MemorySource

PAID = "kind == 'paid'"
STORED = ("card_history__mean", "card_history__count")
POOL: list[Feature] = [
    Derived("hour", "hour(at, 'Europe/Berlin')"),
    Derived("times_usual", "amount / card_history__mean"),
    Window("card", "amount", over="6h", aggs=("count", "sum", "mean", "std", "last"), where=PAID),
    Window("card", "amount", over="1d", aggs=("max", "age", "rate"), where=PAID, tile="1h"),
    Window("card", "shop", over="1d", aggs=("distinct",), tile="1h"),
    Window("shop", "amount", over="12h", aggs=("count", "decayed"), half_life="3h"),
    Window("shop", "amount * 2", over="6h", aggs=("min",), name="twice", late="drop"),
    Last("card", "amount", within="9h", where="kind == 'refund'"),
    Last("shop", "amount", within="2d"),
]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 1800, 7200, 40_000]),
        st.sampled_from(["paid", "paid", "refund"]),
        st.none() | st.sampled_from(["a", "b", "c", "nobody"]),
        st.sampled_from(["x", "y"]),
        st.integers(1, 100),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=40,
)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("feast") / "repo")


def events_of(rows: Sequence[tuple[Any, ...]], numbers: Sequence[int]) -> list[dict[str, Any]]:
    """In the order of time, numbered so; from the day of the newest row of the store on, whose ttl is two days."""
    made, at = [], DAY
    for number, (step, kind, card, shop, amount, partition) in zip(numbers, rows, strict=False):
        at += timedelta(seconds=step)
        event = {"kind": kind, "at": at, "payment": number, "card": card, "shop": shop, "amount": float(amount)}
        made.append(event | {"partition": partition})
    return made


def served(
    home: Path, repo: Path, pipeline: Pipeline, events: Sequence[dict[str, Any]], rows: int
) -> dict[int, dict[str, Any]]:
    """The features of each decision, by the event's number."""
    logs: list[list[tuple[bytes | None, bytes]]] = [[], [], []]
    for event in events:
        message = {name: value for name, value in event.items() if name != "partition" and value is not None}
        message["at"] = event["at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        logs[event["partition"]].append((None, json.dumps(message).encode()))

    class Engine(Arithmetic):
        spec = ModelSpec("payments", tuple(Input(name, "number") for name in pipeline.feature_names(STORED)))

    sink = MemorySink()
    run(
        pipeline,
        job(home, feast_repo=repo, order="event", stored_patience_seconds=30),
        registry=CollectorRegistry(),
        source=MemorySource(logs, rows=rows),
        sink=sink,
        champion=Champion(1, Engine(), None),
    )
    return {decision["event_id"]: decision["features"] for decision in decisions(sink).values()}


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=25)
@given(
    EVENTS,
    st.permutations(range(40)),
    st.lists(st.sampled_from(POOL), min_size=1, max_size=6, unique_by=lambda feature: feature.names),
    st.integers(1, 50),
    st.randoms(use_true_random=False),
)
def test_a_frame_is_what_is_served(
    tmp_path_factory: pytest.TempPathFactory,
    repo: Path,
    rows: list[Any],
    numbers: list[int],
    features: list[Feature],
    batch: int,
    chance: Any,
) -> None:
    pipeline = replace(payments(), features=[Fields("amount"), Stored("card_v1"), *features])
    events, home = events_of(rows, numbers), tmp_path_factory.mktemp("home")
    found = served(home, repo, pipeline, events, batch)
    shuffled = chance.sample(events, len(events))
    table = pa.Table.from_pylist(shuffled, pa.schema([("kind", pa.string()), ("at", pa.timestamp("us", "UTC")), *COLUMNS]))
    pq.write_table(table, home / "events.parquet")
    quiet = job(home, feast_repo=repo)
    frame = backfill(pipeline, quiet, home / "events.parquet", home / "frame.parquet", lambda doing, share: None)
    assert frame["event_id"].to_pylist() == [
        event["payment"]
        for event in sorted(events, key=lambda event: (event["at"], event["payment"]))
        if event["kind"] == "paid"
    ]
    assert set(found) == set(frame["event_id"].to_pylist())
    for row in pq.read_table(home / "frame.parquet").to_pylist():
        expected = {name: row[name] for name in pipeline.feature_names(STORED)}
        got = found[row["event_id"]]
        assert {name: value is None for name, value in got.items()} == {name: value is None for name, value in expected.items()}
        assert {name: value for name, value in got.items() if value is not None} == pytest.approx(
            {name: value for name, value in expected.items() if value is not None}, rel=1e-6, abs=1e-9
        )


COLUMNS = [("payment", pa.int64()), ("card", pa.string()), ("shop", pa.string()), ("amount", pa.float64())]


@settings(max_examples=30)
@given(EVENTS, st.lists(st.integers(0, 5), min_size=40, max_size=40), st.booleans())
def test_a_label_is_of_the_first_event_that_came_true_in_time(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], numbers: list[int], absent: bool
) -> None:
    label = Label(join="payment", value="amount > 50", where="kind == 'refund'", within="8h", absent=absent)
    pipeline = replace(payments(), features=[Fields("amount")], label=label)
    events, home = events_of(rows, numbers), tmp_path_factory.mktemp("home")
    columns = pa.schema([("kind", pa.string()), ("at", pa.timestamp("us", "UTC")), *COLUMNS])
    pq.write_table(pa.Table.from_pylist(events, columns), home / "events.parquet")
    frame = backfill(pipeline, job(home), home / "events.parquet", home / "frame.parquet", lambda doing, share: None)
    for row in frame.to_pylist():
        refunds = [e for e in events if e["kind"] == "refund" and e["payment"] == row["event_id"]]
        first = min((e["at"] for e in refunds), default=None)
        if first is None or first > row["event_time"] + timedelta(hours=8):
            assert row["label"] is absent
        else:
            assert row["label"] in {e["amount"] > 50 for e in refunds if e["at"] == first}
