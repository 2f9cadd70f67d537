"""A rebuild from a real topic: positions from the consumer group, the log bisected by the times of events, other workers."""

import json
import multiprocessing
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from payments import decisions, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import bare, champion_of, quick, spread, whole_of

from ops.broker import Broker, free_port
from ops.start import prepare
from ops.topics import create
from sinks.memory import MemorySink
from streams.decode import APPENDED, Decoded, with_append_time
from streams.log import KafkaLog
from streams.pipeline import Decisions, Pipeline
from streams.positions import committed, kept
from streams.rebuild import SECOND, Timeline
from streams.run import run
from streams.start import RecoveryError, Start, store_of

PARTITIONS = 3


def of_topic(events: str, **values: Any) -> Pipeline:
    pipeline = quick("event", **values)
    return replace(pipeline, events=replace(pipeline.events, topic=events), sinks=[Decisions(f"{events}-out", features=True)])


def fill(brokers: str, events: str, logs: list[Any]) -> None:
    create(brokers, [events], len(logs), {})
    create(brokers, [f"{events}-out", f"{events}.dead"], 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": brokers, "batch.num.messages": 50})
    for number, log in enumerate(logs):
        for key, value in log:
            producer.produce(events, value, key, partition=number)
    assert producer.flush(30) == 0


def half(home: Path, broker: Broker, pipeline: Pipeline, until: int) -> tuple[MemorySink, Any]:
    """Runs until so many are decided, drains and leaves."""
    sink, stop, values = MemorySink(), threading.Event(), job_settings(home, broker)
    sink.on_write = lambda messages: stop.set() if len(sink.values(pipeline.sinks[0].topic)) >= until else None
    run(pipeline, values, registry=CollectorRegistry(), sink=sink, champion=champion_of(pipeline), stop=stop)
    return sink, values


def job_settings(home: Path, broker: Broker) -> Any:
    return settings(home, brokers=broker.address, recovery=True, epoch_seconds=0.05, poll_rows=20)


def worker(events: str, values: dict[str, Any], number: int, addresses: list[str]) -> None:
    pipeline = of_topic(events, shards=5)
    parts = {"champion": champion_of(pipeline), "until_end": True}
    run(pipeline, settings(**values), registry=CollectorRegistry(), worker=number, addresses=addresses, **parts)


def written(brokers: str, topic: str) -> list[dict[str, Any]]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "test", "enable.partition.eof": True})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found, ended = [], False
    while not ended:
        for message in consumer.consume(1000, 0.1):
            ended = message.error() is not None
            found += [] if ended else [json.loads(message.value())]
    consumer.close()
    return found


