"""The real flow with exactly-once delivery, on a log in memory: stopped or crashed, it writes each decision once."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from payments import CHAMPION, payments, settings, stream
from prometheus_client import CollectorRegistry

from sinks.memory import MemorySink
from sinks.memory_log import Fate, MemoryLane, MemoryLog
from sinks.staged import InDoubtError
from sinks.transactions import KafkaLane
from streams.polling import Partition
from streams.positions import stages
from streams.run import run
from streams.shards import page_of
from streams.source import MemorySource
from streams.store import Store

Pairs = list[tuple[bytes | None, bytes]]


class CrashError(Exception):
    """What stands for a SIGKILL."""


def start(
    home: Path, logs: list[Pairs], written: MemoryLog, *, crash: tuple[str, int] = ("", 0), **values: Any
) -> MemorySource:
    """One run; crash: at which point of delivery, the how manieth time."""
    seen = 0

    def at(point: str) -> None:
        nonlocal seen
        seen += point == crash[0]
        if point == crash[0] and seen == crash[1]:
            raise CrashError(point)

    def fate(call: str) -> Fate:
        at(f"{call}.before")
        return "done"

    stop = values.pop("stop", None)
    source = MemorySource(logs, rows=values.pop("rows", 10), until_end=stop is None, stop=stop)
    job = replace(payments(**values), delivery="exactly_once"), settings(home, recovery=True, epoch_seconds=0.001)
    parts = {"source": source, "lanes": lambda shard: MemoryLane(written, str(shard), fate), "champion": CHAMPION, "at": at}
    run(*job, registry=CollectorRegistry(), **parts)
    return source


def decided(written: MemoryLog) -> list[dict[str, Any]]:
    found = [json.loads(value) for value in written.values("verdicts")]
    for decision in found:
        del decision["decided_at"]
    return found


@pytest.mark.parametrize("order", ["arrival", "event"])
@pytest.mark.parametrize("point", ["stage.before", "stage.after", "snapshot.before", "snapshot.after", "commit.before"])
def test_crashed_and_resumed_each_decision_is_there_once(tmp_path: Path, order: str, point: str) -> None:
    log = [*stream(240), (None, b"{nonsense")]
    whole, written = MemoryLog(), MemoryLog()
    start(tmp_path / "whole", [log], whole, order=order)
    for time in (2, 3, 5):
        with pytest.raises(CrashError):
            start(tmp_path / "job", [log], written, crash=(point, time), order=order)
    some = len(decided(written))
    start(tmp_path / "job", [log], written, order=order)
    assert decided(written) == decided(whole)
    assert len(written.values("pay.dead")) == len(whole.values("pay.dead")) == 1
    assert some < len(decided(whole))


def test_the_epoch_says_which_page_of_the_state_is_written_whatever_life_it_is_of(tmp_path: Path) -> None:
    """So that in short lives, too, each has its turn, and what changed since it was written does not pile up."""
    log, written = stream(4000), MemoryLog()
    store, seen = tmp_path / "recovery" / payments().name, set[int]()
    for _ in range(6):
        with pytest.raises(CrashError):
            start(tmp_path, [log[:2000], log[2000:]], written, crash=("snapshot.before", 9))
        with Store(store) as opened:
            states = [(each.epoch, each.load()) for each in opened.snapshots(f"{payments().name}.features")]
        pages = {(epoch, state["page"]) for epoch, state in states if state["shard"] is not None}
        assert {page for _, page in pages} > seen
        seen = {page for _, page in pages}
        assert pages == {(epoch, page_of(epoch)) for epoch, _ in pages}


def test_a_partition_is_committed_in_order_whatever_others_bring_with_it(tmp_path: Path) -> None:
    """Two partitions are decided together, until the second is at its end and the first goes on alone: a batch has rows of
    both, and lanes are committed side by side."""
    lanes: dict[int, MemoryLog] = {}
    logs = [stream(300), stream(300, seed=1)[:90], []]
    parts: dict[str, Any] = {"lanes": lambda shard: MemoryLane(lanes.setdefault(shard, MemoryLog()), str(shard))}
    job = payments(), settings(tmp_path, recovery=True, delivery="exactly_once", epoch_seconds=0.001)
    run(*job, registry=CollectorRegistry(), source=MemorySource(logs, rows=20), champion=CHAMPION, **parts)
    for partition, log in enumerate(logs):
        ids = [json.loads(value)["decision_id"] for value in lanes[partition].values("verdicts")]
        paid = [n for n, (_, value) in enumerate(log) if json.loads(value)["kind"] == "paid"]
        assert ids == [f"payments/pay/{partition}/{n}" for n in paid]


def test_stopped_it_leaves_nothing_uncommitted(tmp_path: Path) -> None:
    log, written, stop = stream(3000), MemoryLog(), threading.Event()

    def look() -> None:
        while written.transactions < 3:
            stop.wait(0.001)
        stop.set()

    threading.Thread(target=look, daemon=True).start()
    source = start(tmp_path, [log, []], written, stop=stop)
    some = len(decided(written))
    assert 0 < some < 2000
    read = source.committed[0]
    assert some == sum(json.loads(value)["kind"] == "paid" for _, value in log[:read])
    start(tmp_path, [log, []], written)
    ids = [decision["decision_id"] for decision in decided(written)]
    assert len(ids) == len(set(ids)) == sum(json.loads(value)["kind"] == "paid" for _, value in log)


def test_a_store_says_whether_output_was_staged(tmp_path: Path) -> None:
    """If so, its positions are not safe to rebuild from: what is staged may not have been committed."""
    with pytest.raises(CrashError):
        start(tmp_path, [stream(300)], MemoryLog(), crash=("commit.before", 4))
    store = tmp_path / "recovery" / payments().name
    assert stages(store, payments().name)
    assert not stages(tmp_path, payments().name)
    job = payments(), settings(tmp_path / "once", recovery=True, epoch_seconds=0.001)
    run(*job, registry=CollectorRegistry(), source=MemorySource([stream(300)]), sink=MemorySink(), champion=CHAMPION)
    assert not stages(tmp_path / "once" / "recovery" / payments().name, payments().name)


def test_delivered_at_least_once_from_then_on_what_was_staged_is_not_lost(tmp_path: Path) -> None:
    log, written, sink = stream(300), MemoryLog(), MemorySink()
    with pytest.raises(CrashError):
        start(tmp_path, [log], written, crash=("commit.before", 4))
    before = len(decided(written))
    job = payments(), settings(tmp_path, recovery=True, epoch_seconds=0.001)
    lanes = {"lanes": lambda shard: MemoryLane(written, str(shard))}
    run(*job, registry=CollectorRegistry(), source=MemorySource([log]), sink=sink, champion=CHAMPION, **lanes)
    assert len(decided(written)) > before
    ids = [decision["decision_id"] for decision in decided(written)] + [
        json.loads(value)["decision_id"] for value in sink.values("verdicts")
    ]
    assert len(ids) == len(set(ids)) == sum(json.loads(value)["kind"] == "paid" for _, value in log)


def test_when_the_source_is_asked_again_the_epoch_is_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What all of this stands on."""
    behind: list[int] = []
    asked = Partition.next_batch

    def look(partition: Partition) -> Any:
        if partition._snapshotted is not None:
            # in Bytewax's own process even a copy undoes its locks: only who closes the store last would go by them
            copy = tmp_path / f"copy-{len(behind)}"
            copy.mkdir()
            for file in (tmp_path / "recovery" / "payments").glob("*.sqlite3*"):
                if not file.name.endswith("-shm"):
                    shutil.copy(file, copy)
            with closing(sqlite3.connect(next(copy.glob("*.sqlite3")))) as store:
                frontier = store.execute("SELECT MIN(worker_frontier) FROM fronts").fetchone()[0]
                first = store.execute("SELECT MIN(resume_epoch) FROM exs").fetchone()[0]
            behind.append(first + partition._snapshots - frontier)
        return asked(partition)

    monkeypatch.setattr(Partition, "next_batch", look)
    start(tmp_path, [stream(300), stream(200, seed=1)], MemoryLog())
    assert len(behind) > 20
    assert set(behind) == {0}


def test_it_needs_the_recovery_store(tmp_path: Path) -> None:
    job = replace(payments(), delivery="exactly_once"), settings(tmp_path, recovery=False)
    with pytest.raises(ValueError, match="delivery exactly_once needs the recovery store"):
        run(*job, registry=CollectorRegistry(), source=MemorySource([[]]), champion=CHAMPION)
    with pytest.raises(ValueError, match="expected delivery at_least_once or exactly_once, got twice"):
        replace(payments(), delivery="twice")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["delivery.timeout.ms", "message.timeout.ms"])
def test_a_message_is_tried_no_longer_than_its_transaction_may_last(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """librdkafka refuses it otherwise, at the first start."""
    monkeypatch.setattr("sinks.transactions.ANSWER_SECONDS", 0.2)
    lane = KafkaLane("127.0.0.1:1", {name: "300000"}, "job", 0, "progress")
    with pytest.raises(InDoubtError, match="transaction job-0, open: Timed out"):
        lane.open()
