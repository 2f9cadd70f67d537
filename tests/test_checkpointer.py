"""A recovery store's write-ahead log is moved into its file by a process of its own, which leaves with the job."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from streams import checkpointer
from streams.checkpointer import checkpoint, checkpointing, connected


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


def test_without_a_process_the_job_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with checkpointing(tmp_path):
        pass
    assert "no process to move its log" in caplog.text


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
    deadline = time.monotonic() + 10
    while not (found := started(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(found) == 1
    process.kill()
    process.wait()
    process.stdout.close()
    psutil.wait_procs(found, timeout=10)
    assert not started(tmp_path)


def started(folder: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[-1:] == [str(folder)]]
