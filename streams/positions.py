"""The last safe positions of a job: below them every message is decided, and what came of it delivered.

A recovery store holds them to the epoch. A consumer group has them too, a moment later, for when the store is gone.
"""

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.routing import shard_number
from streams.start import Start
from streams.store import RecoveryError, Store


@dataclass(frozen=True)
class Position:
    """Of a partition: what was read until, and below which all is decided; less than that where rows wait for their turn."""

    read: int
    decided: int


def positions(store: Store, flow: str) -> dict[int, Position]:
    """The positions by partition at the epoch that Bytewax resumes the dataflow `flow` at. Raises RecoveryError."""
    read = {shard_number(each.key): int(each.load()) for each in store.snapshots(f"{flow}.event")}
    waiting: dict[int, int] = {}
    for each in store.snapshots(f"{flow}.gather"):
        state = each.load()
        if state and state["waiting"]:
            waiting[shard_number(each.key)] = min(item[0] for item in state["waiting"])
    return {number: Position(at, min(at, waiting.get(number, at))) for number, at in sorted(read.items())}


def kept(folder: Path, flow: str) -> dict[int, int]:
    """The safe positions by partition that the recovery store in `folder` has of the dataflow `flow`, as Bytewax would resume.

    Where rows wait for their turn (order="event") that is before what was read. None at all of a store that cannot be read, or
    has lost partitions: who needs them asks the consumer group.
    """
    try:
        found = dict(Start.load(folder).decide)
        with Store(folder) as store:
            if store.missing:
                return {}
            for number, position in positions(store, flow).items():
                found[number] = max(position.decided, found.get(number, 0))
    except RecoveryError:
        return {}
    return found


def stages(folder: Path, flow: str) -> bool:
    """Whether the dataflow `flow` staged its output, as the recovery store in `folder` says; not, if it cannot be read."""
    try:
        with Store(folder) as store:
            return any(each.load() is not None for step in ("sink", "reports") for each in store.snapshots(f"{flow}.{step}"))
    except RecoveryError:
        return False


def forget_unfinished(folder: Path) -> int:
    """Deletes what a killed run wrote of epochs that never became durable; returns how many snapshots. Before Bytewax starts.

    Bytewax resumes before them but leaves them there. A key that is not snapshotted again in the epoch of that number would,
    after the next crash, come back as the killed run had left it. Where partitions are in other folders they stay: nobody here
    knows the epoch.
    """
    with Store(folder) as store:
        epoch, files = store.progress.epoch, store.files
        if epoch is None or store.missing:
            return 0
    return forget(files, epoch)


def forget(files: Sequence[Path], epoch: int) -> int:
    """Deletes the snapshots from an epoch on; returns how many."""
    gone = 0
    for file in files:
        with closing(sqlite3.connect(file)) as opened, opened:
            gone += opened.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (epoch,)).rowcount
    return gone


def committed(
    brokers: str, config: Mapping[str, str], group: str, topic: str, partitions: int, timeout: float = 30.0
) -> dict[int, int]:
    """The positions that a consumer group has in a topic, by partition, of those where it has one.

    Raises RecoveryError if the broker does not say within `timeout` seconds; one that has just started takes a while.
    """
    named: dict[str, str | bool | int] = {"bootstrap.servers": brokers, "group.id": group}
    consumer = Consumer({**named, "enable.auto.commit": False, "log_level": 0, **config})
    deadline = time.monotonic() + timeout
    try:
        while True:
            places, error = _asked(consumer, [TopicPartition(topic, number) for number in range(partitions)], timeout)
            if error is None:
                return {place.partition: place.offset for place in places if place.offset >= 0}
            if error.code() not in NOT_YET or time.monotonic() > deadline:
                told = f"the broker at {brokers} does not say the positions of group {group}: {error.str()}"
                raise RecoveryError(told)
            time.sleep(0.2)
    finally:
        consumer.close()


NOT_YET = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError._WAIT_COORD,
    KafkaError._TRANSPORT,
)


def _asked(consumer: Consumer, places: list[TopicPartition], timeout: float) -> tuple[list[TopicPartition], KafkaError | None]:
    try:
        answered = consumer.committed(places, timeout=timeout)
    except KafkaException as error:
        return [], error.args[0]
    return answered, next((place.error for place in answered if place.error is not None), None)
