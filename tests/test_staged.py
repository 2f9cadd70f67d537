"""Exactly-once on a log in memory: whatever crashes, comes late or stays unanswered, each message is there once, in order, and
the running state in it is that of a run that was never killed."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sinks.memory_log import Fate, MemoryLane, MemoryLog
from sinks.messages import DeliveryError, Messages
from sinks.outbox import Outbox
from sinks.staged import VERSION, FencedError, InDoubtError, Lane, Stage, StaleSnapshotError, unpacked

SHARDS, EVENTS = 2, 40
SCHEDULES = 1000


def said(k: int, total: int) -> tuple[int, bytes]:
    """The shard and the message of event k: the sum of all so far of its shard."""
    return k % SHARDS, b"%d:%d" % (k, total)


class Instance:
    """One life of a job: what it read, its running sums, its lanes."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.lanes = [world.lane(shard) for shard in range(SHARDS)]
        for lane in self.lanes:
            lane.open()
        stored: dict[str, Any] = world.stored
        self.position, self.sums = stored["position"], list(stored["sums"])
        self.states = list(stored["stages"])
        self.stages: list[Stage | None] = [None] * SHARDS
        for shard, state in enumerate(self.states):
            if state is not None:
                self.stages[shard] = world.stage(self.lanes[shard], state)
        self.taken: dict[str, Any] | None = None

    def poll(self, rng: random.Random) -> None:
        for k in range(self.position, min(EVENTS, self.position + rng.randint(1, 5))):
            shard = k % SHARDS
            self.sums[shard] += k
            stage = self.stages[shard] = self.stages[shard] or self.world.stage(self.lanes[shard], None)
            key, value = said(k, self.sums[shard])
            stage.write(Messages("out", [b"%d" % key], [value]))
            self.position = k + 1

    def snapshot(self) -> None:
        self.states = [stage.snapshot() if stage else None for stage in self.stages]
        self.taken = {"position": self.position, "sums": list(self.sums), "stages": list(self.states)}

    def durable(self) -> None:
        """In the store first; the source asks for more, and so the lanes hear of it, at any time after that or never."""
        assert self.taken is not None
        self.world.stored = self.taken

    def told(self) -> None:
        if self.taken is not None and self.world.stored is self.taken:
            self.taken = None
            for lane in self.lanes:
                lane.durable()


class World:
    """A log, a recovery store, and everything that can go wrong between them."""

    def __init__(self, seed: int, stage: Callable[[Lane, Any], Stage] = lambda lane, state: Stage(lane, "sink", state)) -> None:
        self.rng, self.log, self.stage = random.Random(seed), MemoryLog(), stage
        self.stored: dict[str, Any] = {"position": 0, "sums": [0] * SHARDS, "stages": [None] * SHARDS}
        self.trouble = self.rng.random() * 0.5
        self.now = 0.0
        self.crashes = 0

    def fate(self, call: str) -> Fate:
        if self.log.late and self.rng.random() < 0.3:
            self.log.arrive()
        if self.rng.random() >= self.trouble:
            return "done"
        return "unreachable" if call == "open" else self.rng.choice(("lost", "unanswered", "late"))

    def lane(self, shard: int) -> Lane:
        def sleep(seconds: float) -> None:
            self.now += seconds

        name = f"lane {shard}"
        return Lane(name, MemoryLane(self.log, name, self.fate), patience=2.0, clock=lambda: self.now, sleep=sleep)

    def run(self) -> None:
        rng, zombies, job = self.rng, list[Instance](), self.start()
        for _ in range(200):
            action = rng.random()
            if self.log.late and rng.random() < 0.1:
                self.log.arrive()
            if zombies and rng.random() < 0.2:
                commit(rng.choice(zombies), rng)
            if action < 0.05:
                self.crashes += 1
                zombies.append(job)
                job = self.start()
            elif action < 0.3 and job.taken is None:
                job.poll(rng)
            elif action < 0.5 and job.taken is None:
                job.snapshot()
            elif action < 0.65 and job.taken is not None:
                job.durable()
            elif action < 0.75:
                job.told()
            elif not commit(job, rng):
                job = self.start()
        self.trouble = 0.0
        while self.log.late:
            self.log.arrive()
        job = self.start()
        while job.position < EVENTS:
            job.poll(rng)
        job.snapshot()
        job.durable()
        job.told()
        assert all(commit(job, rng, lane) for lane in job.lanes)

    def start(self) -> Instance:
        while True:
            try:
                return Instance(self)
            except DeliveryError:
                self.now += 10

    def check(self) -> None:
        sums, expected = [0] * SHARDS, [list[bytes]() for _ in range(SHARDS)]
        for k in range(EVENTS):
            sums[k % SHARDS] += k
            expected[k % SHARDS].append(said(k, sums[k % SHARDS])[1])
        found = [[value for key, value in self.log.topics.get("out", []) if key == b"%d" % shard] for shard in range(SHARDS)]
        assert found == expected


