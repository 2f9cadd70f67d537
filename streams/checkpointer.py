"""Keeps the files of a recovery store small while a job writes them, between epochs: `python checkpointer.py FOLDER`.

It moves what is in the write-ahead logs into the files, and deletes the snapshots that newer ones have replaced. SQLite does
the first by itself in the commit that finds a thousand pages in the log, every few epochs, for which the stream stands still
for 10 ms longer; Bytewax does the second at the end of every epoch, a search and one more wait for the disk. Done beside them,
the stream waits for neither. It has to be another process: Python's SQLite and Bytewax's are two libraries, and the locks of a
file are a process's, whichever of them took them. Started as a file, it loads nothing but the standard library.

It ends when its standard input does, with the job, however that ends, and closes the files only if the job says that it has
closed them itself: who closes a file last deletes the log, and whether somebody still writes to it is told by locks alone.
"""

import logging
import os
import select
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

log = logging.getLogger(__name__)

EVERY, LEAVE, AGAIN, HELPLESS = 0.1, 5.0, 1.0, 30.0
"""Seconds: between two looks; that the last may take; before another process is started; and for which none may succeed."""
AT_ONCE = 64
"""Snapshots that are deleted in a transaction: the job's own commits wait for it, five seconds at most."""
CLOSED = b"."
KEPT_BY_BYTEWAX = timedelta(days=36_500)
"""How long Bytewax is told to keep what has been replaced in a store that is whole in one folder: it then deletes nothing."""
REPLACED = """
    SELECT old.rowid FROM snaps AS old WHERE snap_epoch < :epoch AND EXISTS (
        SELECT 1 FROM snaps AS new WHERE new.step_id = old.step_id AND new.state_key = old.state_key
        AND new.snap_epoch > old.snap_epoch AND new.snap_epoch <= :epoch
    )
"""
LET_GO = """
    INSERT INTO commits (part_index, commit_epoch) SELECT part_index, ? FROM parts WHERE true
    ON CONFLICT (part_index) DO UPDATE SET commit_epoch = excluded.commit_epoch
"""


@contextmanager
def checkpointing(folder: Path) -> Iterator[None]:
    """Has a process do it for the files in `folder` while this lasts, another one if that dies; at the end this process has
    closed them."""
    ended = threading.Event()
    keeper = threading.Thread(target=_kept, args=(folder, ended), name="checkpointing", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()


def _kept(folder: Path, ended: threading.Event) -> None:
    command, failing = [sys.executable, "-I", "-S", __file__, str(folder)], ""
    while True:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            if failing != (failing := str(error)):
                log.warning("recovery store %s: no process to keep its files small, they grow without: %s", folder, error)
            if ended.wait(AGAIN):
                return
            continue
        with process:
            while process.poll() is None and not ended.wait(AGAIN):
                pass
            if process.returncode is None:
                with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                    process.communicate(CLOSED, timeout=LEAVE)
                process.kill()
                return
            assert process.stderr is not None
            said = process.stderr.read().decode(errors="replace").strip() or f"exit code {process.returncode}"
        log.warning("recovery store %s: what keeps its files small ended, and is started again: %s", folder, said)


def main(folder: Path) -> None:
    """What the process does. It ends with exit code 1 and the reason where nothing succeeds any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kept = Kept(folder)
    helpless = None
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        error = kept.look()
        helpless = (helpless or time.monotonic()) if error else None
        if helpless and time.monotonic() - helpless > HELPLESS:
            print(f"for {HELPLESS:.0f} s: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if os.read(sys.stdin.fileno(), 1) != CLOSED:
        os._exit(0)
    kept.look()
    kept.close()


class Kept:
    """The files in a folder, as they are kept small. Of each there are two connections: one that deletes and moves, and one
    that reads meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, tuple[sqlite3.Connection, sqlite3.Connection]] = {}
        self._done: dict[Path, int] = {}

    def close(self) -> None:
        """Lets go of the files."""
        for both in self._files.values():
            for store in both:
                store.close()

    def look(self) -> sqlite3.Error | None:
        """Deletes and moves what it can, of a whole store only where an epoch has ended since; what did not succeed, which is
        tried again at the next look: the job's own commits meet the same trouble, and stop it."""
        failed: sqlite3.Error | None = None
        epoch: int | None = None
        for file in self._folder.glob("*.sqlite3"):
            try:
                if file not in self._files:
                    self._files[file] = connected(file), connected(file)
            except sqlite3.Error as error:
                failed = error
        try:
            epoch = durable([reader for _, reader in self._files.values()])
        except sqlite3.Error as error:
            failed = error
        for file, (store, reader) in self._files.items():
            if epoch is not None and self._done.get(file) == epoch:
                continue
            moved = deleted = False
            try:
                if epoch is not None:
                    delete_replaced(store, reader, epoch)
                    deleted = True
            except sqlite3.Error as error:
                failed = error
            try:
                moved = checkpoint(store, reader)
            except sqlite3.Error as error:
                failed = error
            if epoch is not None and deleted and moved:
                self._done[file] = epoch
        return failed


