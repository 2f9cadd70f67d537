"""Raw record batches from a Kafka topic or from memory: one Bytewax source partition for each of the topic's.

A raw batch has `_key` and `_value` (binary), `_partition` int32, `_offset` int64, `_appended_at` int64 (ms, the broker's) and
`_polled_at` int64 (ns, ours). The source's item is (name of the partition, Polled).
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """One poll of one partition: a raw batch (perhaps without rows), whether it reached the end of the log, whether it is the
    partition's first of an epoch, and, where some of it only feeds the state, the first offset that is decided on."""

    batch: pa.RecordBatch
    at_end: bool
    begins_epoch: bool = False
    decide_from: int = 0


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


@dataclass
class Beginning:
    """Where a source begins and what it tells of its progress: see streams/start.py.

    read, decide: the first offset of a partition that is read, where there is no state, and that is decided on. undecided: the
    first offset of a partition that is read and waits to be decided, if any does, at the end of the last epoch. left: told the
    partition and how many messages before `decide` are still to be read. publishes: whether safe positions are committed to the
    consumer group. failed: told that such a commit was refused.
    """

    read: Mapping[int, int] = field(default_factory=dict)
    decide: Mapping[int, int] = field(default_factory=dict)
    undecided: dict[int, int] = field(default_factory=dict)
    left: Callable[[int, int], None] = lambda partition, left: None
    publishes: bool = False
    failed: Callable[[], None] = lambda: None


class _Partition(StatefulSourcePartition[tuple[str, Polled], int]):
    """Polls with `poll` from `position` on; leaves at the end of the log where `until_end`, or on `stop`: emits nothing more,
    lets an epoch pass, so that all that was emitted is delivered and snapshotted, and ends.

    The position of a snapshot is safe when Bytewax asks for the next batch: that epoch is durable then. It is published once a
    second at most, and at the end.
    """

    def __init__(
        self, name: str, position: int, stop: threading.Event, until_end: bool, gate: Gate, beginning: Beginning
    ) -> None:
        self._name = name
        self._number = shard_number(name)
        self._beginning = beginning
        self._decide_from = beginning.decide.get(self._number, 0)
        self._snapshotted: int | None = None
        self._safe = self._published = 0
        self._publish_at = 0.0
        if position < self._decide_from:
            beginning.left(self._number, self._decide_from - position)
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

    @abstractmethod
    def publish(self, position: int, wait: bool) -> None:
        """Tells others the safe position, which must not hold the stream unless it is to `wait`. Raises nothing."""

    def _durable(self, leaving: bool = False) -> None:
        """The epoch of the last snapshot is durable."""
        if self._snapshotted is not None:
            self._safe = min(self._snapshotted, self._beginning.undecided.get(self._number, self._snapshotted))
            self._snapshotted = None
        if self._safe > self._published and self._beginning.publishes:
            now = time.monotonic()
            if leaving or now >= self._publish_at:
                self._publish_at = now + PUBLISH_SECONDS
                self._published = self._safe
                self.publish(self._safe, leaving)

    def next_batch(self) -> list[tuple[str, Polled]]:
        self._durable()
        if self._stop.is_set() or (self._until_end and self._was_at_end):
            if self._leave_after is None:
                self._leave_after = self._snapshots + 1
            if self._until_end or self._snapshots >= self._leave_after:
                self._durable(leaving=True)
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
            if self._position < self._decide_from:
                polled = replace(polled, decide_from=self._decide_from)
                last = polled.batch.column("_offset")[-1].as_py()
                self._beginning.left(self._number, 0 if polled.at_end else max(0, self._decide_from - last - 1))
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
        self._snapshotted = self._position
        return self._position


PUBLISH_SECONDS = 1.0
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
        beginning: Beginning,
    ) -> None:
        if resume is None:
            resume = beginning.read.get(shard_number(name))
        super().__init__(name, 0 if resume is None else resume, stop, until_end, gate, beginning)
        self._spent = spent
        self._topic = topic
        self._partition = self._number
        self._rows = self._next_rows = rows
        self._clock_ns = clock_ns
        self._consumer = Consumer({**config, "on_commit": self._answered})
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
        return Polled(raw_batch(messages, self._partition, self._clock_ns()), at_end)

    def publish(self, position: int, wait: bool) -> None:
        try:
            self._consumer.commit(offsets=[TopicPartition(self._topic, self._partition, position)], asynchronous=not wait)
        except KafkaException:
            self._beginning.failed()

    def _answered(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        if error is not None or any(place.error is not None for place in places):
            self._beginning.failed()

    def close(self) -> None:
        self._consumer.close()


def raw_batch(messages: list[Message], partition: int, clock_ns: int) -> pa.RecordBatch:
    """Messages of one partition as a raw batch, polled at `clock_ns`."""
    n = len(messages)
    return pa.RecordBatch.from_arrays(
        [
            _binary([message.key() for message in messages]),
            _binary([message.value() for message in messages]),
            pa.array(np.full(n, partition, np.int32)),
            pa.array(_offsets(messages)),
            pa.array(np.fromiter([message.timestamp()[1] for message in messages], np.int64, n)),
            pa.array(np.full(n, clock_ns, np.int64)),
        ],
        schema=RAW,
    )


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
    """A Kafka topic, by `assign`: every worker reads the partitions that Bytewax deals to it; the group only says what is safe.

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
        beginning: Beginning | None = None,
    ) -> None:
        """rows: most messages of a poll, fewer where they are large (`rows_of`). until_end: end where the log ends. spent: told
        the seconds of polls that bring any.

        gate: what polls wait for; nothing, if none is given. beginning: where it begins, the topic's beginning if not given.
        """
        self._spent = spent
        self.beginning = beginning or Beginning()
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
            self.beginning,
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
        self,
        name: str,
        log: pa.RecordBatch,
        resume: int | None,
        rows: int,
        stop: threading.Event,
        until_end: bool,
        gate: Gate,
        beginning: Beginning,
        committed: dict[int, int],
    ) -> None:
        start = beginning.read.get(shard_number(name), 0)
        super().__init__(name, start if resume is None else resume, stop, until_end, gate, beginning)
        self._log = log
        self._rows = rows
        self._committed = committed

    def poll(self) -> Polled | None:
        batch = self._log.slice(self._position, self._rows)
        return Polled(batch, self._position + batch.num_rows >= self._log.num_rows)

    def publish(self, position: int, wait: bool) -> None:
        self._committed[self._number] = position


class MemorySource(FixedPartitionedSource[tuple[str, Polled], int]):
    """The same from lists of (key, value), one for each partition; ends when all is read, or on `stop`.

    committed: the safe positions that it has published. It is a log that can be looked into (streams/log.py), too.
    """

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
        self.beginning = Beginning()
        self.committed: dict[int, int] = {}
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
            for_part,
            self._logs[shard_number(for_part)],
            resume_state,
            self._rows,
            self._stop,
            self._until_end,
            self.gate,
            self.beginning,
            self.committed,
        )

    def bounds(self, partition: int) -> tuple[int, int]:
        return 0, self._logs[partition].num_rows

    def read(self, partition: int, offset: int) -> pa.RecordBatch:
        return self._logs[partition].slice(offset, self._rows)

    def since(self, partition: int, time_ms: int) -> int:
        return int(np.searchsorted(self._logs[partition].column("_appended_at").to_numpy(), time_ms))
