"""A recovery store's write-ahead log is moved into its file, and what is replaced is deleted, by a process of its own, which
leaves with the job."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import bytewax.operators as op
import psutil
import pytest
from bytewax._bytewax import RecoveryConfig, init_db_dir, run_main
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from payments import payments, settings
from prometheus_client import CollectorRegistry

from streams import checkpointer
from streams.checkpointer import KEPT_BY_BYTEWAX, Kept, checkpoint, checkpointing, connected, delete_replaced, durable
from streams.run import run
from streams.store import Store

KEYS, EPOCHS = 4, 6


def store_in(folder: Path) -> sqlite3.Connection:
    """A store with a log, which its one connection does not move by itself."""
    store = sqlite3.connect(folder / "part-0.sqlite3")
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA wal_autocheckpoint = 0")
    store.execute("CREATE TABLE snaps (data)")
    return store


def write(store: sqlite3.Connection, rows: int) -> None:
    with store:
        store.executemany("INSERT INTO snaps VALUES (?)", [(bytes(5_000),)] * rows)


def test_the_log_is_used_again_instead_of_growing(tmp_path: Path) -> None:
    log = tmp_path / "part-0.sqlite3-wal"
    with closing(store_in(tmp_path)) as store, checkpointing(tmp_path):
        write(store, 20)
        once = log.stat().st_size
        for _ in range(5):
            deadline = time.monotonic() + 20
            before = (tmp_path / "part-0.sqlite3").stat().st_mtime_ns
            while (tmp_path / "part-0.sqlite3").stat().st_mtime_ns == before and time.monotonic() < deadline:
                time.sleep(0.02)
            write(store, 20)
        assert log.stat().st_size < 3 * once
        assert store.execute("SELECT count(*) FROM snaps").fetchone() == (120,)


def test_the_log_is_gone_with_the_job_that_has_closed_the_store(tmp_path: Path) -> None:
    with checkpointing(tmp_path):
        with closing(store_in(tmp_path)) as store:
            write(store, 20)
            time.sleep(0.5)
        assert (tmp_path / "part-0.sqlite3-wal").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["part-0.sqlite3"]


def test_a_reader_stands_between_a_checkpoint_and_a_log_begun_anew(tmp_path: Path) -> None:
    """The two halves of what `checkpoint` stands on: no new beginning while it reads, nothing moved while all has been."""
    file = tmp_path / "part-0.sqlite3"
    with closing(store_in(tmp_path)) as store, closing(connected(file)) as other, closing(connected(file)) as reader:
        write(store, 20)
        size = file.with_name(f"{file.name}-wal").stat().st_size
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        assert other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        write(store, 20)
        assert file.with_name(f"{file.name}-wal").stat().st_size > size
        reader.execute("ROLLBACK")
        checkpoint(other, reader)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        write(store, 20)
        busy, frames, moved = other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert moved < frames or busy
        reader.execute("ROLLBACK")
        assert store.execute("SELECT count(*) FROM snaps").fetchone() == (60,)


def counted(folder: Path, kept: timedelta, until: int = EPOCHS) -> None:
    """A run that counts by key, an epoch for each round of the keys; the last key comes in the first round alone."""
    rounds = [[(str(key), 1) for key in range(KEYS) if key < KEYS - 1 or not epoch] for epoch in range(until)]
    flow = Dataflow("counted")
    events = op.input("in", flow, TestingSource([one for each in rounds for one in [*each, TestingSource.EOF()]]))
    counts = op.stateful_map("count", events, lambda state, one: ((state or 0) + one, (state or 0) + one))
    op.output("out", counts, TestingSink([]))
    for _ in range(until):  # an EOF ends a run, so that each round is an epoch of its own at least
        run_main(flow, epoch_interval=timedelta(0), recovery_config=RecoveryConfig(str(folder), kept))


@contextmanager
def opened(*folders: Path) -> Iterator[list[tuple[sqlite3.Connection, sqlite3.Connection]]]:
    with ExitStack() as all_of:
        files = [file for folder in folders for file in sorted(folder.glob("*.sqlite3"))]
        yield [
            (all_of.enter_context(closing(connected(file))), all_of.enter_context(closing(connected(file)))) for file in files
        ]


def rows(folder: Path) -> list[tuple[Any, ...]]:
    asked = "SELECT step_id, state_key, snap_epoch, ser_change FROM snaps"
    with opened(folder) as files:
        return sorted(row for _, reader in files for row in reader.execute(asked))


@pytest.mark.parametrize("partitions", [1, 3])
def test_what_is_deleted_is_what_bytewax_deletes(tmp_path: Path, partitions: int) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder, kept in ((theirs, timedelta(0)), (ours, KEPT_BY_BYTEWAX)):
        folder.mkdir()
        init_db_dir(folder, partitions)
        counted(folder, kept)
    assert len(rows(ours)) > len(rows(theirs))
    with Store(ours) as store:
        before = [list(store.snapshots(step)) for step in store.steps()]
        assert store.progress.epoch is not None
        resumed = store.progress.epoch
    with opened(ours) as files:
        epoch = durable([reader for _, reader in files])
        assert epoch == resumed - 1
        for both in files:
            delete_replaced(*both, epoch)
    assert rows(ours) == rows(theirs)
    with Store(ours) as store:
        assert [list(store.snapshots(step)) for step in store.steps()] == before
        assert store.let_go() == [epoch] * partitions
        assert not store.ahead()
    counted(ours, KEPT_BY_BYTEWAX, 1)  # it goes on from there


def test_nothing_is_deleted_that_a_worker_behind_needs(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 2)
    counted(tmp_path, KEPT_BY_BYTEWAX)
    with opened(tmp_path) as files:
        readers = [reader for _, reader in files]
        whole = durable(readers)
        assert whole is not None
        last, _, resumed = max(
            row for reader in readers for row in reader.execute("SELECT ex_num, worker_count, resume_epoch FROM exs")
        )
        for _, reader in files:
            reader.execute("UPDATE exs SET worker_count = 2 WHERE ex_num = ?", (last,))
        assert durable(readers) == resumed - 1 < whole  # the second has not written an epoch of this execution
        files[0][0].execute("INSERT INTO fronts (ex_num, worker_index, worker_frontier) VALUES (?, 1, ?)", (last, whole))
        assert durable(readers) == whole - 1
        assert durable(readers[:1]) is None  # the other partition is elsewhere
        assert durable([]) is None


def test_a_store_without_an_epoch_or_of_which_a_part_is_elsewhere_is_left_as_it_is(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    init_db_dir(here, 2)
    with opened(here) as files:
        assert durable([reader for _, reader in files]) is None
    counted(here, KEPT_BY_BYTEWAX)
    before = rows(here)
    moved = next(here.glob("part-1*"))
    moved.rename(there / moved.name)
    kept = Kept(here)
    assert kept.look() is None
    kept.close()
    (there / moved.name).rename(moved)
    assert rows(here) == before


def test_a_running_job_s_store_has_one_snapshot_of_each_key(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    counted(tmp_path, KEPT_BY_BYTEWAX)

    def replaced() -> int:
        found = [(step, key) for step, key, *_ in rows(tmp_path)]
        return len(found) - len(set(found))

    assert replaced() > EPOCHS
    with checkpointing(tmp_path), closing(connected(next(tmp_path.glob("*.sqlite3")))):  # somebody has it open
        deadline = time.monotonic() + 10
        while replaced() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not replaced()
        counted(tmp_path, KEPT_BY_BYTEWAX)  # which writes meanwhile
        while replaced() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not replaced()


def test_what_somebody_is_in_the_way_of_is_done_at_the_next_look(tmp_path: Path) -> None:
    init_db_dir(tmp_path, 1)
    counted(tmp_path, KEPT_BY_BYTEWAX)
    before, kept = rows(tmp_path), Kept(tmp_path)
    with closing(connected(next(tmp_path.glob("*.sqlite3")))) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert isinstance(kept.look(), sqlite3.OperationalError)
        assert rows(tmp_path) == before
        writer.execute("ROLLBACK")
        assert kept.look() is None
        assert len(rows(tmp_path)) < len(before)
    kept.close()


def test_a_run_deletes_what_is_replaced_whoever_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytewax where the store is on several machines, and it beside the job where it is on one."""
    seen = list[timedelta | None]()

    class Stopped(Exception):  # noqa: N818
        """Far enough."""

    def recovery(folder: str, kept: timedelta | None) -> None:
        seen.append(kept)
        raise Stopped

    monkeypatch.setattr("streams.run.RecoveryConfig", recovery)
    monkeypatch.setattr(
        "streams.run.Job", lambda *given, **parts: Mock(workers_here=range(given[1].machine, given[1].machine + 1))
    )
    monkeypatch.setattr("streams.run.rehearse", lambda job: None)
    monkeypatch.setattr("streams.run.check", lambda *given, **how: None)
    for machines in (1, 2):
        values = settings(tmp_path / str(machines), recovery=True, machines=machines)
        with pytest.raises(Stopped):
            run(payments(), values, registry=CollectorRegistry(), addresses=[f"127.0.0.1:{9000 + k}" for k in range(machines)])
    assert seen == [KEPT_BY_BYTEWAX, None]


