"""The flights' job on real brokers: workers decide alike, training sees what was served, kills lose nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from flights_job import Topic, fill, job, kill, pipeline_file, same_features, scheduled, stop

from models.flights_history import history
from ops.broker import Broker
from ops.replay import between, encode
from ops.skew import events_of, skew
from ops.topics import create
from ops.train import frame, train
from sinks.records import read
from sinks.segments import chains, check
from streams.flights import flights
from streams.pipeline import load
from streams.settings import JobSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FROM, TO, SERVED = (datetime(2013, 10, day, tzinfo=UTC) for day in (6, 14, 7))
KEYS = flights.events.keys


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The flights' model, trained as `headrace train flights` does it."""
    settings = JobSettings(home=Path(tmp_path_factory.mktemp("registry")))
    train(flights, settings, seed=0, until=datetime(2013, 10, 1, tzinfo=UTC), progress=lambda doing, share: None)
    return settings.registry_uri


@pytest.fixture(scope="session")
def week() -> pa.Table:
    return between(history(), "at", FROM, TO)


@pytest.fixture(scope="session")
def messages(week: pa.Table) -> tuple[list[bytes], list[bytes]]:
    return encode(week, flights.events.schema, KEYS)


def settings(home: Path, broker: Broker, registry: str, **values: Any) -> JobSettings:
    return JobSettings(home=home, brokers=broker.address, registry=registry, metrics_port=0, **values)


Decided = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def decided(
    tmp_path_factory: pytest.TempPathFactory, apache_kafka: Broker, registry: str, week: pa.Table, messages: Any
) -> dict[tuple[int, int], Decided]:
    """Decisions by (partitions, workers). Of three partitions one is idle, and rows go by event time."""
    found = {}
    for partitions in (1, 3):
        events = f"flights-{partitions}"
        fill(apache_kafka.address, events, *messages, partitions=partitions, filled=max(1, partitions - 1))
        for workers in (1, 2, 3):
            home, name = tmp_path_factory.mktemp("job"), f"{events}-{workers}-decisions"
            create(apache_kafka.address, [name], 1, {})
            pipeline = pipeline_file(home, events, name)
            order = "event" if partitions == 3 else "arrival"
            topic = Topic(apache_kafka.address, name)
            run = settings(home, apache_kafka, registry, workers=workers, order=order)
            with job(pipeline, run, "--from", "earliest") as process:
                topic.read_until(scheduled(week), process)
                stop(process)
            topic.close()
            found[partitions, workers] = topic.by_id()
    return found


@pytest.mark.parametrize("partitions", [1, 3])
def test_any_number_of_workers_decides_the_same(decided: dict[tuple[int, int], Decided], partitions: int) -> None:
    one = decided[partitions, 1]
    for workers in (2, 3):
        other = decided[partitions, workers]
        assert other.keys() == one.keys()
        assert all(other[name]["model_version"] == decision["model_version"] for name, decision in one.items())
        assert [name for name in one if not same_features(one[name], other[name])] == []
        assert all(other[name]["decision"] == decision["decision"] for name, decision in one.items())


