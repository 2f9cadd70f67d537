"""What docs/operations.md says of faults, one by one: nothing is lost in silence, and nothing waits for ever."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from payments import CHAMPION, payments, settings, stream
from prometheus_client import CollectorRegistry

from ops.broker import Broker, apache, find_apache, free_port
from ops.topics import create
from sinks.memory import MemorySink
from sinks.messages import DeliveryError
from streams.pipeline import Decisions, Pipeline
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource, SourceError

OUTAGE = 30.0


def running(pipeline: Pipeline, job: JobSettings, stop: threading.Event) -> tuple[threading.Thread, list[BaseException]]:
    """A job on a thread, and what it raises."""
    raised: list[BaseException] = []

    def go() -> None:
        try:
            run(pipeline, job, registry=CollectorRegistry(), champion=CHAMPION, stop=stop)
        except BaseException as error:  # noqa: BLE001 - Bytewax raises panics
            raised.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    return thread, raised


def named(topic: str, verdicts: str) -> Pipeline:
    like = replace(payments(), decide_on="True")
    return replace(like, events=replace(like.events, topic=topic), sinks=[Decisions(verdicts)])


def ids(brokers: str, topic: str) -> list[str]:
    """The decisions' ids, in the topic's order."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "test"})
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=20)
    except KafkaException:  # its leader is not known yet
        return []
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[str] = []
    while len(found) < end:
        found += [json.loads(message.value() or b"")["decision_id"] for message in consumer.consume(10_000, 1)]
    consumer.close()
    return found


def until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
def test_an_outage_of_half_a_minute_under_load_loses_nothing_and_is_caught_up_with(tmp_path: Path) -> None:
    home = find_apache()
    if home is None:
        pytest.skip("NO APACHE KAFKA: set KAFKA_HOME to a Kafka 4 download (and have Java 17): an outage is NOT proven")
    port, stop, sending = free_port(), threading.Event(), threading.Event()
    job = settings(tmp_path / "home", brokers=f"127.0.0.1:{port}", recovery=True)
    pipeline, log = named("pay", "verdicts"), stream(6_000)
    producer = Producer({"bootstrap.servers": job.brokers, "enable.idempotence": True, "log_level": 0})

    def send() -> None:
        for key, value in log:
            producer.produce("pay", value, key)
            producer.poll(0)
            time.sleep(0.01)
        producer.flush(60)
        sending.set()

    with ExitStack() as broker:
        broker.enter_context(apache(home, tmp_path / "kafka", port))
        create(job.brokers, pipeline.topics(), 1, {})
        thread, raised = running(pipeline, job, stop)
        sender = threading.Thread(target=send)
        sender.start()
        assert until(lambda: len(ids(job.brokers, "verdicts")) > 200, 30)
        broker.close()
        time.sleep(OUTAGE)
        broker.enter_context(apache(home, tmp_path / "kafka", port))
        sender.join()
        assert sending.is_set()
        done = until(lambda: len(set(ids(job.brokers, "verdicts"))) == len(log), 10)
        stop.set()
        thread.join(60)
        assert raised == []
        assert done
        found = ids(job.brokers, "verdicts")
        assert len(found) == len(set(found)) == len(log)


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["events", "decisions"])
def test_a_topic_that_is_deleted_stops_the_job_with_its_name(
    tmp_path: Path, apache_kafka: Broker, name: Callable[[str], str], deleted: str
) -> None:
    pipeline = named(name("pay"), name("verdicts"))
    kafka = {"delivery.timeout.ms": "5000", "topic.metadata.propagation.max.ms": "1000"} if deleted == "decisions" else {}
    job, stop = settings(tmp_path, brokers=apache_kafka.address, recovery=True, kafka=kafka), threading.Event()
    create(job.brokers, pipeline.topics(), 1, {})
    producer, admin = (
        Producer({"enable.idempotence": True, "bootstrap.servers": job.brokers, "log_level": 0}),
        AdminClient({"bootstrap.servers": job.brokers, "log_level": 0}),
    )
    topic, verdicts = pipeline.events.topic, pipeline.sinks[0].topic
    thread, raised = running(pipeline, job, stop)
    for key, value in stream(50):
        producer.produce(topic, value, key)
    producer.flush(20)
    assert until(lambda: len(ids(job.brokers, verdicts)) == 50, 30)
    gone = topic if deleted == "events" else verdicts
    admin.delete_topics([gone])[gone].result(20)
    if deleted == "decisions":
        for key, value in stream(50):
            producer.produce(topic, value, key)
        producer.flush(20)
    ended = until(lambda: not thread.is_alive(), 60)
    stop.set()
    thread.join(60)
    assert ended
    assert isinstance(raised[0], SourceError if deleted == "events" else DeliveryError)
    assert gone in str(raised[0])


