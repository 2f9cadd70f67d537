"""The last safe positions of a job: below them every message is decided, and what came of it delivered.

A recovery store holds them to the epoch. A consumer group has them too, a moment later, for when the store is gone.
"""

import io
import pickle
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.routing import shard_number
from streams.start import RecoveryError, Start

LAST_FRONTIER = """
WITH last AS (SELECT ex_num, worker_count, resume_epoch FROM exs WHERE ex_num = (SELECT MAX(ex_num) FROM exs))
SELECT worker_count, resume_epoch, COUNT(worker_frontier), MIN(worker_frontier) FROM last LEFT JOIN fronts USING (ex_num)
"""
LAST_SNAPSHOTS = """
SELECT step_id, state_key, ser_change FROM snaps JOIN
(SELECT step_id, state_key, MAX(snap_epoch) AS snap_epoch FROM snaps WHERE snap_epoch < ? GROUP BY step_id, state_key)
USING (step_id, state_key, snap_epoch) WHERE step_id IN (?, ?)
"""


def kept(folder: Path, flow: str) -> dict[int, int]:
    """The safe positions by partition that the recovery store in `folder` has of the dataflow `flow`, as Bytewax would resume.

    Where rows wait for their turn (order="event") that is before what was read. Raises RecoveryError for a store that cannot
    be read.
    """
    files = sorted(folder.glob("*.sqlite3"))
    if len(files) > 1:
        raise RecoveryError(f"recovery store {folder}: expected one file of Bytewax, got {len(files)}")
    found = dict(Start.load(folder).decide)
    try:
        for file in files:
            with closing(sqlite3.connect(file)) as store:
                read, waiting = _positions(store, flow)
            for partition, position in read.items():
                safe = min(position, waiting.get(partition, position))
                found[partition] = max(safe, found.get(partition, 0))
    except (sqlite3.Error, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        raise RecoveryError(f"recovery store {folder}: its positions cannot be read: {type(error).__name__} {error}") from None
    return found


def forget_unfinished(folder: Path) -> int:
    """Deletes what a killed run wrote of epochs that never became durable; returns how many snapshots. Before Bytewax starts.

    Bytewax resumes before them but leaves them there. A key that is not snapshotted again in the epoch of that number would,
    after the next crash, come back as the killed run had left it.
    """
    gone = 0
    for file in folder.glob("*.sqlite3"):
        with closing(sqlite3.connect(file)) as store, store:
            frontier = _frontier(store)
            if frontier is not None:
                gone += store.execute("DELETE FROM snaps WHERE snap_epoch >= ?", (frontier,)).rowcount
    return gone


def _frontier(store: sqlite3.Connection) -> int | None:
    """The epoch that Bytewax resumes at; None for a store that has not been used."""
    row = store.execute(LAST_FRONTIER).fetchone()
    if row is None or row[0] is None:
        return None
    workers, resume, told, earliest = row
    return int(resume if told < workers or earliest is None else earliest)


def _positions(store: sqlite3.Connection, flow: str) -> tuple[dict[int, int], dict[int, int]]:
    """By partition: what was read until, and the first message that waits to be decided, where one does."""
    frontier = _frontier(store)
    if frontier is None:
        return {}, {}
    read: dict[int, int] = {}
    waiting: dict[int, int] = {}
    event, gather = f"{flow}.event", f"{flow}.gather"
    for step, key, data in store.execute(LAST_SNAPSHOTS, (frontier, event, gather)):
        state = None if data is None else _Plain(io.BytesIO(data)).load()
        if step == event and state is not None:
            read[shard_number(key)] = state
        elif step == gather and state is not None and state["waiting"]:
            waiting[shard_number(key)] = min(item[0] for item in state["waiting"])
    return read, waiting


class _Plain(pickle.Unpickler):
    """Loads plain data and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"expected plain data, got {module}.{name}")


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
