"""The ends of topics: what has come since the last look, and of that the last few messages of each partition. What lies between
is passed over, so that a look costs the same however much is written."""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

ANSWER_SECONDS, READ_SECONDS, PARTITIONS_SECONDS = 2.0, 1.0, 10.0
LEAST = 5
"""Messages of a partition, of however many."""
PAST = 100
"""How far a look reads beyond where the end was said to be: an embedded broker says where its last batch begins."""

MADE_ANEW = 100_000
"""How far the end may be said to be before where we are; further, and the topic is another one of that name."""

Place = tuple[str, int]


class Seen(NamedTuple):
    """A message: when it was written (ms), where it stands, and its value."""

    at: int
    partition: int
    offset: int
    value: bytes


class Tails:
    """Looks at the ends of topics. Raises KafkaException where the broker does not answer in time, or refuses us; another look
    may find it well. Joins no group and commits nothing.

    most: of which topics, and about how many messages of each a look takes at most. first: those of which the first look
    takes more. others: topics that are not read.
    """

    def __init__(
        self,
        brokers: str,
        config: Mapping[str, str],
        group: str,
        most: Mapping[str, int],
        others: Iterable[str] = (),
        first: Mapping[str, int] | None = None,
    ) -> None:
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
                "fetch.queue.backoff.ms": 10,
                "queued.min.messages": 500,
                "log_level": 0,
                **config,
            }
        )
        self._most, self._first = most, {**most, **(first or {})}
        self._topics = (*most, *others)
        self._partitions: dict[str, list[int]] = {}
        self._asked_at = float("-inf")
        self._at: dict[Place, int] = {}
        self._ended: set[Place] = set()

    @property
    def missing(self) -> list[str]:
        """The topics that the broker has not."""
        return [topic for topic in self._topics if topic not in self._partitions]

    def look(self) -> dict[str, list[Seen]]:
        """What is new, by topic, each partition's in order. The first look finds the last messages that are there."""
        self._find_partitions()
        ends: dict[Place, int] = {}
        starts: list[TopicPartition] = []
        for topic in self._most:
            partitions = self._partitions.get(topic, [])
            for number in partitions:
                place = topic, number
                most = (self._most if place in self._at else self._first)[topic]
                low, high = self._bounds(place)
                at = max(low, self._at.get(place, low))
                if at > high + MADE_ANEW:
                    at = low
                    self._ended.discard(place)
                if low < high and (at < high or place not in self._ended):
                    ends[place] = max(high, at) + PAST
                    starts.append(TopicPartition(topic, number, max(at, high - max(LEAST, most // len(partitions)))))
        return self._read(starts, ends) if ends else {}

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()

    def _find_partitions(self) -> None:
        """Asks for the partitions, now and then: there may be more of them, or topics that were not there."""
        now = time.monotonic()
        if now - self._asked_at < PARTITIONS_SECONDS:
            return
        there = self._consumer.list_topics(timeout=ANSWER_SECONDS).topics
        known = [topic for topic in self._topics if topic in there and there[topic].error is None]
        self._partitions = {topic: sorted(there[topic].partitions) for topic in known}
        self._asked_at = now

    def _bounds(self, place: Place) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=ANSWER_SECONDS)
        return int(low), int(high)

    def _read(self, starts: list[TopicPartition], ends: dict[Place, int]) -> dict[str, list[Seen]]:
        """Reads each partition to its end, or to where it is enough, as far as time allows: the next look goes on there, and
        raises what this one met after it had found something."""
        found: dict[str, list[Seen]] = {}
        self._consumer.assign(starts)
        deadline = time.monotonic() + READ_SECONDS
        failed: KafkaException | None = None
        try:
            while ends and time.monotonic() < deadline:
                for message in self._consumer.consume(500, 0.02):
                    place, error = (message.topic(), message.partition()), message.error()
                    if place not in ends:
                        continue
                    if error is None:
                        at = message.timestamp()[1]
                        found.setdefault(place[0], []).append(Seen(at, place[1], message.offset(), message.value() or b""))
                        self._at[place] = message.offset() + 1
                        self._ended.discard(place)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        self._at[place] = message.offset()
                        self._ended.add(place)
                    else:
                        failed, ends = KafkaException(error), {}
                        break
                    if place in self._ended or self._at[place] >= ends[place]:
                        del ends[place]
        finally:
            self._consumer.unassign()
        if failed is not None and not found:
            raise failed
        return found
