"""One Kafka consumer for all of a worker's partitions, which hands each partition its own messages.

A consumer for each would ask the broker for each by itself: with eight partitions that is eight times the requests, and
most of a core of the broker's, for the same messages.
"""

import threading
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from operator import methodcaller

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.door import Trouble

ANSWER_SECONDS, REFUSED_SECONDS = 5.0, 30.0
LOOK_SECONDS, COUNT_SECONDS, LOOK_TIMEOUT, FIRST_SECONDS = 5.0, 30.0, 1.0, 30.0
AHEAD, MOST = 16, 1_000_000
"""MOST: more is an error to the client."""


class SourceError(RuntimeError):
    """The topic cannot be read; the message says why and what to do."""


class Reader:
    """Reads partitions of a topic by `assign`, from where each is to begin."""

    def __init__(
        self,
        topic: str,
        config: Mapping[str, str | int | float | bool],
        commit_failed: Callable[[], None] = lambda: None,
        counted: Callable[[int], None] = lambda partitions: None,
    ) -> None:
        """commit_failed: told that the broker has refused a position that was published. counted: told now and then how many
        partitions the topic has. waited: the seconds that the last `take` waited."""
        self._topic = topic
        self._commit_failed, self._counted = commit_failed, counted
        self._next: dict[int, int] = {}
        self._waiting: dict[int, list[Message]] = {}
        self._at_end: dict[int, bool] = {}
        self._held = self._due = 0
        self.waited = 0.0
        self._alone = self._assigned = False
        self._trouble = Trouble()
        self._look_at, self._gone = time.monotonic() + LOOK_SECONDS, 0
        self._count_at = time.monotonic() + COUNT_SECONDS
        self._config = {**config, "on_commit": self._answered, "error_cb": self._trouble}
        self._consumer: Consumer | None = None
        self._leaving = threading.Lock()

    def add(self, partition: int, start: int) -> None:
        """Reads a partition, too, from an offset (OFFSET_BEGINNING: from its first) on."""
        self._alone = not self._waiting
        self._next[partition] = start
        self._waiting[partition], self._at_end[partition] = [], False
        self._assigned = False
        if self._consumer is None:
            self._consumer = Consumer(self._config)

    def first(self, partition: int) -> int:
        """The first offset that a partition has, or will have. Raises SourceError."""
        if self._consumer is None:
            self._consumer = Consumer(self._config)
        try:
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=FIRST_SECONDS)
        except KafkaException as error:
            raise SourceError(f"{self._topic}/{partition}: expected its first offset, got {error.args[0].str()}") from None
        return int(low)

    def take(self, partition: int, most: int, wait: float = 0.0) -> list[Message]:
        """A partition's next messages, `most` at most; the last may be the event that its log ends there. wait: the seconds
        that it waits where none of any partition are there.

        What comes of the others meanwhile is kept for them. A partition that has a backlog is waited for while no more than
        AHEAD times `most` of each are kept, so that none gets far ahead of another. Raises SourceError.
        """
        if self._trouble.refused_seconds > REFUSED_SECONDS:
            raise SourceError(f"{self._topic}: the broker refuses us: {self._trouble.refused}")
        waiting = self._waiting[partition]
        wait = 0.0 if self._held else wait
        self.waited = 0.0
        if not waiting:
            if not self._assigned:
                self._open.assign([TopicPartition(self._topic, each, start) for each, start in self._next.items()])
                self._assigned = True
            if self._alone:
                messages = self._come(most, wait)
                self._note(partition, messages)
                self._look(bool(messages))
                return messages
            while self._pull(most * len(self._waiting), wait) and not waiting and not self._at_end[partition]:
                wait = 0.0
                if self._held > AHEAD * most * len(self._waiting):
                    break
        taken, self._waiting[partition] = waiting[:most], waiting[most:]
        self._held -= len(taken)
        return taken

    def publish(self, partition: int, position: int, wait: bool) -> None:
        """Commits a position to the consumer group; `wait`: for the broker's answer, a few seconds at most."""
        try:
            self._open.commit(offsets=[TopicPartition(self._topic, partition, position)], asynchronous=True)
        except KafkaException:
            self._commit_failed()
            return
        self._due += 1
        until = time.monotonic() + ANSWER_SECONDS
        while wait and self._due and time.monotonic() < until:
            self._pull(1, 0.005)

    def ahead(self, partition: int) -> int | None:
        """How many messages a partition's log has after those that were taken, by what the broker said when it was last asked
        for more; None before it was. Any thread may ask."""
        with self._leaving:
            if self._consumer is None or partition not in self._next:
                return None
            try:
                _, end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            except KafkaException:
                return None
            return max(0, end - self._next[partition]) + len(self._waiting[partition]) if end >= 0 else None

    def remove(self, partition: int) -> None:
        """Reads a partition no more; closes the consumer with the last of them."""
        with self._leaving:
            self._held -= len(self._waiting.pop(partition))
            del self._next[partition], self._at_end[partition]
            if self._waiting:
                return
            leaves, self._consumer = self._open, None
        leaves.close()

    def _pull(self, most: int, seconds: float) -> bool:
        """Deals out what has come; returns whether anything has."""
        messages = self._come(most, seconds)
        self._look(bool(messages))
        for partition, run in groupby(messages, methodcaller("partition")):
            own = list(run)
            if partition in self._waiting:
                self._waiting[partition] += own
                self._held += len(own)
                self._note(partition, own)
            elif (error := own[-1].error()) is not None and error.code() != KafkaError._PARTITION_EOF:
                raise SourceError(f"{self._topic}: {error.str()}")
        return bool(messages)

    def _come(self, most: int, seconds: float) -> list[Message]:
        """What has come; the first is waited for: by `poll`, which returns with it, where `consume` waits for `most`."""
        most = min(most, MOST)
        if not seconds:
            return self._open.consume(most, 0)
        began = time.perf_counter()
        first = self._open.poll(seconds)
        self.waited += time.perf_counter() - began
        return [] if first is None else [first, *self._open.consume(most - 1, 0)]

    def _look(self, came: bool) -> None:
        """Asks now and then how many partitions the topic has, and more often, while nothing comes, whether there is still such
        a topic: the client says nothing of one that was deleted. Raises SourceError when it is told twice in a row that there
        is none; a broker that has just started may err.
        """
        now = time.monotonic()
        if came:
            self._look_at, self._gone = now + LOOK_SECONDS, 0
        if now < min(self._look_at, self._count_at):
            return
        self._look_at, self._count_at = now + LOOK_SECONDS, now + COUNT_SECONDS
        try:
            there = self._open.list_topics(self._topic, timeout=LOOK_TIMEOUT).topics[self._topic]
        except KafkaException:
            return
        error = there.error
        if error is None:
            self._counted(len(there.partitions))
        self._gone = self._gone + 1 if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART else 0
        if self._gone > 1:
            raise SourceError(f"{self._topic}: the broker has no such topic any more")

    def _note(self, partition: int, messages: list[Message]) -> None:
        """How far a partition has come."""
        if messages:
            self._at_end[partition] = messages[-1].error() is not None
            self._next[partition] = messages[-1].offset() + (not self._at_end[partition])

    @property
    def _open(self) -> Consumer:
        assert self._consumer is not None
        return self._consumer

    def _answered(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        if error is not None or any(place.error is not None for place in places):
            self._commit_failed()
        self._due = max(0, self._due - 1)