def commit(job: Instance, rng: random.Random, lane: Lane | None = None) -> bool:
    """What a commit thread does at some time; False if it ended the job."""
    try:
        (lane or rng.choice(job.lanes)).commit()
    except DeliveryError:
        return False
    return True


def test_each_message_once_and_the_state_in_it_right_whatever_happens() -> None:
    began, crashes = time.monotonic(), 0
    for seed in range(SCHEDULES):
        world = World(seed)
        world.run()
        world.check()
        crashes += world.crashes
    print(f"\n{SCHEDULES} schedules, {crashes} crashes, {time.monotonic() - began:.1f} s")
    assert crashes > SCHEDULES


class CommitsInSnapshot(Stage):
    def snapshot(self) -> dict[str, Any]:
        state = super().snapshot()
        self._lane.durable()
        self._lane.commit()
        return state | {"pending": []}


class ForgetsPending(Stage):
    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"pending": []}


@pytest.mark.parametrize("bug", [CommitsInSnapshot, ForgetsPending])
def test_a_planted_bug_is_found(bug: type[Stage]) -> None:
    def broken(seed: int) -> bool:
        world = World(seed, lambda lane, state: bug(lane, "sink", state))
        try:
            world.run()
            world.check()
        except (AssertionError, DeliveryError, StaleSnapshotError):
            return True
        return False

    assert sum(broken(seed) for seed in range(50)) > 10


def test_a_log_that_does_not_shut_out_who_was_before_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryLog, "owns", lambda self, lane, owner: True)
    wrong = 0
    for seed in range(60):
        world = World(seed)
        try:
            world.run()
            world.check()
        except (AssertionError, StaleSnapshotError):
            wrong += 1
    assert wrong > 3


def test_what_is_pending_comes_back_as_it_was() -> None:
    lane = Lane("0", MemoryLane(MemoryLog(), "0"))
    lane.open()
    stage = Stage(lane, "sink", None)
    stage.write(Messages("a", [b"k", None], [b"1", b""]))
    stage.write(Messages("a", [], []))
    stage.write(Messages("b", [b"k"], [b"2"]))
    stage.write(Messages("a", [None], [b"3"]))
    stage.snapshot()
    stage.write(Messages("a", [None], [b"4"]))
    epochs = unpacked("sink", stage.snapshot())
    assert [(epoch.sequence, epoch.messages) for epoch in epochs] == [
        (1, [Messages("a", [b"k", None, None], [b"1", b"", b"3"]), Messages("b", [b"k"], [b"2"])]),
        (2, [Messages("a", [None], [b"4"])]),
    ]


def test_a_store_older_than_the_output_is_refused() -> None:
    log = MemoryLog()
    for old in (None, {"version": VERSION, "sequence": 0, "pending": []}):
        outbox = Outbox(lambda shard: MemoryLane(log, str(shard)), [0])
        if old is None:
            stage = outbox.stage("sink", 0, None)
            stage.write(Messages("a", [None], [b"1"]))
            stage.snapshot()
            outbox.finish()
            assert log.values("a") == [b"1"]
        else:
            with pytest.raises(StaleSnapshotError, match="up to number 1, got one up to 0"):
                outbox.stage("sink", 0, old)
        outbox.close()


