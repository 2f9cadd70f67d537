"""The broker that a benchmark runs on, and its topics."""

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ops.broker import MAX_MESSAGE, BrokerError, apache, embedded, find_apache
from ops.topics import counts

HEAP = "1g"
"""What Kafka's own script gives a server. One that begins with less marks what lives in its heap all the time, and stops for 10
to 80 ms every three seconds."""


@dataclass(frozen=True)
class Served:
    """A broker. kind: apache, embedded or address. pid: of its process, where it is on this machine and can be seen."""

    kind: str
    address: str
    pid: int | None

    @property
    def fetch_wait_ms(self) -> int:
        """How long a fetch waits at the broker: the embedded one does not wake a waiting fetch when data comes."""
        return 5 if self.kind == "embedded" else 100


@contextmanager
def broker(named: str) -> Iterator[Served]:
    """Starts "apache" or "embedded", or takes the one at HOST:PORT. Raises BrokerError."""
    if named == "embedded":
        with embedded() as own:
            yield Served(named, own.address, own.process.pid)
    elif named == "apache":
        home = find_apache()
        if home is None:
            raise BrokerError("no Apache Kafka: set KAFKA_HOME to a Kafka 4 download, or take --broker embedded or HOST:PORT")
        with tempfile.TemporaryDirectory(prefix="headrace-kafka-") as folder, apache(home, Path(folder), heap=HEAP) as own:
            yield Served(named, own.address, own.process.pid)
    elif ":" in named:
        pid = listener(named)
        yield Served(kind(pid), named, pid)
    else:
        raise BrokerError(f"--broker {named}: expected apache, embedded or HOST:PORT")


def listener(address: str) -> int | None:
    """The process on this machine that listens at HOST:PORT, if it can be seen."""
    host, _, port = address.partition(",")[0].rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return None
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == int(port):
                return connection.pid
    return None


def kind(pid: int | None) -> str:
    """apache or embedded, as the process's command line says; else address."""
    with suppress(psutil.Error):
        command = " ".join(psutil.Process(pid).cmdline()) if pid else ""
        return "apache" if "kafka.Kafka" in command else "embedded" if "tansu" in command else "address"
    return "address"


@contextmanager
def topics(served: Served, partitions: int, extra: Sequence[str], source: str = "") -> Iterator[tuple[str, str]]:
    """A new input topic (or the one that is given, which stays) and a new output topic, whose messages have the time at which
    the broker appended them; they and `extra`, templates of {input} and {output}, are deleted at the end.

    What earlier runs wrote is brought to the disk first, so that nobody pays for it in the turn after."""
    os.sync()
    stem = uuid.uuid4().hex[:8]
    given, source, sink = bool(source), source or f"bench-{stem}-in", f"bench-{stem}-out"
    more = [name.replace("{input}", source).replace("{output}", sink) for name in extra]
    plain = more if given else [source, *more]
    make(served, plain, partitions)
    make(served, [sink], partitions, appended=True)
    try:
        yield source, sink
    finally:
        drop(served, [sink, *plain])


def make(
    served: Served,
    names: Sequence[str],
    partitions: int,
    appended: bool = False,
    replicas: int = 1,
    more: Mapping[str, str] | None = None,
) -> None:
    """Makes topics; appended: their messages get the broker's time; more: their settings.

    Returns when the broker shows them.
    """
    client = AdminClient({"bootstrap.servers": served.address, "log_level": 0})
    config = {"max.message.bytes": str(MAX_MESSAGE), **(more or {})}
    config |= {"message.timestamp.type": "LogAppendTime"} if appended else {}
    if not names:
        return
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=config) for name in names]
    for future in client.create_topics(wanted).values():
        future.result(30)
    deadline = time.monotonic() + 20
    while not all(name in client.list_topics(timeout=10).topics for name in names):
        if time.monotonic() > deadline:
            raise BrokerError(f"the broker at {served.address} does not show the topics {', '.join(names)}")
        time.sleep(0.05)


@contextmanager
def counting(served: Served, topic: str) -> Iterator[Callable[[], int]]:
    """Gives a function that says how many messages a topic has."""
    consumer = Consumer({"bootstrap.servers": served.address, "group.id": "headrace-bench", "log_level": 0})
    partitions = [TopicPartition(topic, number) for number in consumer.list_topics(topic, timeout=10).topics[topic].partitions]

    def count() -> int:
        if served.kind == "embedded":  # it does not say where its log ends
            return sum(counts(served.address, [topic], {})[topic] or ())
        marks = [consumer.get_watermark_offsets(partition, timeout=10) for partition in partitions]
        return sum(high - low for low, high in marks)

    try:
        yield count
    finally:
        consumer.close()


def drop(served: Served, names: Sequence[str]) -> None:
    """Deletes topics, where the broker lets them be deleted."""
    client = AdminClient({"bootstrap.servers": served.address, "log_level": 0})
    for future in client.delete_topics(list(names), operation_timeout=20).values():
        with suppress(KafkaException):
            future.result(30)
