"""The Kafka sink: what flush() has confirmed is on the topic, in order, and no failure goes unnoticed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

import sinks.kafka
from ops.broker import embedded
from ops.topics import create
from sinks.kafka import KafkaSink
from sinks.messages import DeliveryError, Messages

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    with embedded() as broker:
        yield broker.address


def make(brokers: str, topic: str, partitions: int = 1) -> str:
    assert create(brokers, [topic], partitions, {}) == [topic]
    return topic


def read(brokers: str, topic: str, partition: int, count: int) -> list[tuple[bytes | None, bytes]]:
    consumer = Consumer(
        {"bootstrap.servers": brokers, "group.id": "test", "fetch.wait.max.ms": 5, "fetch.message.max.bytes": 2**24}
    )
    consumer.assign([TopicPartition(topic, partition, 0)])
    found: list[tuple[bytes | None, bytes]] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found += [(message.key(), message.value()) for message in consumer.consume(1000, 0.05) if not message.error()]
    found += [(message.key(), message.value()) for message in consumer.consume(1000, 0.1) if not message.error()]
    consumer.close()
    return found


def batch(topic: str, n: int, start: int = 0) -> Messages:
    return Messages(
        topic,
        [f"k{k % 5}".encode() if k % 7 else None for k in range(start, start + n)],
        [b"%d" % k for k in range(start, start + n)],
    )


@contextmanager
def fails(within: float, match: str) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(DeliveryError, match=match):
        yield
    assert time.monotonic() - began < within


def test_what_is_flushed_is_there_in_order_with_its_keys(brokers: str) -> None:
    topic = make(brokers, "ordered")
    sink = KafkaSink(brokers)
    for start in range(0, 1000, 100):
        sink.write(batch(topic, 100, start))
        sink.flush()
    sink.close()
    whole = batch(topic, 1000)
    assert read(brokers, topic, 0, 1000) == list(zip(whole.keys, whole.values, strict=True))


def test_keys_go_to_partitions_as_java_clients_send_them(brokers: str) -> None:
    """The hashes are those that Kafka's own UtilsTest pins for murmur2; made positive, modulo the number of partitions."""
    hashes = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    topic = make(brokers, "murmur", 7)
    sink = KafkaSink(brokers)
    sink.write(Messages(topic, list(hashes), list(hashes)))
    sink.flush()
    sink.close()
    partitions = {key: (code & 0x7FFFFFFF) % 7 for key, code in hashes.items()}
    assert len(set(partitions.values())) == 3
    for key, partition in partitions.items():
        assert read(brokers, topic, partition, 1) == [(key, key)]


def test_a_full_queue_is_waited_out_and_keeps_the_order(brokers: str) -> None:
    topic = make(brokers, "narrow")
    sink = KafkaSink(brokers, {"queue.buffering.max.messages": "50"})
    for start, n in ((0, 30), (30, 40), (70, 230), (300, 1), (301, 50)):
        sink.write(batch(topic, n, start))
    sink.flush()
    sink.close()
    assert [value for _, value in read(brokers, topic, 0, 351)] == batch(topic, 351).values


def test_the_queue_is_bounded_in_bytes_too(brokers: str) -> None:
    topic = make(brokers, "heavy")
    sink = KafkaSink(brokers, {"queue.buffering.max.kbytes": "1024"})
    values = [bytes([k]) * 200_000 for k in range(20)]
    sink.write(Messages(topic, [b"k"] * 20, values))
    sink.write(Messages(topic, [b"k"], [b"last"]))
    sink.flush()
    sink.close()
    assert [value for _, value in read(brokers, topic, 0, 21)] == [*values, b"last"]


def test_messages_of_ten_megabytes_pass(brokers: str) -> None:
    topic = make(brokers, "large")
    sink = KafkaSink(brokers)
    sink.write(Messages(topic, [None], [b"x" * 10_000_000]))
    sink.flush()
    sink.close()
    assert [len(value) for _, value in read(brokers, topic, 0, 1)] == [10_000_000]