def test_a_store_whose_records_of_what_was_committed_are_gone_is_refused() -> None:
    """Else what it has pending, which was committed, would be a second time."""
    outbox = Outbox(lambda shard: MemoryLane(MemoryLog(), str(shard)), [0])
    stage, states = outbox.stage("sink", 0, None), []
    for value in (b"1", b"2"):
        stage.write(Messages("a", [None], [value]))
        states.append(stage.snapshot())
        outbox.durable()
        outbox.committed(wait=True)
    states.append(stage.snapshot())
    outbox.close()
    assert [len(state["pending"]) for state in states] == [1, 1, 0]
    for state, known in zip(states[1:], (1, 2), strict=True):
        elsewhere = Outbox(lambda shard: MemoryLane(MemoryLog(), str(shard)), [0])
        with pytest.raises(StaleSnapshotError, match=f"up to number {known}, got one up to 0: the progress topic is gone"):
            elsewhere.stage("sink", 0, state)
        elsewhere.close()


def test_nothing_is_visible_before_its_epoch_is_durable_and_streams_share_a_transaction() -> None:
    log = MemoryLog()
    outbox = Outbox(lambda shard: MemoryLane(log, str(shard)), [0])
    stages = [outbox.stage(stream, 0, None) for stream in ("sink", "reports")]
    for stage in stages:
        stage.write(Messages("a", [None], [b"1"]))
    assert outbox.durable() == outbox.committed(wait=True) == 0
    assert log.transactions == 0
    for stage in stages:
        stage.snapshot()
    assert log.transactions == 0
    outbox.finish()
    assert (log.transactions, log.values("a")) == (1, [b"1", b"1"])
    outbox.close()


def test_an_epoch_is_behind_once_however_many_partitions_ask() -> None:
    log, held = MemoryLog(), threading.Event()
    hold = {"commit.before": lambda: held.wait(10)}
    outbox = Outbox(lambda shard: MemoryLane(log, str(shard)), [0], at=lambda point: hold.get(point, int)(), epochs_behind=1)
    stage = outbox.stage("sink", 0, None)
    stage.write(Messages("a", [None], [b"1"]))
    stage.snapshot()
    assert [outbox.durable() for _ in range(6)] == [1] * 6
    assert outbox.committed() == 0
    held.set()
    assert outbox.committed(wait=True) == 1
    outbox.close()


def test_a_commit_that_fails_stops_the_job() -> None:
    log = MemoryLog()
    outbox = Outbox(lambda shard: MemoryLane(log, str(shard)), [0])
    stage = outbox.stage("sink", 0, None)
    log.take_over("0")
    stage.write(Messages("a", [None], [b"1"]))
    stage.snapshot()
    outbox.durable()
    with pytest.raises(DeliveryError, match="another instance of the job has taken over"):
        outbox.committed(wait=True)
    outbox.close()
    assert log.values("a") == []


class TakenOver:
    """A log whose lane another instance has opened and committed to, while a commit of ours had no answer."""

    def __init__(self) -> None:
        self.opened = self.commits = 0

    def open(self) -> dict[str, int]:
        self.opened += 1
        return {} if self.opened == 1 else {"sink": 9}

    def commit(self, messages: object, progress: object) -> None:
        self.commits += 1
        raise InDoubtError("no answer")

    def close(self) -> None: ...


def test_one_that_stood_still_while_another_went_on_does_not_commit_again() -> None:
    log = TakenOver()
    lane = Lane("lane 0", log)
    lane.open()
    stage = Stage(lane, "sink", None)
    stage.write(Messages("a", [None], [b"1"]))
    stage.snapshot()
    lane.durable()
    with pytest.raises(FencedError, match="another instance of the job has taken over"):
        lane.commit()
    assert log.commits == 1
