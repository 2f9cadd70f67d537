"""One consumer for several partitions: each gets its own messages, in order, and none gets far ahead of another."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, TopicPartition

from streams import reader, source
from streams.reader import AHEAD, Reader, SourceError


@dataclass(frozen=True)
class Made:
    """A message, or the event of an end or an error."""

    number: int
    at: int
    fault: KafkaError | None = None

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def error(self) -> KafkaError | None:
        return self.fault


@dataclass
class FakeConsumer:
    """Hands out `queue`, as librdkafka does: whatever partition it is of."""

    queue: list[Made]
    assigned: list[dict[int, int]] = field(default_factory=list)
    committed: list[TopicPartition] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    closed: int = 0
    polled: int = 0

    def assign(self, places: Sequence[TopicPartition]) -> None:
        self.assigned.append({place.partition: place.offset for place in places})

    def consume(self, most: int, seconds: float) -> list[Made]:
        taken, self.queue = self.queue[:most], self.queue[most:]
        return taken

    def poll(self, seconds: float) -> Made | None:
        self.polled += 1
        return self.queue.pop(0) if self.queue else None

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self.committed += offsets

    def get_watermark_offsets(self, place: TopicPartition, cached: bool) -> tuple[int, int]:
        assert cached, "nobody asks the broker for it"
        return OFFSET_INVALID, self.ends.get(place.partition, OFFSET_INVALID)

    def close(self) -> None:
        self.closed += 1


def end(partition: int, offset: int) -> Made:
    return Made(partition, offset, KafkaError(KafkaError._PARTITION_EOF))


def run(partition: int, start: int, count: int) -> list[Made]:
    return [Made(partition, start + k) for k in range(count)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    fake = FakeConsumer([])
    monkeypatch.setattr(reader, "Consumer", lambda config: fake)
    return fake


def offsets(messages: Sequence[Any]) -> list[int]:
    return [message.offset() for message in messages]


def test_partitions_that_were_added_are_told_of_once(
    fake: FakeConsumer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(source, "topic_partitions", lambda *said: 3)
    many = SimpleNamespace(error=None, partitions=dict.fromkeys(range(3)))
    monkeypatch.setattr(fake, "list_topics", lambda topic, timeout: SimpleNamespace(topics={"t": many}), raising=False)
    made = source.KafkaSource("t", "b", {}, group="g", rows=10, clock_ns=lambda: 0, stop=threading.Event())
    one = made._reader
    one.add(0, 0)
    for k in range(200):
        clock[0] += 1
        many.partitions = dict.fromkeys(range(3 if k < 100 else 5))
        fake.queue = run(0, k, 1)
        one.take(0, 4)
    assert caplog.messages == ["source: t has 5 partitions, this run reads 3: stop it and start it again, and it reads all"]


def test_no_more_is_asked_for_than_the_client_gives(fake: FakeConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked = Reader("t", {}), list[int]()
    for partition in range(300):
        one.add(partition, 0)
    monkeypatch.setattr(fake, "consume", lambda most, seconds: asked.append(most) or [])
    assert one.take(0, 4096) == one.take(0, 4096, wait=0.1) == []
    assert asked[0] == 1_000_000
    assert max(asked) == 1_000_000


def test_each_partition_gets_its_own_in_order(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 5)
    one.add(3, 7)
    fake.queue = [*run(0, 5, 3), *run(3, 7, 2), *run(0, 8, 2), end(3, 9)]
    assert offsets(one.take(0, 4)) == [5, 6, 7, 8]
    assert offsets(one.take(3, 4)) == [7, 8, 9]
    assert offsets(one.take(0, 4)) == [9]
    assert one.take(0, 4) == one.take(3, 4) == []
    assert fake.assigned == [{0: 5, 3: 7}]


def test_ahead_is_what_the_broker_has_said_and_what_is_kept_for_its_turn(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 5)
    one.add(1, 0)
    assert one.ahead(0) is None, "the broker has not said anything yet"
    fake.queue, fake.ends = [*run(0, 5, 3), *run(1, 0, 2)], {0: 20, 1: 2}
    assert offsets(one.take(0, 2)) == [5, 6]
    assert (one.ahead(0), one.ahead(1)) == (13, 2)
    fake.queue += [*run(0, 8, 10), end(0, 20)]
    assert offsets([*one.take(0, 99), *one.take(0, 99)]) == [7, *range(8, 18), 20]
    assert (one.ahead(0), one.ahead(1)) == (0, 2), "the marks of transactions are no messages"
    one.remove(1)
    assert one.ahead(1) is None
    one.remove(0)
    assert one.ahead(0) is None


def test_one_with_a_backlog_is_waited_for_and_one_at_its_end_is_not(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 0)
    one.add(1, 0)
    fake.queue = [*run(0, 0, 50), *run(1, 0, 5), end(1, 5), *run(0, 50, 500)]
    assert offsets(one.take(1, 5)) == [0, 1, 2, 3, 4]
    assert offsets(one.take(1, 5)) == [5]
    left = len(fake.queue)
    assert one.take(1, 5) == []
    assert left - len(fake.queue) <= 10
    fake.queue = run(0, 550, 1000)
    one.add(2, 0)
    assert one.take(2, 5) == []
    assert 1000 - len(fake.queue) <= AHEAD * 5 * 3 + 15


@pytest.mark.parametrize("most", [1, 2, 5])
def test_what_one_partition_waits_for_comes_whole(fake: FakeConsumer, most: int) -> None:
    one = Reader("t", {})
    one.add(0, 0)
    assert one.take(0, most, 0.01) == []
    fake.queue = run(0, 0, 7)
    assert offsets(one.take(0, most, 0.01)) == list(range(most))
    assert one.waited > 0
    one.take(0, most)
    assert one.waited == 0
    assert fake.polled == 2


def test_nothing_is_waited_for_while_another_partition_has_something(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    for partition in range(3):
        one.add(partition, 0)
    fake.queue = run(2, 0, 40)
    assert one.take(0, 1, 0.01) == []
    assert fake.polled == 1, "what came is another's: the rest is looked for, not waited for"
    assert one.take(1, 1, 0.01) == []
    assert offsets(one.take(2, 50, 0.01)) == list(range(40))
    assert fake.polled == 1


def test_a_partition_that_joins_later_makes_nobody_read_again(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 5)
    fake.queue = [*run(0, 5, 3), end(0, 8)]
    one.take(0, 100)
    one.add(1, 20)
    one.take(1, 100)
    assert fake.assigned == [{0: 5}, {0: 8, 1: 20}]


def test_what_comes_of_a_partition_that_has_left_is_dropped_and_the_last_closes(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 0)
    one.add(1, 0)
    one.take(0, 1)
    one.remove(1)
    fake.queue = [*run(1, 0, 3), *run(0, 0, 2)]
    assert offsets(one.take(0, 10)) == [0, 1]
    one.publish(0, 2, wait=False)
    assert [(place.partition, place.offset) for place in fake.committed] == [(0, 2)]
    one.remove(0)
    assert fake.closed == 1


def test_an_error_that_is_no_partitions_stops_the_reading(fake: FakeConsumer) -> None:
    one = Reader("t", {})
    one.add(0, 0)
    one.add(1, 0)
    fake.queue = [Made(-1, -1001, KafkaError(KafkaError._AUTHENTICATION))]
    with pytest.raises(SourceError, match="t: "):
        one.take(0, 10)
