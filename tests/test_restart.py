"""`headrace run --restart`: real processes on a real broker, one of which dies, and what the topics hold afterwards."""

import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from bench.proving.job import COUNT, event, make_model
from ops.broker import Broker
from ops.errors import FAILED
from ops.restart import FINAL, Death, Worker, wait
from ops.topics import create
from ops.workers import as_environment, end
from streams.settings import JobSettings

ROOT = Path(__file__).parents[1]
PARTITIONS, EACH, POISON = 3, 400, (1, 233)
JOB = """
import ctypes, os, signal
from bench.proving.job import pipeline
from models.engine import OnnxEngine

right = OnnxEngine.infer

def infer(self, matrix, out=None):
    if (matrix[:, 0] == {poison}).any():
        {die}
    return right(self, matrix, out)

OnnxEngine.infer = infer
job = pipeline("{name}")
"""
EXIT, SEGFAULT = "os._exit(9)", "ctypes.string_at(0)"


@contextmanager
def running(
    job: str, settings: JobSettings, log: Path, *options: str, restart: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run`, with --restart or without; killed at the end if it is still there."""
    command = [sys.executable, "-m", "ops", "run", job, *(["--restart"] if restart else []), *options]
    environment = os.environ | as_environment(settings) | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process
    finally:
        end([process], 0)


def read(broker: Broker, topic: str, partitions: int) -> list[dict[str, Any]]:
    """What a consumer with read_committed gets of a topic until nothing comes for a second."""
    config = {"bootstrap.servers": broker.address, "group.id": "test", "isolation.level": "read_committed"}
    consumer = Consumer(config)
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])
    found, until = [], time.monotonic() + 5
    while time.monotonic() < until:
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found.append(orjson.loads(message.value()))
                until = time.monotonic() + 1
    consumer.close()
    return found


def sent(partition: int, n: int) -> int:
    """The number in message n of a partition: another for each message."""
    return partition * EACH + n


def filled(broker: Broker, name: str, home: Path, **more: Any) -> JobSettings:
    """Topics, messages and a model; the settings of a job."""
    create(broker.address, [f"{name}-in", f"{name}-out"], PARTITIONS, {})
    create(broker.address, [f"{name}-in.dead"], 1, {})
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address})
    for partition in range(PARTITIONS):
        for n in range(EACH):
            producer.produce(f"{name}-in", event(f"p{partition}", "s", sent(partition, n)), None, partition)
    assert producer.flush(30) == 0
    settings = JobSettings(brokers=broker.address, home=home, metrics_port=0, **more)
    make_model(settings, home / "model")
    return settings


def until_said(log: Path, process: subprocess.Popen[bytes], words: str, seconds: float = 120) -> None:
    """Waits until the job has said it."""
    deadline = time.monotonic() + seconds
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def decided(broker: Broker, name: str, process: subprocess.Popen[bytes], log: Path) -> list[dict[str, Any]]:
    """The decisions, once all that can be decided is."""
    deadline = time.monotonic() + 60
    while True:
        found = read(broker, f"{name}-out", PARTITIONS)
        if len({one["decision_id"] for one in found}) >= PARTITIONS * EACH - 1:
            return found
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "die", "delivery"),
    [(1, SEGFAULT, "at_least_once"), (2, EXIT, "at_least_once"), (2, SEGFAULT, "exactly_once")],
)
def test_the_message_that_kills_becomes_a_dead_letter_and_all_others_are_decided_as_if_it_had_not_come(
    workers: int, die: str, delivery: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    broker = request.getfixturevalue("embedded_broker" if workers == 1 else "apache_kafka")
    name, log, file = f"poison{workers}{delivery[:2]}", tmp_path / "log", tmp_path / "job.py"
    settings = filled(broker, name, tmp_path / "home", workers=workers, delivery=delivery, epoch_seconds=0.1)
    file.write_text(JOB.format(name=name, poison=sent(*POISON), die=die))
    with running(f"{file}:job", settings, log, "--from", "earliest") as process:
        until_said(log, process, "is set aside")
        found = decided(broker, name, process, log)
        letters = read(broker, f"{name}-in.dead", 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
    ((partition, offset, code, reason),) = {(one["partition"], one["offset"], one["code"], one["reason"]) for one in letters}
    assert ((partition, offset), code) == (POISON, "poison")
    assert ("SIGSEGV" if die == SEGFAULT else "code 9") in reason
    first = dict[str, dict[str, Any]]()
    for one in found:
        first.setdefault(one["decision_id"], one)
    assert len(first) == PARTITIONS * EACH - 1
    assert delivery == "at_least_once" or len(found) == len(first)
    counts = {tuple(map(int, place.split("/")[-2:])): one["features"][COUNT] for place, one in first.items()}
    expected = {
        (p, n): n - (p == POISON[0] and n > POISON[1]) for p in range(PARTITIONS) for n in range(EACH) if (p, n) != POISON
    }
    assert counts == expected


@pytest.mark.slow
def test_a_killed_worker_is_back_in_seconds_and_one_that_always_dies_is_given_up(apache_kafka: Broker, tmp_path: Path) -> None:
    name, log, file = "killed", tmp_path / "log", tmp_path / "job.py"
    settings = filled(apache_kafka, name, tmp_path / "home", workers=2, restart_deaths=2, model_look_seconds=0)
    file.write_text(JOB.format(name=name, poison=-1, die="pass"))
    with running(f"{file}:job", settings, log, "--from", "earliest") as process:
        until_said(log, process, "worker 1 of 2 ready")
        decided(apache_kafka, name, process, log)
        parent = psutil.Process(process.pid)
        for times in range(3):
            workers = parent.children()
            assert len(workers) == 2
            workers[times % 2].kill()
            killed = time.monotonic()
            if times < 2:
                while not [one for one in parent.children() if one not in workers]:
                    assert time.monotonic() < killed + 5, log.read_text()
                    time.sleep(0.02)
                while log.read_text().count("worker 1 of 2 ready") < times + 2:
                    assert time.monotonic() < killed + 10, log.read_text()
                    time.sleep(0.02)
        assert process.wait(20) == 1
    assert log.read_text().count("was killed by SIGKILL; started again") == 2
    assert "gave up after 3 deaths, the last one: worker 0 of 2 was killed by SIGKILL" in log.read_text()
    assert not [one for one in workers if one.is_running()]


@pytest.mark.slow
def test_a_job_that_is_refused_at_the_door_is_not_started_again(embedded_broker: Broker, tmp_path: Path) -> None:
    """A topic that is not there, and a model that is not."""
    log, file = tmp_path / "log", tmp_path / "job.py"
    file.write_text(JOB.format(name="refused", poison=-1, die="pass"))
    settings = JobSettings(brokers=embedded_broker.address, home=tmp_path / "home", metrics_port=0)
    with running(f"{file}:job", settings, log) as process:
        assert process.wait(60) == 1
    assert "refused-in" in log.read_text()
    assert "started again" not in log.read_text()
    create(embedded_broker.address, ["refused-in", "refused-out", "refused-in.dead"], 1, {})
    with running(f"{file}:job", settings, log) as process:
        assert process.wait(60) == 1
    assert "no model faults" in log.read_text()
    assert "started again" not in log.read_text()


class Dying(Worker):
    """A worker that ends after a while, with a code and words."""

    def __init__(self, number: int, after: float, code: int, words: str = "") -> None:
        super().__init__(number, 2, 0, -1)
        self._after, self._at, self._end = after, 0.0, (code, [words] if words else [])

    def read(self) -> bool:
        return False

    def ended(self, wait: bool = False) -> bool:
        self._at = self._at or time.monotonic() + self._after  # from when somebody looks first
        if time.monotonic() >= self._at:
            self.code, self.words = self._end
        return self.code is not None


@pytest.mark.parametrize(
    ("workers", "death"),
    [
        ([Dying(0, 0.3, FINAL, "fenced"), Dying(1, 0, FAILED, "Send thread panic")], Death(FINAL, "worker 0 of 2: fenced")),
        ([Dying(0, 9, 0), Dying(1, 0, FAILED, "no bread")], Death(FAILED, "worker 1 of 2: no bread")),
        ([Dying(0, 0, FAILED, "MergeQueue poisoned"), Dying(1, 0, -9)], Death(-9, "worker 1 of 2 was killed by SIGKILL")),
        (
            [Dying(0, 0, FAILED, "Send thread panic"), Dying(1, 0.1, FAILED, "MergeQueue poisoned")],
            Death(FAILED, "worker 0 of 2: Send thread panic"),
        ),
    ],
)
def test_who_fails_is_what_a_job_died_of_and_not_who_has_lost_it(workers: list[Dying], death: Death) -> None:
    with selectors.DefaultSelector() as selector:
        assert wait(workers, selector, threading.Event()) == death
