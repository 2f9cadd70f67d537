"""Raw record batches from a Kafka topic or from memory: one Bytewax source partition for each of the topic's.

A raw batch has `_key` and `_value` (binary), `_partition` int32, `_offset` int64, `_appended_at` int64 (ms, the broker's) and
`_polled_at` int64 (ns, ours). The source's item is (name of the partition, Polled).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.decode import PROVENANCE
from streams.polling import Beginning, Gate, Partition, Polled
from streams.routing import shard_name, shard_number


class SourceError(RuntimeError):
    """The topic cannot be read; the message says why and what to do."""


POLL_BYTES = 4 * 1024 * 1024
ANSWER_SECONDS = 5.0


class _KafkaPartition(Partition):
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
        self._answer_due = False
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
            self._consumer.commit(offsets=[TopicPartition(self._topic, self._partition, position)], asynchronous=True)
        except KafkaException:
            self._beginning.failed()
            return
        self._answer_due = wait
        until = time.monotonic() + ANSWER_SECONDS
        while self._answer_due and time.monotonic() < until:
            self._consumer.poll(0.05)  # serves the callback; what it brings is not read: the partition is leaving

    def _answered(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        if error is not None or any(place.error is not None for place in places):
            self._beginning.failed()
        self._answer_due = False

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


class _MemoryPartition(Partition):
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