@pytest.mark.slow
def test_a_lost_disk_is_rebuilt_with_other_workers_and_shards(
    broker: Broker, tmp_path: Path, name: Callable[[str], str]
) -> None:
    logs, events = spread(stream(3000), PARTITIONS), name("pay")
    before, after = of_topic(events), of_topic(events, shards=5)
    fill(broker.address, events, logs)
    whole = whole_of(tmp_path / "whole", after, logs)
    assert committed(broker.address, {}, before.group, events, PARTITIONS) == {}  # and the group's coordinator is there
    sink, values = half(tmp_path, broker, before, until=900)
    store = store_of(before, values)
    safe = kept(store, "payments")
    assert committed(broker.address, {}, before.group, events, PARTITIONS) == safe
    first = bare(decisions(sink, f"{events}-out"))
    assert 900 <= len(first) < len(whole)
    with pytest.raises(RecoveryError, match="--rebuild"):
        prepare(after, values, called="payments")
    shutil.rmtree(store)
    with pytest.raises(RecoveryError, match=r"has run before.*--rebuild"):
        prepare(after, values, called="payments")
    told: list[str] = []
    prepare(after, values, called="payments", rebuild=True, slack="1s", say=told.append)
    start = Start.load(store)
    assert start.decide == safe
    assert sum(start.read.values()) > 0, told
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    spawn = multiprocessing.get_context("spawn")
    kwargs = values.model_dump() | {"home": tmp_path, "epoch_seconds": 0.01, "poll_rows": 5}
    processes = [spawn.Process(target=worker, args=(events, kwargs, k, addresses)) for k in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    second = {one["decision_id"]: one for one in written(broker.address, f"{events}-out")}
    assert first.keys() | second.keys() == whole.keys()
    for found in (first, bare(second)):
        assert [one for one in found if found[one] != whole[one]] == []
    later = committed(broker.address, {}, before.group, events, PARTITIONS)
    assert all(safe[number] < later[number] <= len(log) for number, log in enumerate(logs)), "of its last epoch nobody hears"


def test_where_a_job_without_state_begins_is_said_or_asked_for(
    broker: Broker, tmp_path: Path, name: Callable[[str], str]
) -> None:
    log, events, told = stream(400), name("begin"), list[str]()
    pipeline = replace(of_topic(events), name=name("begins"))
    fill(broker.address, events, [log, []])
    values = job_settings(tmp_path, broker)
    store = store_of(pipeline, values)
    at = json.loads(log[100][1])["at"]
    reached = next(k for k, (_, value) in enumerate(log) if json.loads(value)["at"] >= at)

    def begins(**options: Any) -> Start:
        shutil.rmtree(store, ignore_errors=True)
        prepare(pipeline, values, called="my.py:job", say=told.append, **options)
        return Start.load(store)

    assert begins() == Start()
    assert told == [f"{pipeline.name}: first start, from the beginning of {events}"]
    assert begins(begin="earliest").decide == {0: 0, 1: 0}
    assert begins(begin="latest").decide == {0: 400, 1: 0}
    assert begins(begin=at) == Start({0: reached, 1: 0}, {0: reached, 1: 0})
    anew = begins(rebuild=True, begin=at)
    assert (anew.read, anew.decide, anew.begins) == ({0: 0, 1: 0}, {0: reached, 1: 0}, None)
    with pytest.raises(RecoveryError, match=r"neither .* says where .* was: add --from earliest, --from latest or --from TIME"):
        begins(rebuild=True)
    with pytest.raises(RecoveryError, match=r"expected earliest, latest or a time as in 2026-01-31T08:00, got yesterday"):
        begins(begin="yesterday")
    store.mkdir()
    (store / "made").write_text("{}")
    with pytest.raises(RecoveryError, match="--from needs --rebuild"):
        prepare(pipeline, values, called="my.py:job", begin="latest")
    with pytest.raises(RecoveryError, match=r"got none.*headrace run my.py:job --rebuild"):
        prepare(pipeline, values, called="my.py:job")


def test_the_brokers_own_times_are_found(broker: Broker, name: Callable[[str], str]) -> None:
    topic = name("times")
    create(broker.address, [topic], 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address})
    for second in (1000, 2000, 3000):
        producer.produce(topic, b"value", timestamp=second * 1000)
    assert producer.flush(20) == 0
    log = KafkaLog(topic, broker.address, {}, group="test")
    assert log.bounds(0) == (0, 3)
    timeline = Timeline(log, with_append_time(lambda raw: Decoded(raw, raw.slice(0, 0))), APPENDED, by_append=True)
    assert [timeline.since(0, second * SECOND) for second in (500, 1000, 1500, 3000, 3001)] == [0, 0, 1, 2, 3]
    log.close()


@pytest.mark.slow
def test_a_damaged_store_is_rebuilt_from_where_the_consumer_group_says(
    broker: Broker, tmp_path: Path, name: Callable[[str], str]
) -> None:
    logs, events = spread(stream(3000), PARTITIONS), name("pay")
    pipeline = of_topic(events)
    fill(broker.address, events, logs)
    sink, values = half(tmp_path, broker, pipeline, until=900)
    store = store_of(pipeline, values)
    safe, file = kept(store, "payments"), store / "part-0.sqlite3"
    file.write_bytes(b"no store" + file.read_bytes()[8:])
    with pytest.raises(RecoveryError, match=r"part-0.sqlite3 cannot be read: .*headrace run pay --rebuild makes"):
        prepare(pipeline, values, called="pay")
    told: list[str] = []
    prepare(pipeline, values, called="pay", rebuild=True, slack="1s", say=told.append)
    assert "as the consumer group headrace-payments says" in told[-1]
    assert Start.load(store).decide == safe
    assert (store.with_name("payments.old") / "part-0.sqlite3").exists()
    parts: dict[str, Any] = {"sink": sink, "champion": champion_of(pipeline), "until_end": True}
    run(pipeline, values, registry=CollectorRegistry(), **parts)
    assert bare(decisions(sink, f"{events}-out")) == whole_of(tmp_path / "whole", pipeline, logs)
