"""Raw record batches from a Kafka topic or from memory: one Bytewax source partition for each of the topic's.

A raw batch has `_key` and `_value` (binary), `_partition` int32, `_offset` int64, `_appended_at` int64 (ms, the broker's) and
`_polled_at` int64 (ns, ours). The source's item is (name of the partition, Polled).
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.decode import PROVENANCE
from streams.routing import shard_name, shard_number


class SourceError(RuntimeError):
    """The topic cannot be read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Polled:
    """One poll of one partition: a raw batch (perhaps without rows), whether it reached the end of the log, and whether it is
    the partition's first of an epoch."""

    batch: pa.RecordBatch
    at_end: bool
    begins_epoch: bool = False


class Gate:
    """Lets a worker's partitions poll again when what they brought is decided.

    Without it a source is asked for more while earlier batches are still between two steps, and a moderate rate becomes many
    batches of one row, each of which costs as much as twenty together. What waits is still in Kafka. Partitions poll in
    rounds, each once, so that all of a worker's get their turn and are decided together.
    """

    def __init__(self, most: int = 1) -> None:
        """most: batches on their way at which no new round begins; 0: never waits. partitions: how many poll by it."""
        self.partitions = 0
        self._most = most
        self._on_their_way = 0
        self._round = 1

    def opens(self, last: int) -> int:
        """The round in which a partition may poll that last did in round `last`, 0 if it has to wait."""
        if last == self._round and (self._on_their_way < self._most or not self._most):
            self._round += 1
        return self._round if last < self._round else 0

    def begun(self) -> None:
        """A batch is on its way."""
        self._on_their_way += 1

    def done(self, batches: int) -> None:
        """So many are decided, or have nothing to decide."""
        self._on_their_way = max(0, self._on_their_way - batches)


class _Partition(StatefulSourcePartition[tuple[str, Polled], int]):
    """Polls with `poll` from `position` on; leaves at the end of the log where `until_end`, or on `stop`: emits nothing more,
    lets an epoch pass, so that all that was emitted is delivered and snapshotted, and ends."""

    def __init__(self, name: str, position: int, stop: threading.Event, until_end: bool, gate: Gate) -> None:
        self._name = name
        self._gate = gate
        gate.partitions += 1
        self._round = 0
        self._waits = self._idle = False
        self._position = position
        self._stop = stop
        self._until_end = until_end
        self._was_at_end = False
        self._snapshots = 0
        self._begins_epoch = True
        self._leave_after: int | None = None

    @abstractmethod
    def poll(self) -> Polled | None:
        """What came since the last poll; None if nothing did."""

    def next_batch(self) -> list[tuple[str, Polled]]:
        if self._stop.is_set() or (self._until_end and self._was_at_end):
            if self._leave_after is None:
                self._leave_after = self._snapshots + 1
            if self._until_end or self._snapshots >= self._leave_after:
                raise StopIteration
            return []
        opened = self._gate.opens(self._round)
        self._waits = not opened
        if self._waits:
            return []
        self._round = opened
        polled = self.poll()
        self._idle = polled is None
        if polled is None or (polled.batch.num_rows == 0 and polled.at_end == self._was_at_end):
            return []
        self._was_at_end = polled.at_end
        if polled.batch.num_rows:
            self._position = polled.batch.column("_offset")[-1].as_py() + 1
        if self._begins_epoch:
            self._begins_epoch = False
            polled = replace(polled, begins_epoch=True)
        self._gate.begun()
        return [(self._name, polled)]

    def next_awake(self) -> datetime | None:
        if self._waits:
            return datetime.now(UTC) + LOOK_AGAIN
        return datetime.now(UTC) + min(self._gate.partitions * IDLE, LONGEST_IDLE) if self._idle else None

    def snapshot(self) -> int:
        self._snapshots += 1
        self._begins_epoch = True
        return self._position


LOOK_AGAIN = timedelta(microseconds=100)
POLL_BYTES = 4 * 1024 * 1024
IDLE, LONGEST_IDLE = timedelta(microseconds=300), timedelta(milliseconds=1)


