"""The flights' job as its users run it: a trained model, topics on a real broker, processes started and stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from ops.topics import create
from ops.workers import as_environment
from streams.flights import flights
from streams.settings import JobSettings

PIPELINE = """
from dataclasses import replace
from streams.flights import flights as original
from streams.pipeline import Decisions

flights = replace(
    original,
    events=replace(original.events, topic="{events}"),
    drift=replace(original.drift, topic="{events}-drift"),
    sinks=[Decisions("{decisions}", features=True)],
)
"""


def pipeline_file(folder: Path, events: str, decisions: str) -> str:
    """The flights with topics of their own, and decisions that carry their features, as PATH.py:NAME."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.py"
    path.write_text(PIPELINE.format(events=events, decisions=decisions))
    return f"{path}:flights"


def fill(brokers: str, events: str, keys: Sequence[bytes], values: Sequence[bytes], partitions: int, filled: int) -> None:
    """Makes the topics of events, dead letters and drift, and writes the messages: those of one key to one of the first
    `filled` partitions."""
    create(brokers, [events], partitions, {})
    create(brokers, [f"{events}.dead", f"{events}-drift"], 1, {})
    producer = Producer(
        {"enable.idempotence": True, "bootstrap.servers": brokers, "linger.ms": 5, "message.max.bytes": 16 * 1024 * 1024}
    )
    for key, value in zip(keys, values, strict=True):
        producer.produce(events, value, key, partition=sum(key) % filled)
        producer.poll(0)
    assert producer.flush(30) == 0


@contextmanager
def job(pipeline: str, settings: JobSettings, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run` in a process group of its own; killed at the end if it is still there."""
    command = [sys.executable, "-m", "ops", "run", pipeline, *options]
    process = subprocess.Popen(command, env=os.environ | as_environment(settings), start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the job and all its workers: nothing is drained or snapshotted."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and a clean leave."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


class Topic:
    """Reads a topic as it grows."""

    def __init__(self, brokers: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": brokers, "group.id": "test", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        self.messages: list[dict[str, Any]] = []

    def read_until(self, count: int, process: subprocess.Popen[bytes], timeout: float = 120) -> None:
        """Reads until there are so many different decisions; fails when the job dies or the time is up."""
        deadline = time.monotonic() + timeout
        ids = {message["decision_id"] for message in self.messages}
        while len(ids) < count:
            assert process.poll() is None, f"the job died with {process.returncode}"
            assert time.monotonic() < deadline, f"expected {count} decisions, got {len(ids)}"
            ids |= self.read()

    def read(self) -> set[str]:
        """Reads what is there; returns the ids of what came."""
        fresh = [json.loads(message.value()) for message in self._consumer.consume(10_000, 0.2) if message.error() is None]
        self.messages += fresh
        return {message["decision_id"] for message in fresh}

    def by_id(self) -> dict[str, dict[str, Any]]:
        """Decisions by their id; the first one counts."""
        found: dict[str, dict[str, Any]] = {}
        for message in self.messages:
            found.setdefault(message["decision_id"], message)
        return found

    def close(self) -> None:
        self._consumer.close()


def same_features(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two decisions were made on the same features and scores, to 1e-6."""
    if one["features"].keys() != other["features"].keys():
        return False
    pairs = [(one["score"], other["score"])] + [(value, other["features"][name]) for name, value in one["features"].items()]
    return all(a == b or (isinstance(a, float) and b is not None and np.isclose(a, b, rtol=1e-6, atol=1e-6)) for a, b in pairs)


def scheduled(events: pa.Table) -> int:
    """How many of the events are decided on."""
    return sum(
        kind == flights.events.schema.kinds.index("scheduled") for kind in events["kind"].combine_chunks().indices.to_pylist()
    )
