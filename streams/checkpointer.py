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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

log = logging.getLogger(__name__)

EVERY, LEAVE, AGAIN = 0.1, 5.0, 1.0
CLOSED = b"."
KEPT_BY_BYTEWAX = timedelta(days=36_500)
"""How long Bytewax is told to keep what has been replaced in a store that is whole in one folder: it then deletes nothing."""
REPLACED = """
    DELETE FROM snaps AS old WHERE snap_epoch < :epoch AND EXISTS (
        SELECT 1 FROM snaps AS new WHERE new.step_id = old.step_id AND new.state_key = old.state_key
        AND new.snap_epoch > old.snap_epoch AND new.snap_epoch <= :epoch
    )
"""
LET_GO = """
    INSERT INTO commits (part_index, commit_epoch) SELECT part_index, :epoch FROM parts WHERE true
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
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    while True:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError as error:
            log.warning("recovery store %s: no process to keep its files small, so that they grow: %s", folder, error)
            if ended.wait(AGAIN):
                return
            continue
        while process.poll() is None and not ended.wait(AGAIN):
            pass
        if process.returncode is None:
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                process.communicate(CLOSED, timeout=LEAVE)
            process.kill()
            process.wait()
            return
        assert process.stdin is not None
        process.stdin.close()
        log.warning(
            "recovery store %s: what keeps its files small ended with %d, and is started again", folder, process.returncode
        )


def main(folder: Path) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    files: dict[Path, Connections] = {}
    before: int | None = None
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        before = once(folder, files, before)
    if os.read(sys.stdin.fileno(), 1) != CLOSED:
        os._exit(0)
    once(folder, files, before)
    for both in files.values():
        for store in both:
            store.close()


Connections = tuple[sqlite3.Connection, sqlite3.Connection]
"""Of a file: one that moves and deletes, and one that reads meanwhile."""


def once(folder: Path, files: dict[Path, Connections], before: int | None = None) -> int | None:
    """Deletes and moves what it can, of a whole store only where an epoch has ended since; the last one, None where this cannot
    be told. What fails is tried again at the next time: the job's own commits meet the same trouble, and stop it."""
    for file in folder.glob("*.sqlite3"):
        with suppress(sqlite3.Error):
            if file not in files:
                files[file] = connected(file), connected(file)
    epoch: int | None = None
    with suppress(sqlite3.Error):
        epoch = durable([reader for _, reader in files.values()])
    if epoch is None or epoch != before:
        for both in files.values():
            with suppress(sqlite3.Error):
                if epoch is not None:
                    delete_replaced(*both, epoch)
                checkpoint(*both)
    return epoch


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
    """Deletes the snapshots that nobody needs who resumes after `epoch`, and says so in the file, as Bytewax does it; for the
    reader see `checkpoint`. Does not wait for the disk: what is lost with the power is deleted again."""
    with reading(reader):
        store.execute("BEGIN IMMEDIATE")
        try:
            store.execute(LET_GO, {"epoch": epoch})
            store.execute(REPLACED, {"epoch": epoch})
            store.execute("COMMIT")
        except BaseException:
            store.execute("ROLLBACK")
            raise


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


def checkpoint(store: sqlite3.Connection, reader: sqlite3.Connection) -> None:
    """Moves what it can, while another connection of this process reads.

    Without that, SQLite before 3.51.3 may take a log that the writer begins anew at that moment for one that has been moved,
    and loses what is written to it (sqlite.org/wal.html, "the WAL-reset bug"). A reader of a log that is not all moved keeps
    the writer from beginning it anew; a reader of one that is keeps the checkpoint from saying anything.
    """
    with reading(reader):
        store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
