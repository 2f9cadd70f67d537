"""Brokers: they start, take messages of 10 MB, and say in one line why they do not start. Topics: made once, counted."""

import hashlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from ops import broker as brokers
from ops.broker import Broker, BrokerError, apache, embedded, find_apache
from ops.replay import PRODUCER
from ops.topics import BrokerMissingError, counts, create
from ops.watch import Watcher
from sinks.kafka import KafkaSink
from sinks.messages import Messages
from streams.rounds import as_one
from streams.routing import shard_name
from streams.source import KafkaSource

TEN_MB = 10 * 1024 * 1024


def read(broker: Broker, topic: str, count: int) -> list[bytes]:
    """Messages as a job reads them."""
    source = KafkaSource(
        topic, broker.address, {}, group="test", rows=4096, clock_ns=lambda: 0, stop=threading.Event(), until_end=True
    )
    part = source.build_part("events", shard_name(0), None)
    values: list[bytes] = []
    try:
        while len(values) < count:
            polled = part.poll()
            values += as_one([(shard_name(0), polled)])["_value"].to_pylist() if polled else []
    finally:
        part.close()
    return values


@pytest.mark.timeout(120)
def test_messages_of_ten_megabytes_pass_in_and_out_and_hold_up_nobody(broker: Broker, name: Callable[[str], str]) -> None:
    topic = name("large")
    assert create(broker.address, [topic], 1, {}) == [topic]
    sent = [bytes([number]) * (TEN_MB if number % 2 else 100) for number in range(8)]
    producer = Producer({**PRODUCER, "bootstrap.servers": broker.address})
    producer.produce_batch(topic, [{"value": value} for value in sent])
    assert producer.flush(60) == 0
    sink = KafkaSink(broker.address)
    sink.write(Messages(topic, [b"key"] * len(sent), sent))
    sink.flush()
    sink.close()
    assert counts(broker.address, [topic], {}) == {topic: [16]}
    digests = [hashlib.sha256(value).hexdigest() for value in sent]
    assert [hashlib.sha256(value).hexdigest() for value in read(broker, topic, 16)] == digests * 2
    watcher = Watcher(broker.address, [topic], {})
    while watcher.count(topic) < 16:
        assert watcher.failed is None
    watcher.close()
    assert [hashlib.sha256(value).hexdigest() for value in watcher.values[topic]] == digests * 2


def test_topics_are_made_once_and_counted_by_partition(broker: Broker, name: Callable[[str], str]) -> None:
    there, missing = name("there"), name("missing")
    assert create(broker.address, [there], 3, {}) == [there]
    assert create(broker.address, [there], 3, {}) == []
    producer = Producer({"bootstrap.servers": broker.address})
    for number in range(7):
        producer.produce(there, b"value", partition=2 if number else 0)
    assert producer.flush(20) == 0
    assert counts(broker.address, [there, missing], {}) == {there: [1, 0, 6], missing: None}


def test_topics_of_a_broker_that_is_not_there_are_an_error() -> None:
    nowhere = f"127.0.0.1:{brokers.free_port()}"
    with pytest.raises(BrokerMissingError, match=rf"^no Kafka broker answers at {nowhere} .*--brokers$"):
        counts(nowhere, ["topic"], {}, timeout=1)


def test_the_embedded_broker_ends_with_its_block() -> None:
    with embedded() as broker:
        assert broker.process.poll() is None
    assert broker.process.poll() is not None
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(broker.address.split(":")[1]))):
        pass


@pytest.mark.parametrize("kind", ["embedded", "apache"])
def test_a_taken_port_is_said_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded_broker: Broker
) -> None:
    """Even where a broker listens there: that one would answer, and the test would use it."""
    monkeypatch.setattr(brokers, "_java", lambda: None)
    (tmp_path / "bin").mkdir()
    (tmp_path / brokers.START).touch()
    port = int(embedded_broker.address.split(":")[1])
    with (
        pytest.raises(BrokerError, match=rf"^the broker cannot listen on 127.0.0.1:{port}: .* name another port$"),
        embedded(port) if kind == "embedded" else apache(tmp_path, tmp_path / "data", port),
    ):
        pass


def test_a_missing_binary_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere/tansu")
    with pytest.raises(BrokerError, match=r"/nowhere/tansu.*--brokers$"), embedded():
        pass


def test_a_broker_that_leaves_at_once_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "tansu"
    binary.write_text("#!/bin/sh\nexit 7\n")
    binary.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(binary))
    with pytest.raises(BrokerError, match="left with code 7"), embedded():
        pass


def test_kafka_home_without_a_kafka_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    with pytest.raises(BrokerError, match=r"^KAFKA_HOME=.*found no bin/kafka-server-start.sh$"):
        find_apache()


def test_kafka_without_java_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / brokers.START).touch()
    monkeypatch.setenv("KAFKA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(BrokerError, match="needs Java 17 or newer: no java on the path"):
        find_apache()