def durable(readers: Sequence[sqlite3.Connection]) -> int | None:
    """The last epoch that all workers have written, as a store's partitions tell; None where some are elsewhere or no epoch
    has ended."""
    parts = [row for reader in readers for row in reader.execute("SELECT part_count FROM parts")]
    if not parts or any(count != len(parts) for (count,) in parts):
        return None
    executions = [row for reader in readers for row in reader.execute("SELECT ex_num, worker_count, resume_epoch FROM exs")]
    if not executions:
        return None
    last, workers, resumed = max(executions)
    asked = "SELECT worker_index, worker_frontier FROM fronts WHERE ex_num = ?"
    reached = dict.fromkeys(range(workers), resumed)
    reached |= {worker: front for reader in readers for worker, front in reader.execute(asked, (last,))}
    return int(min(reached.values())) - 1


def delete_replaced(store: sqlite3.Connection, reader: sqlite3.Connection, epoch: int) -> None:
    """Deletes the snapshots that nobody needs who resumes after `epoch`, and says so in the file before, as Bytewax does it;
    for the reader see `checkpoint`. They are looked for without a lock, and deleted a few at a time. What is lost with the
    power is deleted again."""
    with reading(reader):
        rows = [row for (row,) in reader.execute(REPLACED, {"epoch": epoch})]
        store.execute(LET_GO, (epoch,))
        for first in range(0, len(rows), AT_ONCE):
            some = rows[first : first + AT_ONCE]
            store.execute(f"DELETE FROM snaps WHERE rowid IN ({','.join('?' * len(some))})", some)


def connected(file: Path) -> sqlite3.Connection:
    """A connection to a file that is there, which waits for nobody, for the disk only before and after it moves the log, and
    moves it only when told."""
    store = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)
    store.execute("PRAGMA synchronous = NORMAL")
    store.execute("PRAGMA wal_autocheckpoint = 0")
    return store


@contextmanager
def reading(reader: sqlite3.Connection) -> Iterator[None]:
    """A connection reads meanwhile."""
    reader.execute("BEGIN")
    try:
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
    finally:
        reader.execute("ROLLBACK")


def checkpoint(store: sqlite3.Connection, reader: sqlite3.Connection) -> bool:
    """Moves what it can, while another connection of this process reads; whether that was all.

    Without that, SQLite before 3.51.3 may take a log that the writer begins anew at that moment for one that has been moved,
    and loses what is written to it (sqlite.org/wal.html, "the WAL-reset bug"). A reader of a log that is not all moved keeps
    the writer from beginning it anew; a reader of one that is keeps the checkpoint from saying anything.
    """
    with reading(reader):
        busy, logged, moved = store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return not busy and logged == moved


if __name__ == "__main__":
    main(Path(sys.argv[1]))