@pytest.mark.slow
def test_a_decision_that_the_broker_finds_too_large_stops_the_job_and_nothing_is_passed_over(
    tmp_path: Path, apache_kafka: Broker, name: Callable[[str], str]
) -> None:
    pipeline = named(name("pay"), name("verdicts"))
    job = settings(tmp_path, brokers=apache_kafka.address, recovery=True)
    verdicts = pipeline.sinks[0].topic
    admin = AdminClient({"bootstrap.servers": job.brokers, "log_level": 0})
    small = NewTopic(verdicts, num_partitions=1, replication_factor=1, config={"max.message.bytes": "200"})
    admin.create_topics([small])[verdicts].result(20)
    create(job.brokers, pipeline.topics(), 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": job.brokers, "log_level": 0})
    for key, value in stream(50):
        producer.produce(pipeline.events.topic, value, key)
    producer.flush(20)
    with pytest.raises(DeliveryError, match=rf"failed on {verdicts}: .*too large"):
        run(pipeline, job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    with pytest.raises((DeliveryError, KafkaException)):
        run(pipeline, job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    assert ids(job.brokers, verdicts) == []


@pytest.mark.slow
def test_a_full_queue_makes_the_source_wait(tmp_path: Path, apache_kafka: Broker, name: Callable[[str], str]) -> None:
    pipeline = named(name("pay"), name("verdicts"))
    kafka = {"queue.buffering.max.messages": "50", "linger.ms": "50"}
    job = settings(tmp_path, brokers=apache_kafka.address, recovery=True, kafka=kafka)
    create(job.brokers, pipeline.topics(), 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": job.brokers, "log_level": 0})
    for key, value in stream(2_000):
        producer.produce(pipeline.events.topic, value, key)
    producer.flush(20)
    run(pipeline, job, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    found = ids(job.brokers, pipeline.sinks[0].topic)
    assert len(found) == len(set(found)) == 2_000


def test_a_slow_sink_makes_the_source_wait(tmp_path: Path) -> None:
    """Never is more than a poll or two polled and not yet taken over by the sink."""
    sink, ahead = MemorySink(), list[int]()
    source = MemorySource([stream(2_000)], rows=50)
    sink.on_write = lambda messages: time.sleep(0.01)
    part = source.build_part

    def spied(step_id: str, for_part: str, resume: int | None) -> object:
        made = part(step_id, for_part, resume)
        poll = made.poll
        made.poll = lambda wait: (ahead.append(made._position - len(sink.values("verdicts"))), poll())[1]  # type: ignore[func-returns-value,method-assign]
        return made

    source.build_part = spied  # type: ignore[assignment,method-assign]
    pipeline = replace(payments(), decide_on="True")
    run(pipeline, settings(tmp_path), registry=CollectorRegistry(), source=source, sink=sink, champion=CHAMPION)
    assert len(sink.values("verdicts")) == 2_000
    assert max(ahead) <= 200


def test_a_clock_that_steps_back_changes_no_decision(tmp_path: Path) -> None:
    """An hour back at each look: only `decided_at` says so."""
    answers = []
    for k in range(2):
        now, sink = [10**18], MemorySink()

        def clock(now: list[int] = now, k: int = k) -> int:
            now[0] -= k * 3600 * 10**9
            return now[0]

        run(
            payments(),
            settings(tmp_path / str(k), recovery=True, epoch_seconds=0.01),
            registry=CollectorRegistry(),
            source=MemorySource([stream(1_000)], rows=50),
            sink=sink,
            champion=CHAMPION,
            clock_ns=clock,
        )
        answers.append([json.loads(value) for value in sink.values("verdicts")])
    times = [answer.pop("decided_at") for answer in answers[1]]
    assert times[0] > times[-1]
    assert [answer | {"decided_at": ""} for answer in answers[0]] == [answer | {"decided_at": ""} for answer in answers[1]]


@pytest.mark.slow
def test_a_full_disk_under_the_recovery_store_stops_the_job_which_goes_on_when_there_is_room(tmp_path: Path) -> None:
    def go(most: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(Path(__file__).parent / "faults_disk.py"), str(tmp_path), str(most)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    full = go(400_000)
    assert full.returncode == 1
    some = int(full.stdout)
    assert some > 0
    assert full.stderr.startswith("headrace: ")
    again = go(1 << 40)
    assert again.returncode == 0, again.stderr
    total = sum(json.loads(value)["kind"] == "paid" for _, value in stream(20_000))
    assert int(again.stdout) + some >= total