class _KafkaPartition(_Partition):
    def __init__(
        self,
        name: str,
        topic: str,
        config: Mapping[str, str | int | float | bool],
        resume: int | None,
        rows: int,
        clock_ns: Callable[[], int],
        stop: threading.Event,
        until_end: bool,
        spent: Callable[[float], None],
        gate: Gate,
    ) -> None:
        super().__init__(name, 0 if resume is None else resume, stop, until_end, gate)
        self._spent = spent
        self._topic = topic
        self._partition = shard_number(name)
        self._rows = self._next_rows = rows
        self._clock_ns = clock_ns
        self._consumer = Consumer(dict(config))
        start = OFFSET_BEGINNING if resume is None else resume
        self._consumer.assign([TopicPartition(topic, self._partition, start)])

    def poll(self) -> Polled | None:
        started = time.perf_counter()
        messages = self._consumer.consume(self._next_rows, 0)
        if not messages:
            return None
        polled = self._polled(messages)
        if polled.batch.num_rows:
            size = polled.batch.column("_value").nbytes // polled.batch.num_rows
            self._next_rows = rows_of(size, self._rows, self._gate.partitions)
        self._spent(time.perf_counter() - started)
        return polled

    def _polled(self, messages: list[Message]) -> Polled:
        errors = [error for message in messages if (error := message.error()) is not None]
        at_end = False
        if errors:
            for error in errors:
                if error.code() != KafkaError._PARTITION_EOF:
                    raise SourceError(f"{self._topic}/{self._partition}: {error.str()}")
            at_end = messages[-1].error() is not None
            messages = [message for message in messages if message.error() is None]
        n = len(messages)
        batch = pa.RecordBatch.from_arrays(
            [
                _binary([message.key() for message in messages]),
                _binary([message.value() for message in messages]),
                pa.array(np.full(n, self._partition, np.int32)),
                pa.array(_offsets(messages)),
                pa.array(np.fromiter([message.timestamp()[1] for message in messages], np.int64, n)),
                pa.array(np.full(n, self._clock_ns(), np.int64)),
            ],
            schema=RAW,
        )
        return Polled(batch, at_end)

    def close(self) -> None:
        self._consumer.close()


def rows_of(size: int, most: int, partitions: int) -> int:
    """How many messages of `size` bytes to poll at once from each of a worker's partitions, whose rows become one batch: it is
    to stay in the cache from one step to the next."""
    return max(1, min(most, POLL_BYTES // (max(size, 1) * partitions)))


def _offsets(messages: list[Message]) -> npt.NDArray[np.int64]:
    """The offsets of messages of one partition, in order: as a rule without a gap, and then two of them tell all."""
    n = len(messages)
    if n and messages[-1].offset() - messages[0].offset() == n - 1:
        return np.arange(messages[0].offset(), messages[0].offset() + n)
    return np.array([message.offset() for message in messages], np.int64)


def _binary(values: list[bytes | None]) -> pa.Array:
    """An Arrow binary column of values; joined in one go where none is null."""
    if None in values:
        return pa.array(values, pa.binary())
    ends = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, values), np.int32, len(values)), out=ends[1:])  # type: ignore[arg-type]
    data = b"".join(values)  # type: ignore[arg-type]
    return pa.Array.from_buffers(pa.binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(data)])


RAW = PROVENANCE.insert(1, pa.field("_value", pa.binary()))


