"""A workload for tests of the harness, and peers that do it right or wrong: {"id":N} is answered {"id":N,"twice":2N}.

python tests/doubling.py MODE BROKERS INPUT OUTPUT runs such a peer; MODE is right, loses, doubles, wrong or dies.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from bench.workloads import Checked, Job, Prepared, Progress, write_payloads

AT = 300


class Doubling:
    """bench/workloads/__init__.py says what the methods are for. Every third message gets no answer."""

    name = "doubling"
    passes = ""
    width = 1

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ready(self, home: Path, progress: Progress) -> None:
        pass

    def prepare(self, messages: int, progress: Progress) -> Prepared:
        ids = np.array([-1 if k % 3 == 2 else k for k in range(messages)], np.int64)
        write_payloads(self._folder, [None] * messages, [b'{"id":%d}' % k for k in ids], ids)
        return Prepared(self._folder, messages, 10.0)

    def model(self) -> Path:
        return self._folder

    def repo(self) -> Path | None:
        return None

    def job(self) -> Job:
        return Job("")

    def check(self, prepared: Prepared, values: Sequence[bytes], *, ordered: bool) -> Checked:
        answers = [json.loads(value) for value in values]
        ids = np.array([answer["id"] for answer in answers], np.int64)
        wrong = np.array([answer["twice"] != 2 * answer["id"] for answer in answers], np.bool_)
        return Checked(ids, wrong, "not twice as much" if wrong.any() else "")


def answer(mode: str, k: int) -> list[bytes]:
    """What a peer says to message k."""
    if k < 0 or (mode == "loses" and k == AT):
        return []
    said = b'{"id":%d,"twice":%d}' % (k, 2 * k + (mode == "wrong" and k == AT))
    return [said, said] if mode == "doubles" and k == AT else [said]


def main(mode: str, brokers: str, source: str, sink: str) -> None:
    """A peer, until SIGTERM."""
    leaving: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: leaving.append(number))
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "doubling", "fetch.wait.max.ms": 5})
    parts = consumer.list_topics(source, timeout=10).topics[source].partitions
    consumer.assign([TopicPartition(source, part, OFFSET_BEGINNING) for part in parts])
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 2, "acks": "all", "enable.idempotence": True})
    while not leaving:
        for message in consumer.consume(1000, 0.005):
            k = json.loads(message.value() or b"")["id"]
            if mode == "dies" and k >= AT:
                print("doubling: I do not like this one", flush=True)
                os._exit(3)
            for value in answer(mode, k):
                producer.produce(sink, value)
        producer.poll(0)
    producer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
