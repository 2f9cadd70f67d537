"""Streaming features pushed to Feast: others read there what decisions were made on; a store that fails holds none up."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from payments import CHAMPION, decisions, payments, settings
from prometheus_client import CollectorRegistry

from features import pushing
from features.push_source import push_writer
from features.pushing import Pushing, Values, latest
from features.spec import Push
from features.views import StoredFeaturesError, load_feast
from sinks.memory import MemorySink
from streams.pipeline import Pipeline
from streams.run import run
from streams.source import MemorySource

NAMES = ("amount_count_1h_by_card", "amount_mean_1h_by_card")
START = datetime(2024, 3, 1, 12, tzinfo=UTC)
SOURCE = {"pipeline": "payments", "source": "card_stream"}


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Feast repo with a push source of two features of a card, and views that cannot be pushed to."""
    feast = load_feast()
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Float32, Float64, Int64, String

    repo = tmp_path_factory.mktemp("feast") / "repo"
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(
        "project: pay\nprovider: local\nregistry: data/registry.db\nonline_store: {type: sqlite, path: data/online.db}\n"
        "offline_store: {type: file}\nentity_key_serialization_version: 3\n"
    )
    columns = {"card_id": ["x"], "at": [START], "other": [1]} | {name: [0.0] for name in NAMES}
    pq.write_table(pa.table(columns), repo / "data" / "stream.parquet")
    batch = FileSource(name="batch", path="data/stream.parquet", timestamp_field="at")
    card = Entity(name="card", join_keys=["card_id"], value_type=ValueType.STRING)
    number = Entity(name="number", join_keys=["other"], value_type=ValueType.INT64)

    def view(name: str, entity: Any, of: str, **fields: Any) -> Any:
        schema = [Field(name=each, dtype=dtype) for each, dtype in fields.items()]
        return FeatureView(name=name, entities=[entity], schema=schema, source=PushSource(name=of, batch_source=batch))

    first, second = NAMES
    made = [
        view("card_now", card, "card_stream", card_id=String, **{first: Float32, second: Float64}),
        view("counted", card, "ints", card_id=String, **{first: Int64}),
        view("numbered", number, "numbers", other=Int64, **{first: Float32}),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        feast.FeatureStore(repo_path=str(repo)).apply([card, number, *made])
    return repo


def pushed_by(push: Push) -> Pipeline:
    return replace(payments(), push=[push])


def event(number: int, card: str | None, minutes: float, amount: float) -> tuple[bytes | None, bytes]:
    at = (START + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = {"kind": "paid", "at": at, "payment": number, "shop": "s", "amount": amount} | ({"card": card} if card else {})
    return card and card.encode(), json.dumps(made).encode()


def log(events: int) -> list[tuple[bytes | None, bytes]]:
    """Five hours of payments with six cards, not equally often, and some without one."""
    return [event(k, f"card{k * k % 11}" if k % 7 else None, k * 300 / events, float(k % 13)) for k in range(events)]


def ran(home: Path, what: Pipeline, events: list[Any], **values: Any) -> tuple[list[dict[str, Any]], CollectorRegistry]:
    sink, registry = MemorySink(), CollectorRegistry()
    source = MemorySource([events], rows=20)
    run(what, settings(home, **values), registry=registry, source=source, sink=sink, champion=CHAMPION)
    return sorted(decisions(sink).values(), key=lambda decision: decision["event_id"]), registry


def test_others_read_in_feast_what_the_last_decision_of_each_card_saw(tmp_path: Path, applied: Path) -> None:
    found, registry = ran(tmp_path, pushed_by(Push("card_stream", NAMES, every="1s")), log(700), feast_repo=applied)
    assert len(found) == 700
    last = {f"card{k * k % 11}": decision for k, decision in enumerate(found) if k % 7}
    store = load_feast().FeatureStore(repo_path=str(applied))
    rows = [{"card_id": card} for card in last]
    own = store.get_online_features([f"card_now:{name}" for name in NAMES], rows, include_feature_view_version_metadata=False)
    for name in NAMES:
        expected = [decision["features"][name] for decision in last.values()]
        assert own.to_dict()[name] == pytest.approx(expected, rel=1e-6)
        assert len(set(expected)) > 1
    times = {stamp.seconds for vector in own.proto.results for stamp in vector.event_timestamps if stamp.seconds}
    assert times == {int(datetime.fromisoformat(decision["event_time"]).timestamp()) for decision in last.values()}
    assert registry.get_sample_value("headrace_pushed_total", SOURCE) == 6
    assert registry.get_sample_value("headrace_push_failures_total", SOURCE) == 0
    assert registry.get_sample_value("headrace_push_waiting", SOURCE) == 0


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_store_that_fails_or_hangs_holds_no_decision(how: str, tmp_path: Path, applied: Path, monkeypatch: Any) -> None:
    """Every decision is there and as without pushing; what was not pushed is counted."""
    asked, let_go = threading.Event(), threading.Event()

    def writer(*_: Any) -> Callable[[Values], None]:
        def write(values: Values) -> None:
            asked.set()
            if how == "hangs":
                let_go.wait(60)
            raise ConnectionError("told to fail")

        return write

    monkeypatch.setattr("streams.job.push_writer", writer)
    monkeypatch.setattr(pushing, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(pushing, "MERGE_ROWS", 100)
    without, _ = ran(tmp_path / "without", payments(), log(2000))
    began = time.monotonic()
    found, registry = ran(tmp_path / "with", pushed_by(Push("card_stream", NAMES, every="1s")), log(2000), feast_repo=applied)
    assert time.monotonic() - began < 30
    let_go.set()
    assert asked.is_set()
    assert [decision["features"] for decision in found] == [decision["features"] for decision in without]
    assert registry.get_sample_value("headrace_pushed_total", SOURCE) == 0
    assert (registry.get_sample_value("headrace_push_failures_total", SOURCE) or 0) >= (how == "fails")
    assert (registry.get_sample_value("headrace_push_waiting", SOURCE) or 0) >= 6


def test_windows_that_are_not_full_are_not_pushed(tmp_path: Path, applied: Path) -> None:
    """In Feast nobody could tell: the stream begins less than an hour before these events."""
    found, registry = ran(tmp_path, pushed_by(Push("card_stream", NAMES, every="1s")), log(700)[:140], feast_repo=applied)
    assert all("warming:1h_by_card" in decision["flags"] for decision in found)
    assert registry.get_sample_value("headrace_pushed_total", SOURCE) == 0


def values(*rows: tuple[str, int, float]) -> Values:
    return Values(
        pa.array([entity for entity, _, _ in rows], pa.string()),
        np.array([[value for _, _, value in rows]], np.float64),
        np.array([time for _, time, _ in rows], np.int64),
    )


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.floats(0, 9)), max_size=6), min_size=1))
def test_the_latest_of_each_entity_is_kept(parts: list[list[tuple[str, int, float]]]) -> None:
    expected: dict[str, tuple[int, float]] = {}
    for entity, at, value in [row for part in parts for row in part]:
        if entity not in expected or at >= expected[entity][0]:
            expected[entity] = at, value
    found, gone = latest([values(*part) for part in parts], 10)
    assert gone == 0
    assert found.entity.to_pylist() == list(expected)
    assert [(at, value) for at, value in zip(found.times.tolist(), found.values[0].tolist(), strict=True)] == [
        *expected.values()
    ]
    some, gone = latest([values(*part) for part in parts], 2)
    assert gone == max(0, len(expected) - 2)
    assert sorted(some.times.tolist()) == sorted(at for at, _ in expected.values())[-2:]


