"""The collector, a process of its own: holds every message of the output topic and says when it held it.

python -m bench.collect CONFIG.json is started by bench/run.py. It reads all partitions from the beginning and appends to a
file what comes, one block per batch that the client gives: a header (messages, monotonic ns when they were held, whether
their times are when the broker appended them), those times (ms), the lengths, the values. Nothing is parsed before the run
is over. It says how many there are each 0.2 s, and ends when its standard input does.
"""

import gc
import json
import os
import struct
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from bench.load import before_others

I64 = npt.NDArray[np.int64]
HEADER = struct.Struct("<qqq")
VALUE, STAMP, ERROR = (methodcaller(name) for name in ("value", "timestamp", "error"))
SAY_NS = 200_000_000
ROWS = 10_000


@dataclass(frozen=True)
class Collected:
    """Messages in the order they came: values, held i64 [n] (monotonic ns), appended i64 [n] (ms, the broker's;
    0 where the broker does not stamp them)."""

    values: Sequence[bytes]
    held: I64
    appended: I64


def collect(config: Mapping[str, Any], out: BinaryIO, stop: threading.Event) -> None:
    """Reads until `stop`. config: brokers, topic, partitions, fetch_wait_ms, consumer (further librdkafka settings)."""
    consumer = Consumer(
        {
            "bootstrap.servers": config["brokers"],
            "group.id": "headrace-bench",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": config["fetch_wait_ms"],
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.min.messages": 1_000_000,
            "queued.max.messages.kbytes": 512 * 1024,
            "log_level": 2,
            **config.get("consumer", {}),
        }
    )
    topic = config["topic"]
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(config["partitions"])])
    consumer.poll(1.0)
    before_others()
    count, say = 0, 0
    while not stop.is_set():
        one = consumer.poll(0.1)
        if one is not None:
            messages = [one, *consumer.consume(ROWS, 0)]
            now = time.monotonic_ns()
            count += _keep(messages, now, out)
        else:
            now = time.monotonic_ns()
        if now >= say:
            print(json.dumps({"messages": count}), flush=True)
            say = now + SAY_NS
    out.flush()
    consumer.close()
    print(json.dumps({"messages": count, "end": True}), flush=True)


def _keep(messages: list[Message], now: int, out: BinaryIO) -> int:
    if any(map(ERROR, messages)):
        for message in messages:
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                raise KafkaException(error)
        messages = [message for message in messages if message.error() is None]
    if not messages:
        return 0
    values = [value or b"" for value in map(VALUE, messages)]
    stamps = list(map(STAMP, messages))
    out.write(HEADER.pack(len(values), now, stamps[0][0] == TIMESTAMP_LOG_APPEND_TIME))
    out.write(array("q", [stamp[1] for stamp in stamps]).tobytes())
    out.write(array("q", map(len, values)).tobytes())
    out.write(b"".join(values))
    return len(values)


def read(brokers: str, topic: str, partitions: int, wait: float = 10.0) -> Iterator[Collected]:
    """All messages of a topic, in blocks. Raises TimeoutError if nothing comes for `wait` seconds before the end."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "headrace-bench",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 5,
            "log_level": 2,
        }
    )
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    reading = set(range(partitions))
    try:
        while reading:
            messages = _some(consumer, wait)
            if not messages:
                raise TimeoutError(f"{topic}: partitions {sorted(reading)} were not read to their ends")
            for message in messages:
                error = message.error()
                if error is None:
                    continue
                if error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                reading.discard(message.partition())
            messages = [message for message in messages if message.error() is None]
            stamps = [message.timestamp() for message in messages]
            appended = np.array([at if kind == TIMESTAMP_LOG_APPEND_TIME else 0 for kind, at in stamps], np.int64)
            yield Collected([message.value() or b"" for message in messages], np.zeros(len(messages), np.int64), appended)
    finally:
        consumer.close()


def _some(consumer: Consumer, wait: float) -> list[Message]:
    one = consumer.poll(wait)
    return [] if one is None else [one, *consumer.consume(ROWS, 0)]


def blocks(file: Path) -> Iterator[Collected]:
    """The blocks of a collector's file."""
    with file.open("rb") as source:
        while header := source.read(HEADER.size):
            n, now, stamped = HEADER.unpack(header)
            appended = np.frombuffer(source.read(8 * n), np.int64) * stamped
            ends = np.cumsum(np.frombuffer(source.read(8 * n), np.int64))
            data = source.read(int(ends[-1]) if n else 0)
            places = [0, *ends.tolist()]
            values = [data[a:b] for a, b in pairwise(places)]
            yield Collected(values, np.full(n, now), appended)


def main() -> int:
    """The process."""
    config = json.loads(Path(sys.argv[1]).read_text())
    stop = threading.Event()

    def watch() -> None:
        while os.read(0, 1024):
            continue
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    gc.collect()
    gc.freeze()
    gc.disable()
    with Path(config["out"]).open("wb", buffering=1 << 20) as out:
        collect(config, out, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
