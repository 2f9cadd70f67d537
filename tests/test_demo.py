"""The demo's own arithmetic: what it counts, sends again and measures, and when it says that something is wrong."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from ops.broker import Broker
from ops.demo import does_not_add_up
from ops.probe import as_new, probe
from ops.summary import drift_line
from ops.topics import create
from ops.watch import Watcher
from streams.flights import flights

RIGHT: dict[str, Any] = {
    "decisions": 7,
    "duplicates": 0,
    "dead_letters": {"not_json": 2, "bad_utf8": 1},
    "expected": {"decisions": 7, "dead_letters": 3},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"decisions": 6}, "expected 7 decisions, got 6"),
        ({"duplicates": 2}, "2 decisions came more than once"),
        ({"dead_letters": {"not_json": 2}}, "expected 3 dead letters, got 2"),
        ({"decisions": 8, "duplicates": 1}, "expected 7 decisions, got 8, 1 decisions came more than once"),
    ],
)
def test_lost_and_doubled_are_said(change: dict[str, Any], said: str) -> None:
    assert does_not_add_up(RIGHT | change) == said


def test_drift_is_summed_up_by_day_and_feature() -> None:
    alarms = [
        {"window": f"2013-12-0{day}T00:00:00Z", "feature": feature, "statistic": statistic}
        for day, feature, statistic in [(1, "temp", "psi"), (1, "temp", "ks"), (2, "temp", "psi"), (2, "wind", "ks")]
    ]
    assert drift_line(alarms) == "2 days unlike the training data, most often temp (2), wind (1)"
    assert drift_line([]) == "0 days unlike the training data"


def board(n: int, days: int) -> pa.Table:
    """n events over some days, every third of them decided on."""
    start = datetime(2013, 12, 28, tzinfo=UTC)
    rows = [
        {
            "kind": ("scheduled", "departed", "arrived")[k % 3],
            "at": start + timedelta(days=days) * k / n,
            "flight_id": k,
            "origin": "JFK",
            "tailnum": f"N{k % 10}",
            "carrier": "B6",
            "flight": k,
            "dest": "BOS",
            "distance": 187.0,
            "dep_delay": 1.0,
            "arr_delay": 2.0,
        }
        for k in range(n)
    ]
    return pa.Table.from_pylist(rows, schema=flights.columns)


def test_events_sent_again_are_new_ones_after_the_last_at_the_same_time_of_day() -> None:
    events = board(300, days=3)
    again = as_new(events, flights)
    before, after = pl.DataFrame(events), pl.DataFrame(again)
    assert after["at"].min() > before["at"].max()  # type: ignore[operator]
    assert ((after["at"] - before["at"]).dt.total_microseconds() % 86_400_000_000 == 0).all()
    assert not set(before["flight_id"]) & set(after["flight_id"])
    assert again.schema == events.schema
    same = [name for name in events.schema.names if name not in ("at", "flight_id")]
    assert after.select(same).equals(before.select(same))


def answer_after(seconds: float, broker: str, events: str, decisions: str, count: int) -> None:
    """Stands in for a job: decides every scheduled event `seconds` after it came."""
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "job", "fetch.wait.max.ms": 5})
    consumer.assign([TopicPartition(events, 0, 0)])
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker, "linger.ms": 2})
    waiting: list[tuple[float, int]] = []
    while count:
        for message in consumer.consume(1000, 0.002):
            event = orjson.loads(message.value())
            if event["kind"] == "scheduled":
                waiting.append((time.monotonic() + seconds, event["flight_id"]))
        while waiting and waiting[0][0] <= time.monotonic():
            producer.produce(decisions, orjson.dumps({"event_id": waiting.pop(0)[1]}))
            count -= 1
        producer.poll(0)
    producer.flush(10)
    consumer.close()


def test_the_probe_measures_from_the_intended_send_to_the_decision(embedded_broker: Broker, name: Callable[[str], str]) -> None:
    """Nothing comes before the job's 100 ms are over, without them something does; the first second is left out."""
    at = embedded_broker.address
    least = []
    for extra in (0.0, 0.1):
        events, decisions = name(f"events-{extra}"), name(f"decisions-{extra}")
        create(at, [events, decisions], 1, {})
        pipeline = replace(flights, events=replace(flights.events, topic=events))
        watcher = Watcher(at, [decisions], {})
        job = threading.Thread(target=answer_after, args=(extra, at, events, decisions, 150))
        job.start()
        took = probe(at, {}, pipeline, board(450, days=1), 300.0, watcher, decisions)
        job.join()
        watcher.close()
        assert len(took) == 50
        least.append(float(np.min(took)))
    assert 0 < least[0] < 100 <= least[1]
