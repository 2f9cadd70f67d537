"""Event order: however partitions are polled, rows come out by time and ties, nothing is lost, and a dump goes on as before."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from payments import payments

from features.streaming import Cut
from streams.exchange import Base, Gather
from streams.ordering import Held
from streams.store import RecoveryError
from streams.wire import from_ipc

POLLS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=40)


def cut(times: list[int], ids: list[int]) -> Cut:
    n = len(times)
    return Cut(
        np.arange(n, dtype=np.int32),
        np.full(n, 7, np.uint64),
        np.array(times),
        np.ones(n, np.uint32),
        np.array([times], np.float64),
        np.array([ids]),
    )


def drain(held: Held, logs: list[list[tuple[int, int]]], polls: list[tuple[int, int]], dump_at: int) -> list[tuple[int, int]]:
    """Polls the logs as told, then whatever is left, and returns (time, id) in the order of release."""
    position, out = [0, 0, 0], []
    for step, (partition, count) in enumerate([*polls, *((p, 100) for p in range(3))]):
        if step == dump_at:
            again = Held(3, 1, 1000)
            again.load(held.dump())
            for number in range(3):
                again.add(number, -1, [], -(2**62), position[number] == len(logs[number]))
            held = again
        rows = logs[partition][position[partition] : position[partition] + count]
        sequence, position[partition] = position[partition], position[partition] + len(rows)
        at_end = position[partition] == len(logs[partition])
        times, ids = [t for t, _ in rows], [i for _, i in rows]
        held.add(partition, sequence, [(0, cut(times, ids))] if rows else [], max(times, default=-(2**62)), at_end)
        for _, released in held.release():
            out += list(zip(released.cut.time.tolist(), released.cut.ties[0].tolist(), strict=True))
            rows_seen = np.concatenate([chosen for _, _, chosen in released.origins()])
            assert sorted(rows_seen.tolist()) == list(range(len(released.cut.time)))
    return out


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=50), POLLS, st.integers(-1, 40))
def test_rows_come_out_by_time_and_ties(events: list[tuple[int, int]], polls: list[tuple[int, int]], dump_at: int) -> None:
    """Each event goes to a partition; each partition's log is in order, as a replay writes it."""
    ordered = sorted((time, number) for number, (time, _) in enumerate(events))
    logs = [[(time, number) for time, number in ordered if events[number][1] == partition] for partition in range(3)]
    assert drain(Held(3, 1, 1000), logs, polls, dump_at) == ordered


def test_what_is_beyond_the_bound_goes_before_its_turn_and_is_counted() -> None:
    held = Held(2, 1, 3)
    held.add(0, 0, [(0, cut([5, 6, 7, 8, 9], [0, 1, 2, 3, 4]))], 9, False)
    assert [released.cut.time.tolist() for _, released in held.release()] == [[5, 6]]
    assert held.early == 2


def test_what_waits_is_known_at_once_when_a_job_starts_again() -> None:
    """Else the position that was read is published, and a rebuild from there leaves out what waited."""
    batch = pa.record_batch({"_partition": pa.array([2, 2], pa.int32())})
    undecided: dict[int, int] = {}
    gather = Gather(payments().groups, None, undecided)
    gather.on_batch([Base(40, batch, 2, {}), Base(42, batch, 2, {})])
    snapshot = gather.snapshot()
    assert undecided == {2: 40}
    again: dict[int, int] = {}
    Gather(payments().groups, snapshot, again)
    assert again == {2: 40}


def test_rows_that_wait_have_the_columns_that_are_needed_now_or_it_is_said() -> None:
    batch = pa.record_batch({"_partition": pa.array([2], pa.int32()), "amount": [1.5], "shop": ["a"]})
    gather = Gather(payments().groups, None)
    gather.on_batch([Base(40, batch, 1, {})])
    snapshot = gather.snapshot()
    fewer = Gather(payments().groups, snapshot, {}, ["shop", "_partition"]).snapshot()
    assert from_ipc(fewer["waiting"][0][1]).schema.names == ["shop", "_partition"]
    with pytest.raises(RecoveryError, match=r"rows that wait for other partitions: expected columns one, more, got none: let"):
        Gather(payments().groups, snapshot, {}, ["amount", "one", "_partition", "more"])
