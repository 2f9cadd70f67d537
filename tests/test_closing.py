"""Who waits for others to be through with an epoch leaves them the cores."""

import json
import multiprocessing
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from payments import settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import champion_of, quick, spread

from ops.broker import free_port
from sinks.memory import MemorySink
from streams.closing import NOTHING_SECONDS, REST_SECONDS, SOON, Closing, Rest
from streams.run import run
from streams.source import MemorySource

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
EPOCH = 0.25


class World:
    """A clock, and what the thread has worked and slept."""

    def __init__(self) -> None:
        self.now, self.worked = BEGAN, 0.0
        self.slept: list[float] = []

    def closing(self, *partitions: str) -> Closing:
        """These go on."""
        made = Closing(EPOCH, self.slept.append, lambda: self.worked, lambda: self.now)
        for partition in partitions:
            made.goes_on(partition)
        return made


def test_it_sleeps_while_all_partitions_wait_and_nothing_is_done() -> None:
    world = World()
    closing = world.closing("a", "b")
    closing.rest()
    closing.ended("a")
    closing.rest()
    assert world.slept == []
    closing.ended("b")
    for worked in (1.0, NOTHING_SECONDS / 2, NOTHING_SECONDS / 2, NOTHING_SECONDS * 2, NOTHING_SECONDS / 2):
        world.worked += worked
        closing.rest()
    assert world.slept == [REST_SECONDS] * 3
    world.now += timedelta(seconds=1)
    assert closing.next_rest() == BEGAN  # past: at once
    closing.goes_on("a")
    closing.rest()
    assert len(world.slept) == 3


def test_it_asks_again_when_the_next_epoch_should_end_and_soon_after_until_it_does() -> None:
    world = World()
    closing = world.closing("a")
    closing.ended("a")
    closing.goes_on("a")
    ends = BEGAN + timedelta(seconds=EPOCH)
    assert closing.next_rest() == ends
    world.now = ends + timedelta(milliseconds=1)
    assert closing.next_rest() == world.now + SOON


def test_a_partition_that_has_left_is_not_waited_for_and_does_not_wait() -> None:
    world = World()
    closing = world.closing("a", "b")
    closing.left("a")
    closing.ended("a")  # Bytewax takes a last snapshot
    closing.rest()
    closing.ended("b")
    closing.rest()
    closing.goes_on("b")
    closing.left("b")
    closing.ended("b")
    closing.rest()
    assert len(world.slept) == 1


def test_the_step_asks_once_it_was_awoken() -> None:
    """Not where an earlier life had its key, which a resume brings back: that one's first partition may be another's now."""
    world = World()
    closing = world.closing("a")
    closing.ended("a")
    step = Rest(closing)
    assert step.notify_at() is None
    assert step.on_batch([None]) == ([], Rest.RETAIN)
    assert step.notify_at() == BEGAN
    step.on_notify()
    assert world.slept == [REST_SECONDS]
    assert step.snapshot() is None


def worker(home: Path, number: int, addresses: list[str]) -> None:
    """One of two; the other one's sink is slow. Writes what it has had of a core in how many seconds."""
    sink = MemorySink()
    began: list[tuple[float, float]] = []

    def wrote(messages: object) -> None:
        began.append((time.monotonic(), time.process_time()))
        time.sleep(0.25 * number)

    sink.on_write = wrote
    pipeline = quick("arrival")
    run(
        pipeline,
        settings(home, recovery=True, epoch_seconds=0.05),
        registry=CollectorRegistry(),
        worker=number,
        addresses=addresses,
        source=MemorySource(spread(stream(2000), 2), rows=100),
        sink=sink,
        champion=champion_of(pipeline),
    )
    seconds = time.monotonic() - began[0][0]
    (home / f"{number}.json").write_text(json.dumps([seconds, time.process_time() - began[0][1]]))


@pytest.mark.slow
def test_who_waits_for_a_slow_worker_takes_little_of_a_core(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = [spawn.Process(target=worker, args=(tmp_path, number, addresses)) for number in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
            assert process.exitcode == 0
    finally:
        for process in processes:
            process.kill()
    seconds, worked = json.loads((tmp_path / "0.json").read_text())
    assert seconds > 1.5
    assert worked < seconds / 2
