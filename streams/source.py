"""Raw record batches from a Kafka topic or from memory: one Bytewax source partition for each of the topic's.

A raw batch has `_key` and `_value` (binary), `_partition` int32, `_offset` int64, `_appended_at` int64 (ms, the broker's) and
`_polled_at` int64 (ns, ours). The source's item is (name of the partition, Polled).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.inputs import FixedPartitionedSource
from confluent_kafka import KafkaError, Message
from confluent_kafka.admin import AdminClient

from streams.decode import PROVENANCE
from streams.door import NoAnswerError, topics_at
from streams.polling import Beginning, Gate, Partition, Polled
from streams.reader import Reader, SourceError
from streams.replays import ORIGINAL, replayed
from streams.routing import shard_name, shard_number

log = logging.getLogger(__name__)

POLL_BYTES = 4 * 1024 * 1024
INT32, INT64, BINARY = pa.int32(), pa.int64(), pa.binary()


class _KafkaPartition(Partition):
    def __init__(
        self,
        name: str,
        topic: str,
        reader: Reader,
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
        if resume is None:  # a partition may be empty and begin at 500: with 0 for its position nobody could go on
            resume = reader.first(shard_number(name))
        self._reader = reader  # its lag may be asked for from now on
        super().__init__(name, resume, stop, until_end, gate, beginning)
        self._spent = spent
        self._topic = topic
        self._partition = self._number
        self._rows = self._next_rows = rows
        self._clock_ns = clock_ns
        reader.add(self._partition, resume)

    def poll(self, wait: float = 0.0) -> Polled | None:
        started = time.perf_counter()
        messages = self._reader.take(self._partition, min(self._next_rows, self._most), wait)
        if not messages:
            return None
        polled = self._polled(messages)
        self._spent(time.perf_counter() - started - self._reader.waited)
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
        if not messages:
            return Polled(messages, 0, -1, 0, at_end)
        size = max(len(message.value() or b"") for message in (messages[0], messages[-1]))
        self._next_rows = rows_of(size, self._rows, self._gate.partitions)
        return Polled(messages, len(messages), messages[-1].offset(), self._clock_ns(), at_end)

    def ahead(self) -> int | None:
        return self._reader.ahead(self._number)

    def publish(self, position: int, wait: bool) -> None:
        self._reader.publish(self._partition, position, wait)

    def close(self) -> None:
        self._reader.remove(self._partition)


def raw_batch(runs: Sequence[tuple[list[Message], int, int]]) -> pa.RecordBatch:
    """Runs of messages (messages, their partition, when they were polled in ns) as one raw batch, with a column `_original`
    if some are replays (streams/replays.py)."""
    messages = runs[0][0] if len(runs) == 1 else [message for run, _, _ in runs for message in run]
    n, end = len(messages), 0
    partitions, words = np.empty(n, np.int32), np.empty((3, n), np.int64)
    offsets, stamps, polled_at = words
    for run, partition, at in runs:
        start, end = end, end + len(run)
        partitions[start:end], offsets[start:end], polled_at[start:end] = partition, _offsets(run), at
    stamps[:] = [message.timestamp()[1] for message in messages]
    whole, row = pa.py_buffer(words), 8 * n
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array([message.key() for message in messages], BINARY),
            pa.array([message.value() for message in messages], BINARY),
            pa.Array.from_buffers(INT32, n, [None, pa.py_buffer(partitions)]),
            *(pa.Array.from_buffers(INT64, n, [None, whole.slice(k * row, row)]) for k in range(3)),
        ],
        schema=RAW,
    )
    return _replaying(batch, found) if (found := replayed(messages, stamps)) else batch


def _replaying(batch: pa.RecordBatch, found: Mapping[int, int]) -> pa.RecordBatch:
    original = batch.column("_offset").to_numpy().copy()
    original[list(found)] = list(found.values())
    return batch.append_column(ORIGINAL, pa.array(original))


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
        self._most = 0
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
    def _reader(self) -> Reader:
        return Reader(self._topic, self._config, self.beginning.failed, self._counted)

    def _counted(self, partitions: int) -> None:
        """Says once that the topic has partitions that this run does not read."""
        if partitions > max(self.partitions, self._most):
            self._most = partitions
            log.warning(
                "source: %s has %d partitions, this run reads %d: stop it and start it again, and it reads all",
                self._topic,
                partitions,
                self.partitions,
            )

    @cached_property
    def partitions(self) -> int:
        return topic_partitions(self._topic, self._brokers, self._client, self._timeout)

    def list_parts(self) -> list[str]:
        return [shard_name(partition) for partition in range(self.partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _KafkaPartition:
        return _KafkaPartition(
            for_part,
            self._topic,
            self._reader,
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
        _, topics = topics_at(AdminClient, {"bootstrap.servers": brokers, "log_level": 0, **config}, timeout)
    except NoAnswerError as error:
        raise SourceError(str(error)) from None
    found = topics.get(topic)
    if found is None or found.error is not None or not found.partitions:
        raise SourceError(f"the broker at {brokers} has no topic {topic}: create it (headrace topics --create)")
    return len(found.partitions)


class MemoryPartition(Partition):
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
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        start = beginning.read.get(shard_number(name), 0)
        self._log = log  # its lag may be asked for from now on
        super().__init__(name, start if resume is None else resume, stop, until_end, gate, beginning)
        self._rows = rows
        self._committed = committed
        self._clock_ns = clock_ns

    def poll(self, wait: float = 0.0) -> Polled | None:
        return self._take(self._rows)

    def _take(self, rows: int) -> Polled:
        """The next messages, so many at most."""
        batch, now = self._log.slice(self._position, min(rows, self._most)), self._clock_ns()
        place = batch.schema.get_field_index("_polled_at")
        batch = batch.set_column(place, RAW.field(place), pa.array(np.full(batch.num_rows, now)))
        last = batch.column("_offset")[-1].as_py() if batch.num_rows else -1
        return Polled(batch, batch.num_rows, last, now, self._position + batch.num_rows >= self._log.num_rows)

    def ahead(self) -> int | None:
        return self._log.num_rows - self._position

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
        replays: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        """replays: the offsets that some messages (partition, offset) stand for."""
        self._rows = rows
        self._clock_ns = clock_ns
        self._replays = replays or {}
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
                    pa.array(np.full(len(log), clock_ns() // 10**6, np.int64)),
                    pa.array(np.zeros(len(log), np.int64)),
                ],
                schema=RAW,
            )
            for number, log in enumerate(partitions)
        ]

    def list_parts(self) -> list[str]:
        return [shard_name(partition) for partition in range(self.partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> MemoryPartition:
        return MemoryPartition(
            for_part,
            self._log(shard_number(for_part)),
            resume_state,
            self._rows,
            self._stop,
            self._until_end,
            self.gate,
            self.beginning,
            self.committed,
            self._clock_ns,
        )

    def _log(self, partition: int) -> pa.RecordBatch:
        found = {offset: original for (number, offset), original in self._replays.items() if number == partition}
        return _replaying(self._logs[partition], found) if found else self._logs[partition]

    def bounds(self, partition: int) -> tuple[int, int]:
        return 0, self._logs[partition].num_rows

    def read(self, partition: int, offset: int) -> pa.RecordBatch:
        return self._log(partition).slice(offset, self._rows)

    def since(self, partition: int, time_ms: int) -> int:
        return int(np.searchsorted(self._logs[partition].column("_appended_at").to_numpy(), time_ms))
