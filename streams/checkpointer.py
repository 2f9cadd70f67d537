"""Moves what is in the write-ahead logs of a recovery store into its files, between epochs: `python checkpointer.py FOLDER`.

SQLite does that by itself in the commit that finds a thousand pages in the log, every few epochs, and the stream stands still
for 10 ms longer. Done ten times a second, that commit never comes. It has to be another process: Python's SQLite and
Bytewax's are two libraries, and the locks of a file are a process's, whichever of them took them. Started as a file, it loads
nothing but the standard library.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

EVERY, LEAVE = 0.1, 5.0
CLOSED = b"."


@contextmanager
def checkpointing(folder: Path) -> Iterator[None]:
    """Has a process do it for the files in `folder` while this lasts; at the end this process has closed them."""
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        log.warning("recovery store %s: no process to move its log between epochs, so that some take longer: %s", folder, error)
        yield
        return
    try:
        yield
    finally:
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.communicate(CLOSED, timeout=LEAVE)
        process.kill()
        process.wait()


def main(folder: Path) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    opened: dict[Path, tuple[sqlite3.Connection, sqlite3.Connection]] = {}
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        for file in folder.glob("*.sqlite3"):
            with suppress(sqlite3.Error):  # the job's own commits meet the same trouble, and stop it
                if file not in opened:
                    opened[file] = connected(file), connected(file)
                checkpoint(*opened[file])
    if os.read(sys.stdin.fileno(), 1) != CLOSED:
        os._exit(0)
    for both in opened.values():
        for store in both:
            store.close()


def connected(file: Path) -> sqlite3.Connection:
    """A connection to a file that is there, which waits for nobody."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)


def checkpoint(store: sqlite3.Connection, reader: sqlite3.Connection) -> None:
    """Moves what it can, while another connection of this process reads.

    Without that, SQLite before 3.51.3 may take a log that the writer begins anew at that moment for one that has been moved,
    and loses what is written to it (sqlite.org/wal.html, "the WAL-reset bug"). A reader of a log that is not all moved keeps
    the writer from beginning it anew; a reader of one that is keeps the checkpoint from saying anything.
    """
    reader.execute("BEGIN")
    try:
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    finally:
        reader.execute("ROLLBACK")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
