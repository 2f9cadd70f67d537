"""Looking into a topic here and there, beside the dataflow."""

import time
from collections.abc import Mapping
from typing import Protocol

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.reader import SourceError
from streams.source import raw_batch

MOST = 64


class Log(Protocol):
    """What is looked into: a topic's partitions as they are now."""

    def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset that is there, and the one after the last."""

    def read(self, partition: int, offset: int) -> pa.RecordBatch:
        """A few raw messages (streams/source.py) from `offset` on; none at the end."""

    def since(self, partition: int, time_ms: int) -> int:
        """The offset of the first message that the broker stamped with this time (ms) or a later one, or the end."""


class KafkaLog:
    """A Kafka topic. Raises SourceError if the broker does not answer within `timeout` seconds."""

    def __init__(self, topic: str, brokers: str, config: Mapping[str, str], *, group: str, timeout: float = 10.0) -> None:
        self._topic, self._brokers, self._timeout = topic, brokers, timeout
        self._bounds: dict[int, tuple[int, int]] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
                "fetch.message.max.bytes": 64 * 1024,
                "queued.min.messages": MOST,
                "log_level": 2,
                **config,
            }
        )

    def bounds(self, partition: int) -> tuple[int, int]:
        """As the broker says when first asked; the end is read, since an embedded broker does not say it right."""
        if partition not in self._bounds:
            low, high = self.marks(partition)
            self._bounds[partition] = low, high
            at = max(low, high - 1)
            while (tail := self.read(partition, at)).num_rows:
                at = tail.column("_offset")[-1].as_py() + 1
            self._bounds[partition] = low, max(at, high)
        return self._bounds[partition]

    def marks(self, partition: int) -> tuple[int, int]:
        """The first offset that is there and the end, as the broker says; an embedded one says an end that comes too early."""
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=self._timeout)
        except KafkaException as error:
            raise SourceError(f"{self._topic}/{partition}: {error.args[0].str()}") from error
        return low, high

    def read(self, partition: int, offset: int) -> pa.RecordBatch:
        """See Log."""
        self._consumer.assign([TopicPartition(self._topic, partition, offset)])
        messages: list[Message] = []
        deadline = time.monotonic() + self._timeout
        while not messages:
            message = self._consumer.poll(self._timeout)
            if message is None or time.monotonic() > deadline:
                raise SourceError(f"the broker at {self._brokers} sent nothing of {self._topic}/{partition} at {offset}")
            messages = [message, *self._consumer.consume(MOST - 1, 0)]
            messages = [one for one in messages if one.partition() == partition]
        for one in messages:
            if (error := one.error()) is not None and error.code() != KafkaError._PARTITION_EOF:
                raise SourceError(f"{self._topic}/{partition} at {offset}: {error.str()}")
        return raw_batch([([one for one in messages if one.error() is None], partition, time.time_ns())])

    def since(self, partition: int, time_ms: int) -> int:
        """See Log."""
        asked = [TopicPartition(self._topic, partition, max(time_ms, 0))]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=self._timeout)[0]
        except KafkaException as error:
            raise SourceError(f"{self._topic}/{partition}: {error.args[0].str()}") from error
        if found.error is not None:
            raise SourceError(f"{self._topic}/{partition}: {found.error.str()}")
        low, end = self.bounds(partition)
        return min(max(found.offset, low), end) if found.offset >= 0 else end

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()
