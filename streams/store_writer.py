"""Writes a recovery store that Bytewax goes on from, with any number of partitions."""

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path

from bytewax._bytewax import init_db_dir

from sinks.segments import sync_folder
from streams.store import SUFFIX, Progress, RecoveryError, Snapshot

MASK = (1 << 64) - 1
PRIME = 0x6EED0E9DA4D94A4F
SEEDS = 0x16F11FE89B0D677C, 0xB480A793D8E6C86C, 0x6FE2E5AAF078EBC9, 0x14F994A4C5259381
ROWS = 64
PATIENCE = 1.0


def seahash(data: bytes) -> int:
    """SeaHash (ticki, 2016) with its own seeds, by which Bytewax says which partition a snapshot is written to."""
    a, b, c, d = SEEDS
    whole = len(data) // 8 * 8
    for at in range(0, whole, 8):
        a, b, c, d = b, c, d, _diffused(a ^ int.from_bytes(data[at : at + 8], "little"))
    if whole < len(data):
        a = _diffused(a ^ int.from_bytes(data[whole:], "little"))
    return _diffused(a ^ b ^ c ^ d ^ len(data))


def _diffused(x: int) -> int:
    x = x * PRIME & MASK
    return (x ^ (x >> 32 >> (x >> 60))) * PRIME & MASK


def partition_of(step: str, key: str, partitions: int) -> int:
    """The partition that Bytewax writes a step's key to, which is where its older snapshots have to be."""
    return seahash(step.encode() + b"\xff" + key.encode() + b"\xff") % partitions


def write(folder: Path, partitions: int, progress: Progress, snapshots: Iterable[Snapshot]) -> int:
    """A new store in an empty folder, which goes on where another is; returns the number of snapshots, which are on disk."""
    init_db_dir(folder, partitions)
    files = [folder / f"part-{number}{SUFFIX}" for number in range(partitions)]
    waiting: list[list[Snapshot]] = [[] for _ in files]
    written = 0
    for snapshot in snapshots:
        number = partition_of(snapshot.step, snapshot.key, partitions)
        waiting[number].append(snapshot)
        written += 1
        if len(waiting[number]) == ROWS:
            _insert(files[number], waiting[number])
            waiting[number] = []
    for file, rest in zip(files, waiting, strict=True):
        _insert(file, rest)
    if progress.epoch is not None:
        with closing(sqlite3.connect(files[0])) as store, store:
            told = progress.executions - 1, progress.workers, progress.epoch
            store.execute("INSERT INTO exs (ex_num, worker_count, resume_epoch) VALUES (?, ?, ?)", told)
    settle(folder)
    return written


def _insert(file: Path, snapshots: list[Snapshot]) -> None:
    rows = [(one.step, one.key, one.epoch, one.data, one.written_at) for one in snapshots]
    insert = "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change, created_at) VALUES (?, ?, ?, ?, ?)"
    with closing(sqlite3.connect(file)) as store, store:
        store.executemany(insert, rows)


def settle(folder: Path) -> None:
    """Brings what a killed job left beside the files into them, so that each is whole by itself, and on disk.

    Raises RecoveryError if a job is running on them; what helped one that was killed has a second to leave. What is damaged is
    left to who reads it.
    """
    until = time.monotonic() + PATIENCE
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        while problem := _settled(file):
            if "locked" not in problem:
                raise RecoveryError(f"recovery store {folder}: {file.name}: {problem}")
            if time.monotonic() > until:
                raise RecoveryError(f"recovery store {folder} is in use: stop the job first (SIGTERM lets it leave)")
            time.sleep(0.02)
    sync_folder(folder)


def taken_up(folder: Path) -> None:
    """`settle`, for a job that goes on with the store: its files have a write-ahead log again, as Bytewax wants it. To begin
    one takes a lock, which workers that open a file at once would fight for, and one of them would lose. What is damaged is
    left to who reads it.

    Raises RecoveryError.
    """
    settle(folder)
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(file)) as store:
            store.execute("PRAGMA journal_mode = WAL").fetchall()


def _settled(file: Path) -> str:
    """Nothing, or why not; SQLite does not wait for this lock by itself."""
    try:
        with closing(sqlite3.connect(file)) as store:
            store.execute("PRAGMA journal_mode = DELETE").fetchall()
    except sqlite3.OperationalError as error:
        return str(error)
    except sqlite3.DatabaseError:
        return ""
    return ""