class KafkaSource(FixedPartitionedSource[tuple[str, Polled], int]):
    """A Kafka topic, by `assign`: every worker reads the partitions that Bytewax deals to it; the group is only a name.

    Nothing is asked of the broker before `partitions` is, which raises SourceError if it does not answer or has no such topic.
    """

    def __init__(
        self,
        topic: str,
        brokers: str,
        config: Mapping[str, str],
        *,
        group: str,
        rows: int,
        clock_ns: Callable[[], int],
        stop: threading.Event,
        until_end: bool = False,
        timeout: float = 10.0,
        spent: Callable[[float], None] = lambda seconds: None,
        gate: Gate | None = None,
    ) -> None:
        """rows: most messages of a poll, fewer where they are large (`rows_of`). until_end: end where the log ends. spent: told
        the seconds of polls that bring any.

        gate: what polls wait for; nothing, if none is given.
        """
        self._spent = spent
        self.gate = gate or Gate(0)
        self._topic = topic
        self._brokers = brokers
        self._client = config
        self._timeout = timeout
        self._rows = rows
        self._clock_ns = clock_ns
        self._stop = stop
        self._until_end = until_end
        self._config: dict[str, str | int | float | bool] = {
            "bootstrap.servers": brokers,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 5,
            "fetch.queue.backoff.ms": 50,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "fetch.max.bytes": 64 * 1024 * 1024,
            "queued.min.messages": 200_000,
            "queued.max.messages.kbytes": 128 * 1024,
            "log_level": 2,
            **config,
        }

    @cached_property
    def partitions(self) -> int:
        return topic_partitions(self._topic, self._brokers, self._client, self._timeout)

    def list_parts(self) -> list[str]:
        return [shard_name(partition) for partition in range(self.partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _KafkaPartition:
        return _KafkaPartition(
            for_part,
            self._topic,
            self._config,
            resume_state,
            self._rows,
            self._clock_ns,
            self._stop,
            self._until_end,
            self._spent,
            self.gate,
        )


def topic_partitions(topic: str, brokers: str, config: Mapping[str, str], timeout: float = 10.0) -> int:
    """The number of a topic's partitions. Raises SourceError if the broker does not answer or has no such topic."""
    try:
        client = AdminClient({"bootstrap.servers": brokers, "log_level": 0, **config})
        found = client.list_topics(topic, timeout=timeout).topics[topic]
    except KafkaException as error:
        reason = error.args[0].str()
        raise SourceError(f"no Kafka broker answers at {brokers} ({reason}): start one, or name it with --brokers") from error
    if found.error is not None or not found.partitions:
        raise SourceError(f"the broker at {brokers} has no topic {topic}: create it (headrace topics --create)")
    return len(found.partitions)


class _MemoryPartition(_Partition):
    def __init__(
        self, name: str, log: pa.RecordBatch, resume: int | None, rows: int, stop: threading.Event, until_end: bool, gate: Gate
    ) -> None:
        super().__init__(name, resume or 0, stop, until_end, gate)
        self._log = log
        self._rows = rows

    def poll(self) -> Polled | None:
        batch = self._log.slice(self._position, self._rows)
        return Polled(batch, self._position + batch.num_rows >= self._log.num_rows)


class MemorySource(FixedPartitionedSource[tuple[str, Polled], int]):
    """The same from lists of (key, value), one for each partition; ends when all is read, or on `stop`."""

    def __init__(
        self,
        partitions: Sequence[Sequence[tuple[bytes | None, bytes | None]]],
        *,
        rows: int = 4096,
        stop: threading.Event | None = None,
        until_end: bool = True,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._rows = rows
        self._stop = stop or threading.Event()
        self._until_end = until_end
        self.gate = Gate(0)
        self.partitions = len(partitions)
        self._logs = [
            pa.RecordBatch.from_arrays(
                [
                    pa.array([key for key, _ in log], pa.binary()),
                    pa.array([value for _, value in log], pa.binary()),
                    pa.array(np.full(len(log), number, np.int32)),
                    pa.array(np.arange(len(log), dtype=np.int64)),
                    pa.array(np.zeros(len(log), np.int64)),
                    pa.array(np.full(len(log), clock_ns(), np.int64)),
                ],
                schema=RAW,
            )
            for number, log in enumerate(partitions)
        ]

    def list_parts(self) -> list[str]:
        return [shard_name(partition) for partition in range(self.partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _MemoryPartition:
        return _MemoryPartition(
            for_part, self._logs[shard_number(for_part)], resume_state, self._rows, self._stop, self._until_end, self.gate
        )
