"""Moves what is in the write-ahead logs of a recovery store into its files, between epochs: `python checkpointer.py FOLDER`.

SQLite does that by itself in the commit that finds a thousand pages in the log, every few epochs, and the stream stands still
for 10 ms longer. Done ten times a second, that commit never comes. It has to be another process: Python's SQLite and
Bytewax's are two libraries, and the locks of a file are a process's, whichever of them took them. It ends when its standard
input does, with the job, however that ends. Started as a file, it loads nothing but the standard library.
"""

import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

EVERY = 0.1


@contextmanager
def checkpointing(folder: Path) -> Iterator[None]:
    """Has a process do it for the files in `folder` while this lasts."""
    command = [sys.executable, "-I", "-S", __file__, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def main(folder: Path) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not select.select([sys.stdin], [], [], EVERY)[0]:
        for file in folder.glob("*.sqlite3"):
            with suppress(sqlite3.Error):  # the job's own commits meet the same trouble, and stop it
                checkpoint(file)


def checkpoint(file: Path) -> None:
    """Moves what it can, waiting for nobody."""
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=0)) as store:
        store.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
