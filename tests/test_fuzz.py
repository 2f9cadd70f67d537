"""20,000 messages changed at random go through the real flow: each is decided or a dead letter, and memory does not grow."""

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from fuzzed import fuzzed
from payments import CHAMPION, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_avro_flow import FIRST, SECOND, avro
from test_avro_flow import pipeline as avro_payments

from ops.broker import Broker
from ops.fake_registry import FakeRegistry, fake_registry
from ops.topics import create
from sinks.messages import Messages
from streams.pipeline import Decisions, Pipeline
from streams.run import run
from streams.source import MemorySource

N, ROWS = 20_000, 200
MOST_GROWTH = 24 * 1024 * 1024


class Counts:
    """A sink that keeps nothing but where each message's answer is from, and how much memory the process had meanwhile."""

    def __init__(self) -> None:
        self.decided, self.dead = Counter[int](), Counter[int]()
        self.codes = Counter[str]()
        self.resident: list[int] = []

    def write(self, messages: Messages) -> None:
        for value in messages.values:
            answer = json.loads(value)
            if messages.topic.endswith(".dead"):
                self.dead[answer["offset"]] += 1
                self.codes[answer["code"]] += 1
            else:
                self.decided[int(answer["decision_id"].rpartition("/")[2])] += 1
        self.resident.append(psutil.Process().memory_info().rss)

    def flush(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def schemas() -> Iterator[FakeRegistry]:
    with fake_registry() as made:
        yield made


def of_format(format: str, schemas: FakeRegistry) -> tuple[Pipeline, list[bytes | None]]:
    """A pipeline that decides on everything, and its messages."""
    if format == "json":
        return replace(payments(), decide_on="True"), fuzzed([value for _, value in stream(500)], N, seed=1)
    values = [value for _, value in avro(stream(500), schemas.add(FIRST), schemas.add(SECOND)) if value]
    return replace(avro_payments(schemas.address), decide_on="True"), fuzzed(values, N, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["json", "avro"])
def test_each_fuzzed_message_is_decided_or_a_dead_letter_and_memory_is_flat(
    tmp_path: Path, schemas: FakeRegistry, format: str
) -> None:
    pipeline, values = of_format(format, schemas)
    sink = Counts()
    run(
        pipeline,
        settings(tmp_path, recovery=True, epoch_seconds=0.1),
        registry=CollectorRegistry(),
        source=MemorySource([[(b"k", value) for value in values]], rows=ROWS),
        sink=sink,
        champion=CHAMPION,
    )
    gc.unfreeze()
    answers = sink.decided + sink.dead
    assert answers.keys() == set(range(N))
    assert set(answers.values()) == {1}
    assert len(sink.decided) > N // 100
    assert len(sink.dead) > N // 3
    assert len(sink.codes) >= 5
    half = len(sink.resident) // 2
    assert max(sink.resident[half:]) - max(sink.resident[:half]) < MOST_GROWTH


@pytest.mark.slow
def test_each_fuzzed_message_is_decided_or_a_dead_letter_on_kafka(
    tmp_path: Path, apache_kafka: Broker, schemas: FakeRegistry, name: Callable[[str], str]
) -> None:
    like, values = of_format("json", schemas)
    topic, verdicts = name("fuzz"), name("verdicts")
    pipeline = replace(like, events=replace(like.events, topic=topic), sinks=[Decisions(verdicts)])
    job = settings(tmp_path, brokers=apache_kafka.address, recovery=True)
    create(job.brokers, pipeline.topics(), 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": job.brokers})
    for value in values:
        producer.produce(topic, value)
        producer.poll(0)
    assert producer.flush(20) == 0
    run(pipeline, job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    answers = Counter[int]()
    for output in (verdicts, pipeline.events.dead):
        for message in _all(job.brokers, output):
            answer = json.loads(message.value() or b"")
            answers[answer["offset"] if "offset" in answer else int(answer["decision_id"].rpartition("/")[2])] += 1
    assert answers.keys() == set(range(N))
    assert set(answers.values()) == {1}


def _all(brokers: str, topic: str) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "test"})
    _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.assign([TopicPartition(topic, 0, 0)])
    read: list[Message] = []
    while len(read) < end:
        read += consumer.consume(10_000, 1)
    consumer.close()
    return read