@pytest.fixture
def opened() -> Iterator[Callable[..., Pushing]]:
    made: list[Pushing] = []

    def make(write: Callable[[Values], None], every: float = 0.01, most: int = 100) -> Pushing:
        made.append(Pushing("test", write, every, most))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_failed_is_tried_again_with_newer_values(opened: Callable[..., Pushing]) -> None:
    seen: list[tuple[str, float]] = []
    down = [True]

    def write(some: Values) -> None:
        if down:
            raise ConnectionError("told to fail")
        seen.extend(zip(some.entity.to_pylist(), some.values[0].tolist(), strict=True))

    each = opened(write)
    each.take(values(("a", 1, 1.0), ("b", 1, 2.0)))
    until(lambda: each.failed >= 2)
    each.take(values(("b", 2, 3.0)))
    down.clear()
    until(lambda: each.pushed == 2)
    assert dict(seen)["a"] == 1.0
    assert dict(seen)["b"] == 3.0
    assert each.waiting == 0


def test_while_the_store_hangs_what_waits_is_bounded_and_taking_never_waits(
    opened: Callable[..., Pushing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "MOST_ROWS", 1000)
    monkeypatch.setattr(pushing, "CLOSE_SECONDS", 0.1)
    let_go, asked = threading.Event(), threading.Event()

    def write(some: Values) -> None:
        asked.set()
        let_go.wait(60)

    each = opened(write, most=10)
    each.take(values(("a", 0, 1.0)))
    assert asked.wait(20)
    began = time.monotonic()
    for k in range(100):
        each.take(values(*((f"e{k}-{i}", k, 1.0) for i in range(50))))
    assert time.monotonic() - began < 1
    assert each.waiting <= 1000 + 1
    assert each.given_up >= 4000
    let_go.set()


def test_what_a_repo_cannot_take_is_named(applied: Path) -> None:
    def refused(source: str, names: tuple[str, ...], kind: Any = None) -> str:
        with pytest.raises(StoredFeaturesError) as error:
            push_writer(applied, source, names, kind or pa.string())
        return str(error.value)

    assert "expected a feature view with it as its source, got none: run feast" in refused("no_such", NAMES)
    assert f"its views have {', '.join(NAMES)}, the pipeline pushes {NAMES[0]}" in refused("card_stream", NAMES[:1])
    assert f"expected Float32 or Float64, got Int64 at counted__{NAMES[0]}" in refused("ints", NAMES[:1])
    assert "view numbered: expected an entity of string, got INT64" in refused("numbers", NAMES[:1])
    push_writer(applied, "numbers", NAMES[:1], pa.int64())


def test_what_a_pipeline_cannot_push_is_named() -> None:
    for push, said in (
        (Push("s", ("amount",)), "push to s: expected streaming features among amount_count_1h_by_card"),
        (Push("s", (NAMES[0], "amount_last_by_shop")), "expected features of one entity, got some of card, shop"),
    ):
        with pytest.raises(ValueError, match=said):
            pushed_by(push)
    with pytest.raises(ValueError, match="expected one push to s, got several"):
        replace(payments(), push=[Push("s", NAMES), Push("s", NAMES)])
    with pytest.raises(ValueError, match="expected a duration"):
        Push("s", NAMES, every="soon")
    with pytest.raises(ValueError, match="expected each feature once"):
        Push("s", NAMES + NAMES)