def test_it_ends_with_the_reason_where_nothing_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "part-0.sqlite3").write_bytes(b"no store" * 1000)
    monkeypatch.setattr(checkpointer, "HELPLESS", 0.2)
    monkeypatch.setattr(os, "_exit", leave := Mock(side_effect=SystemExit))
    readable, writable = os.pipe()
    with os.fdopen(readable) as nothing, os.fdopen(writable, "w"):
        monkeypatch.setattr(sys, "stdin", nothing)
        with pytest.raises(SystemExit):
            checkpointer.main(tmp_path)
    assert leave.call_args.args == (1,)
    assert "file is not a database" in capsys.readouterr().err


def test_another_process_is_started_where_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpointer, "AGAIN", 0.1)
    with checkpointing(tmp_path):
        (first,) = awaited(lambda: started(tmp_path))
        first.kill()
        (second,) = awaited(lambda: [each for each in started(tmp_path) if each.pid != first.pid])
        assert second.is_running()
    assert "is started again" in caplog.text
    assert not started(tmp_path)


def test_without_a_process_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with checkpointing(tmp_path):
        pass
    assert "no process to keep its files small" in caplog.text


def test_it_waits_for_nobody(tmp_path: Path) -> None:
    with closing(store_in(tmp_path)) as store:
        write(store, 1)
        store.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with (
            closing(connected(tmp_path / "part-0.sqlite3")) as other,
            closing(connected(tmp_path / "part-0.sqlite3")) as reader,
        ):
            checkpoint(other, reader)
        assert time.monotonic() - began < 1
        store.execute("ROLLBACK")


def test_a_file_that_is_no_store_or_is_gone_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "part-1.sqlite3").write_bytes(b"no store" * 1000)
    with closing(store_in(tmp_path)) as store, checkpointing(tmp_path):
        write(store, 5)
        time.sleep(0.5)
        (tmp_path / "part-1.sqlite3").unlink()
        time.sleep(0.3)
        write(store, 5)
    assert not (tmp_path / "part-1.sqlite3").exists()


def test_it_leaves_when_the_job_is_killed(tmp_path: Path) -> None:
    job = f"""
import sys, time
from pathlib import Path
from streams.checkpointer import checkpointing
with checkpointing(Path({str(tmp_path)!r})):
    print("there", flush=True)
    time.sleep(60)
"""
    root = Path(checkpointer.__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", job], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    (found,) = awaited(lambda: started(tmp_path))
    process.kill()
    process.wait()
    process.stdout.close()
    psutil.wait_procs([found], timeout=10)
    assert not started(tmp_path)


def started(folder: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[-1:] == [str(folder)]]


def awaited(found: Callable[[], Sequence[psutil.Process]]) -> Sequence[psutil.Process]:
    deadline = time.monotonic() + 10
    while not (processes := found()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return processes