@pytest.mark.parametrize("partitions", [1, 3])
def test_training_sees_what_serving_saw(decided: dict[tuple[int, int], Decided], partitions: int, tmp_path: Path) -> None:
    """Features served from 7 to 13 October are the training frame's, to 1e-6."""
    made = frame(flights, JobSettings(home=tmp_path), between(history(), "at", datetime(2013, 10, 1, tzinfo=UTC), TO))
    rows = pl.DataFrame(made).filter(pl.col("event_time") >= SERVED)
    served = {decision["event_id"]: decision for decision in decided[partitions, 1].values()}
    names = [name for name in rows.columns if name not in ("label", "event_id", "event_time")]
    assert rows.height > 6_000
    wrong = []
    for row in rows.iter_rows(named=True):
        trained = {"score": None, "features": {name: row[name] for name in names}}
        got = served[row["event_id"]] | {"score": None}
        if not same_features(trained, got):
            wrong.append((row["event_id"], trained, got))
    assert wrong[:1] == []


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_stopped_half_way_and_started_again_every_event_has_a_decision(
    broker: Broker, registry: str, week: pa.Table, messages: Any, tmp_path: Path, name: Callable[[str], str], how: str
) -> None:
    """With one partition a repeat is the same to the last feature; with several, in order of arrival, it need not be."""
    events = name("kill")
    fill(broker.address, events, *messages, partitions=1, filled=1)
    create(broker.address, [f"{events}-decisions"], 1, {})
    pipeline = pipeline_file(tmp_path, events, f"{events}-decisions")
    topic = Topic(broker.address, f"{events}-decisions")
    run = settings(tmp_path, broker, registry, epoch_seconds=0.1, poll_rows=50)
    with job(pipeline, run) as process:
        topic.read_until(500, process)
        stop(process) if how == "SIGTERM" else kill(process)
    topic.read()
    before = len(topic.by_id())
    assert before < scheduled(week)
    with job(pipeline, run) as process:
        topic.read_until(scheduled(week), process)
        stop(process)
    topic.read()
    topic.close()
    found = topic.by_id()
    assert len({decision["event_id"] for decision in found.values()}) == len(found) == scheduled(week)
    repeats = len(topic.messages) - len(found)
    print(f"\n{how}: {before} decisions before, {repeats} sent again")
    if how == "SIGTERM":
        assert repeats == 0
    for message in topic.messages:
        assert same_features(message, found[message["decision_id"]])


RECORD = """
from streams.pipeline import Record

flights = replace(flights, record=Record(megabytes=0.2))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_after_kills_every_decision_in_the_topic_has_its_record(
    apache_kafka: Broker,
    registry: str,
    week: pa.Table,
    messages: Any,
    tmp_path: Path,
    name: Callable[[str], str],
    workers: int,
) -> None:
    """Killed three times, each time at once with whatever was half-written. What was served is computed again from the topic:
    with one partition nothing differs."""
    events, total = name("record"), scheduled(week)
    fill(apache_kafka.address, events, *messages, partitions=workers, filled=workers)
    create(apache_kafka.address, [f"{events}-decisions"], 1, {})
    pipeline = pipeline_file(tmp_path, events, f"{events}-decisions")
    with (tmp_path / "job.py").open("a") as file:
        file.write(RECORD)
    topic = Topic(apache_kafka.address, f"{events}-decisions")
    run = settings(tmp_path, apache_kafka, registry, epoch_seconds=0.1, poll_rows=50, workers=workers)
    folder = tmp_path / "record" / "flights"
    for _ in range(3):
        with job(pipeline, run) as process:
            topic.read_until(len(topic.by_id()) + 500, process)
            kill(process)
        topic.read()
    assert len(topic.by_id()) < total
    assert any(folder.glob("*/*.log"))
    with job(pipeline, run) as process:
        topic.read_until(total, process)
        stop(process)
    topic.read()
    topic.close()
    decided, record = topic.by_id(), read(folder)
    rows = {row["decision_id"]: row for row in record.table.iter_rows(named=True)}
    assert decided.keys() <= rows.keys()
    assert not any(folder.glob("*/*.log"))
    checked = [check(chain) for chain in chains(folder)]
    assert [one.breaks for one in checked] == [()] * workers
    assert sum(one.files for one in checked) > 4
    print(f"\n{workers} workers: {len(rows)} decisions, {record.repeats} rows of the record are repeats")
    if workers == 1:
        for key, decision in decided.items():
            served = {name: rows[key][name] for name in decision["features"]}
            assert same_features(decision, {"features": served, "score": rows[key]["score"]})
        report = skew(folder, load(pipeline), run, events_of(load(pipeline), run, "topic", None))
        assert (report.compared, report.without_event, report.without_record) == (total, 0, 0)
        assert report.skewed == 0
