"""A store beside a running job, after one that was killed, and in a home for each worker."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from payments import decisions, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import bare, champion_of, going, half, quick, spread, whole_of

from ops.broker import free_port
from ops.start import prepare
from ops.state_move import drop, move
from ops.state_store import look
from sinks.memory import MemorySink
from streams.migrate import migrate
from streams.positions import kept
from streams.run import run
from streams.source import MemorySource
from streams.start import RecoveryError, check, store_of
from streams.store import Store

LOGS = spread(stream(3000), 2)
SPAWN = multiprocessing.get_context("spawn")


def endless(home: Path) -> None:
    """A job in a process of its own: a few messages an epoch, half of what there is however fast it goes, and it never ends."""
    source, pipeline = MemorySource([log[: len(log) // 2] for log in LOGS], rows=4, until_end=False), quick("event")
    job = pipeline, settings(home, recovery=True, epoch_seconds=0.02, recovery_partitions=3)
    sink = MemorySink()
    sink.on_write = lambda messages: time.sleep(0.01)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=champion_of(pipeline))


def worker(homes: list[Path], number: int, addresses: list[str], out: Path) -> None:
    """One of two workers, with a home of its own."""
    source, pipeline, sink = MemorySource(LOGS, rows=40), quick("event"), MemorySink()
    job = pipeline, settings(homes[number], recovery=True, epoch_seconds=0.01)
    parts: dict[str, Any] = {"source": source, "sink": sink, "champion": champion_of(pipeline)}
    run(*job, registry=CollectorRegistry(), worker=number, addresses=addresses, **parts)
    out.write_text(json.dumps([value.decode() for value in sink.values("verdicts")]))


@pytest.mark.slow
def test_a_running_job_is_looked_at_and_otherwise_let_be_and_a_killed_one_is_moved(tmp_path: Path) -> None:
    home, pipeline = tmp_path / "home", quick("event", shards=3)
    job = settings(home)
    process = SPAWN.Process(target=endless, args=(home,))
    process.start()
    try:
        seen, deadline = [0], time.monotonic() + 60
        while seen[-1] < 200:
            assert process.is_alive()
            assert time.monotonic() < deadline
            if (store_of(pipeline, job) / "made").exists():
                found = look(quick("event"), job, "payments")
                assert found["goes_on"], found["differs"]
                assert len(found["positions"]) in (0, len(LOGS))
                seen.append(sum(position["read"] for position in found["positions"].values()))
        assert seen == sorted(seen)
        assert len(set(seen)) > 5
        for refused in (
            lambda: migrate(pipeline, job, "payments"),
            lambda: move(quick("event"), job, "payments", [], [tmp_path / "other"]),
            lambda: drop(pipeline, job),
            lambda: prepare(pipeline, settings(home, recovery=True), called="payments"),
            lambda: prepare(pipeline, settings(home, recovery=True), called="payments", rebuild=True),
        ):
            with pytest.raises(RecoveryError, match="is in use: stop the job first"):
                refused()
        assert process.is_alive()
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    before = look(quick("event"), job, "payments")
    assert sum(position["read"] for position in before["positions"].values()) >= seen[-1]
    migrate(pipeline, job, "payments", 2)
    check(pipeline, job)
    safe = kept(store_of(pipeline, job), "payments")
    assert {str(number): at for number, at in safe.items()} == {k: at["decided"] for k, at in before["positions"].items()}
    sink = MemorySink()
    going(home, pipeline, LOGS, sink)
    whole, new = whole_of(tmp_path / "whole", pipeline, LOGS), bare(decisions(sink))
    assert 0 < len(new) < len(whole)
    for decision_id, decision in whole.items():
        _, _, number, offset = decision_id.split("/")
        assert decision_id in new or int(offset) < safe[int(number)]
        assert new.get(decision_id, decision) == decision


@pytest.mark.slow
def test_workers_with_homes_of_their_own_go_on_together(tmp_path: Path) -> None:
    """From a store in which a killed run has left something."""
    home, pipeline, sink = tmp_path / "home", quick("event"), MemorySink()
    homes, outs = ([tmp_path / f"{name}-{number}" for number in range(2)] for name in ("pod", "out"))
    half(home, pipeline, LOGS, sink, until=900)
    migrate(pipeline, settings(home), "payments", 5)
    with closing(sqlite3.connect(store_of(pipeline, settings(home)) / "part-0.sqlite3")) as file, file:
        copy = "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) "
        file.execute(f"{copy} SELECT step_id, state_key, 1000000, x'80' FROM snaps LIMIT 5")
    assert look(pipeline, settings(home), "payments")["unfinished_snapshots"] == 5
    move(pipeline, settings(home), "payments", [], homes)
    with Store(*(store_of(pipeline, settings(home)) for home in homes)) as store:
        assert (store.unfinished(), store.missing) == (0, [])
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    processes = [SPAWN.Process(target=worker, args=(homes, number, addresses, outs[number])) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    sent = [json.loads(value) for out in outs for value in json.loads(out.read_text())]
    assert all(json.loads(out.read_text()) for out in outs)
    first = bare(decisions(sink))
    found = first | bare({one["decision_id"]: one for one in sent})
    assert found == whole_of(tmp_path / "whole", pipeline, LOGS)
    move(pipeline, settings(home), "payments", homes, [home])
    at = look(pipeline, settings(home), "payments")
    assert at["goes_on"]
    assert [position["read"] for position in at["positions"].values()] == [len(log) for log in LOGS]
    assert (at["executions"], at["workers"]) == (2, 2)