def test_a_message_too_large_fails_when_it_is_written_and_the_sink_stays_failed(brokers: str) -> None:
    topic = make(brokers, "too-large")
    sink = KafkaSink(brokers)
    with fails(1, "1 failed on too-large: .*MSG_SIZE_TOO_LARGE"):
        sink.write(Messages(topic, [None] * 3, [b"a", b"x" * 17_000_000, b"b"]))
    with fails(5, "MSG_SIZE_TOO_LARGE"):
        sink.flush()
    with fails(1, "MSG_SIZE_TOO_LARGE"):
        sink.write(Messages(topic, [None], [b"c"]))
    sink.close()


def test_no_broker_is_an_error_within_the_time_out_and_says_why() -> None:
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "500"})
    sink.write(Messages("t", [None] * 3, [b"x"] * 3))
    with fails(4, r"3 failed on t: .*timed out \(the last trouble: .*Connection refused"):
        sink.flush()
    with fails(1, "3 failed on t"):
        sink.flush()
    with fails(1, "3 failed on t"):
        sink.write(Messages("t", [None], [b"x"]))
    sink.close()


def test_a_failure_shows_in_a_later_write_without_a_flush() -> None:
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "500"})
    sink.write(Messages("t", [None], [b"x"]))
    time.sleep(2.2)
    with fails(1, "1 failed on t"):
        sink.write(Messages("t", [None], [b"y"]))
    sink.close()


def test_a_queue_that_stays_full_is_an_error() -> None:
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "500", "queue.buffering.max.messages": "10"})
    sink.write(batch("t", 8))
    with fails(4, "failed on t"):
        sink.write(batch("t", 8, 8))
    sink.close()


def test_what_waits_behind_a_failed_message_is_given_up_and_does_not_overtake_it() -> None:
    """Later messages of its key would be there before it, when the job decides again."""
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "60000"})
    sink.write(batch("t", 8))
    sink._on_delivery(KafkaError(KafkaError._MSG_TIMED_OUT), _Of("t"))  # type: ignore[arg-type]
    with fails(1, "9 failed on t: .*timed out"):
        sink.flush()
    assert len(sink._producer) == 0
    sink.close()


class _Of:
    """A message of a topic, as far as the sink asks."""

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def topic(self) -> str:
        return self._topic


def test_what_is_left_when_flush_gives_up_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.kafka, "SLACK_SECONDS", -9.9)
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "10000"})
    sink.write(batch("t", 4))
    with fails(1, r"4 failed on t: not confirmed within 0\.1 s"):
        sink.flush()
    sink.close()


def test_a_broker_killed_between_write_and_flush_is_an_error() -> None:
    with embedded() as broker:
        topic = make(broker.address, "t")
        sink = KafkaSink(broker.address, {"delivery.timeout.ms": "4000"})
        sink.write(batch(topic, 5))
        sink.flush()
        broker.process.kill()
        broker.process.wait()
        sink.write(batch(topic, 5, 5))
        with fails(9, "5 failed on t: .*timed out"):
            sink.flush()
        with fails(1, "5 failed on t"):
            sink.flush()
        sink.close()


def test_python_is_called_for_failures_only(brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """delivery.report.only.error holds for produce_batch: not one call for a thousand deliveries, one for each failure."""
    calls: list[Any] = []
    own = KafkaSink._on_delivery

    def on_delivery(self: KafkaSink, error: KafkaError | None, message: Any) -> None:
        calls.append(error)
        own(self, error, message)

    monkeypatch.setattr(KafkaSink, "_on_delivery", on_delivery)
    sink = KafkaSink(brokers)
    sink.write(batch(make(brokers, "quiet"), 1000))
    sink.flush()
    sink.close()
    assert calls == []
    sink = KafkaSink(NOBODY, {"delivery.timeout.ms": "500"})
    sink.write(batch("t", 7))
    with fails(4, "7 failed"):
        sink.flush()
    sink.close()
    assert [error.code() for error in calls] == [KafkaError._MSG_TIMED_OUT] * 7


def test_close_does_not_wait_for_what_is_not_confirmed() -> None:
    sink = KafkaSink(NOBODY)
    sink.write(batch("t", 4))
    began = time.monotonic()
    sink.close()
    sink.close()
    assert time.monotonic() - began < 2
