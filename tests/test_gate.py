"""The source's gate: a round begins when what is on its way is decided, and every partition gets its turn in each."""

import pytest

from streams.polling import Beginning, Gate
from streams.routing import shard_name
from streams.source import MemorySource, rows_of


def test_a_partition_waits_until_what_it_brought_is_decided() -> None:
    gate = Gate(1)
    first = gate.opens(0)
    assert first
    gate.begun()
    assert not gate.opens(first)
    gate.done(1)
    assert gate.opens(first) > first


def test_each_partition_polls_once_in_a_round() -> None:
    gate = Gate(1)
    one = gate.opens(0)
    gate.begun()
    other = gate.opens(0)
    assert other == one, "the second partition has its turn though the first one's batch is on its way"
    gate.begun()
    gate.done(1)
    assert not gate.opens(one)
    assert not gate.opens(other)
    gate.done(1)
    assert gate.opens(other) == gate.opens(one) == one + 1


def test_a_poll_that_brought_nothing_opens_the_next_round() -> None:
    gate = Gate(1)
    first = gate.opens(0)
    assert gate.opens(first) == first + 1


def test_the_first_poll_of_a_round_may_wait_when_nothing_would_wait_with_it() -> None:
    gate = Gate(1, patience=0.5)
    rounds = [gate.opens(0)]

    def waits() -> float:
        rounds.append(gate.opens(rounds[-1]))
        return gate.wait()

    assert gate.wait() == 0.5
    assert gate.wait() == 0, "the second partition's poll would wait as long again"
    assert waits() == 0.5
    gate.begun()
    gate.answered(2)
    gate.done(1)
    assert waits() == 0, "what was decided is not at the sink"
    gate.written(1)
    assert waits() == 0
    gate.written(1)
    assert waits() == 0.5
    none = Gate(1)
    none.opens(0)
    assert none.wait() == 0


def test_several_workers_may_have_several_batches_on_their_way_and_event_order_waits_for_none() -> None:
    gate, free = Gate(2), Gate(0)
    first = gate.opens(0)
    gate.begun()
    second = gate.opens(first)
    assert second
    gate.begun()
    assert not gate.opens(second)
    free.begun()
    assert free.opens(free.opens(0))


def test_what_a_round_may_take_is_shared_by_all_and_what_one_leaves_is_for_those_after_it() -> None:
    limits = iter([100, 100, 30, 2])
    gate = Gate(1, rows=lambda limited: next(limits))
    gate.partitions = 4
    last = 0

    def a_round(*there: int) -> list[int]:
        nonlocal last
        shares = []
        for each in there:
            opened = gate.opens(last)
            assert opened
            shares.append(gate.share())
            if each:
                gate.took(min(each, shares[-1]))
        last = opened
        return shares

    assert a_round(99, 0, 10, 99) == [100, 1, 1, 1], "nobody had any before, as far as it knows"
    assert a_round(99, 99, 0, 0) == [25, 25, 25, 50], "three had some: a quarter is the first one's"
    assert a_round(99, 0, 0, 0) == [10, 6, 10, 20], "two had"
    assert a_round(9, 9, 9, 9) == [1, 1, 1, 1], "each may take one, or it would never get on"


def test_more_done_than_begun_does_not_open_it_for_good() -> None:
    """After a resume there may be batches that this source did not bring."""
    gate = Gate(1)
    gate.done(3)
    first = gate.opens(0)
    gate.begun()
    assert not gate.opens(first)


def test_a_poll_takes_fewer_messages_where_they_are_large() -> None:
    assert rows_of(125, 4096, partitions=1) == 4096
    assert rows_of(8_728, 4096, partitions=1) == 480
    assert rows_of(8_728, 4096, partitions=2) == 240
    assert rows_of(0, 4096, partitions=3) == 4096
    assert rows_of(10_000_000, 4096, partitions=1) == 1


def test_the_lag_is_what_comes_after_what_was_decided() -> None:
    source = MemorySource([[(None, b"x")] * 9], rows=4, until_end=False)
    source.gate, source.beginning = Gate(1), Beginning()
    partition = source.build_part("event", shard_name(0), None)
    lag, seen = source.beginning.lags[0], []
    for _ in range(4):
        partition.next_batch()
        seen.append(lag())
        partition.next_batch()
        assert lag() == seen[-1], "it waits for what is on its way, which is not decided yet"
        source.gate.done(1)
    assert seen == [9, 5, 1, 0]
    source.beginning.undecided[0] = 6
    assert lag() == 3, "these wait for other partitions' time"


def test_what_was_decided_before_and_is_read_again_is_no_lag() -> None:
    source = MemorySource([[(None, b"x")] * 9], rows=4, until_end=False)
    source.beginning = Beginning(decide={0: 6})
    partition = source.build_part("event", shard_name(0), None)
    seen = []
    for _ in range(4):
        seen.append(source.beginning.lags[0]())
        partition.next_batch()
    assert seen == [3, 3, 3, 1]


def test_what_is_published_is_never_below_what_was_decided_and_comes_again_each_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is read again, for the state, it was decided long ago; and Kafka forgets a position that nobody repeats."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    source = MemorySource([[(None, b"x")] * 9], rows=2, until_end=False)
    source.beginning = Beginning(decide={0: 5}, publishes=True)
    partition, published = source.build_part("event", shard_name(0), None), []
    for _ in range(6):
        partition.next_batch()
        partition.snapshot()
        clock[0] += 2
        partition.next_batch()
        published.append(source.committed.pop(0, None))
    assert published == [5, 6, 9, None, None, None]
    clock[0] += 3601
    partition.snapshot()
    partition.next_batch()
    assert source.committed == {0: 9}
