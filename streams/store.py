"""Reads a recovery store: Bytewax's SQLite files, its partitions, as they are while nobody or somebody writes to them.

Bytewax resumes at an epoch, the earliest that a worker of the last execution has not finished, with each key's newest snapshot
from before it. Snapshots are pickles; here they are loaded as plain data and nothing else.
"""

import io
import os
import pickle
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIX = ".sqlite3"
OPENED_TIMES = 50
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError
)  # fmt: skip
"""What a pickle that is not whole raises."""
LATEST = """
SELECT step_id, state_key, snap_epoch, ser_change, created_at FROM snaps JOIN
(SELECT step_id, state_key, MAX(snap_epoch) AS snap_epoch FROM snaps
 WHERE snap_epoch < ? AND step_id = ? AND state_key GLOB ? GROUP BY step_id, state_key)
USING (step_id, state_key, snap_epoch) WHERE ser_change IS NOT NULL
"""
SIZES = """
SELECT step_id, state_key, COUNT(*), SUM(LENGTH(ser_change)),
 SUM(CASE WHEN snap_epoch = latest THEN LENGTH(ser_change) END), MAX(created_at)
FROM snaps LEFT JOIN
(SELECT step_id, state_key, MAX(snap_epoch) AS latest FROM snaps WHERE snap_epoch < ? GROUP BY step_id, state_key)
USING (step_id, state_key) GROUP BY step_id, state_key
"""


class RecoveryError(RuntimeError):
    """The recovery store is not what the job needs, or is gone; the message says what was expected and how to go on."""


@dataclass(frozen=True)
class Part:
    """A partition of a store: its number of how many, and its file."""

    index: int
    count: int
    path: Path


@dataclass(frozen=True)
class Progress:
    """How far the job has come: executions so far, the workers of the last one, and the epoch that it resumes at, None if it
    has never run."""

    executions: int
    workers: int
    epoch: int | None


@dataclass(frozen=True)
class Size:
    """What a key of a step takes: its snapshots, their bytes, those of the one that counts, and when the last was written
    (UTC)."""

    step: str
    key: str
    snapshots: int
    nbytes: int
    current: int
    written_at: str


@dataclass(frozen=True)
class Snapshot:
    """A key's newest snapshot, of before the epoch that the job resumes at; written_at: UTC."""

    step: str
    key: str
    epoch: int
    data: bytes
    written_at: str

    def load(self) -> Any:
        """What it holds. Raises RecoveryError for anything but plain data."""
        try:
            return _Plain(io.BytesIO(self.data)).load()
        except DAMAGED as error:
            raise RecoveryError(f"snapshot of {self.step} {self.key} cannot be read: {' '.join(str(error).split())}") from None


def progress_of(executions: Sequence[Sequence[int]], fronts: Sequence[Sequence[int]]) -> Progress:
    """How far a job has come by the rows of `Store.executions` and `Store.fronts` of all its partitions."""
    if not executions:
        return Progress(0, 0, None)
    last, workers, resume = max(map(tuple, executions))
    told = dict.fromkeys(range(workers), resume)
    for execution, worker, frontier in fronts:
        if execution == last:
            told[worker] = max(frontier, told.get(worker, 0))
    return Progress(last + 1, workers, min(told.values()))


class _Plain(pickle.Unpickler):
    """Loads plain data and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"expected plain data, got {module}.{name}")


class Store:
    """A store that is read, as of when it was opened: a job may write on meanwhile, and is not held up. Close it.

    Raises RecoveryError, which names the file, for one that is no store, is damaged, has no partitions, or of which no epoch
    lasts as long as its files take to open; those that are missing are in `missing`. more: further folders with partitions
    of it.
    """

    def __init__(self, folder: Path, *more: Path) -> None:
        self.folder = folder
        self.files = sorted(file for each in (folder, *more) for file in each.glob(f"*{SUFFIX}"))
        self._open: list[sqlite3.Connection] = []
        self.parts: list[Part] = []
        try:
            for file in self.files:
                self._opened(file)
            self._as_of_one_epoch()
            self.progress = progress_of(self.executions(), self.fronts())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        for connection in self._open:
            connection.close()

    @property
    def count(self) -> int:
        """The number of partitions that the store was made with; 0 if there are none."""
        return max((part.count for part in self.parts), default=0)

    @property
    def missing(self) -> list[int]:
        """The partitions that are not here."""
        return sorted(set(range(self.count)) - {part.index for part in self.parts})

    def snapshots(self, step: str, keys: str = "*") -> Iterator[Snapshot]:
        """The newest snapshots of a step's keys that are like `keys`; none if the job has never run."""
        if self.progress.epoch is None:
            return
        for part, connection in zip(self.parts, self._open, strict=True):
            yield from (Snapshot(*row) for row in self._each(part.path, connection, LATEST, (self.progress.epoch, step, keys)))

    def sizes(self) -> list[Size]:
        """What each key of each step takes."""
        epoch = self.progress.epoch
        return [Size(step, key, n, b or 0, now or 0, at) for step, key, n, b, now, at in self._asked(SIZES, (epoch or 0,))]

    def steps(self) -> list[str]:
        """The steps that have snapshots."""
        return sorted({row[0] for row in self._asked("SELECT DISTINCT step_id FROM snaps", ())})

    def unfinished(self) -> int:
        """Snapshots of epochs that are not durable: a job is writing them, or was killed while it did."""
        asked = "SELECT COUNT(*) FROM snaps WHERE snap_epoch >= ?"
        return sum(row[0] for row in self._asked(asked, (self.progress.epoch or 0,)))

    def spare(self) -> int:
        """The bytes of the files that hold nothing and are used again."""
        asked = "SELECT freelist_count * page_size FROM pragma_freelist_count, pragma_page_size"
        return sum(row[0] for row in self._asked(asked, ()))

    def damage(self) -> str:
        """What SQLite finds wrong in the files; reads all of them."""
        for part, connection in zip(self.parts, self._open, strict=True):
            (found,) = self._rows(part.path, connection, "PRAGMA quick_check(1)", ())
            if found[0] != "ok":
                return f"{part.path.name} is damaged: {' '.join(found[0].split())}"
        return ""

    def _opened(self, file: Path) -> None:
        alone = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
        how = "immutable=1" if alone else "mode=ro"  # whoever reads beside a writer leaves a mark in the folder
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?{how}", uri=True, isolation_level=None)
        self._open.append(connection)
        rows = self._rows(file, connection, "SELECT part_index, part_count FROM parts", ())
        if len(rows) != 1:
            raise RecoveryError(f"recovery store {self.folder}: {file.name}: expected one partition, got {len(rows)}")
        index, count = rows[0]
        part = Part(index, count, file)
        for other in self.parts:
            if other.count != part.count:
                counts = f"one of {other.count} and {file.name} one of {part.count}"
                raise RecoveryError(f"recovery store {self.folder}: {other.path.name} is {counts} partitions")
            if other.index == part.index:
                both = f"{other.path.name} and {file.name} are both partition {part.index}"
                raise RecoveryError(f"recovery store {self.folder}: {both}")
        self.parts.append(part)

    def _as_of_one_epoch(self) -> None:
        """From here on each file is seen as it is now, when no epoch ends: one that ended between two files would have deleted
        from the second what the first says is needed."""
        for attempt in range(OPENED_TIMES):
            before = self.fronts(), self.executions()
            self._asked("BEGIN", ())
            if (self.fronts(), self.executions()) == before:
                return
            self._asked("ROLLBACK", ())
            time.sleep(0.001 * attempt)
        raise RecoveryError(f"recovery store {self.folder}: epochs end faster than its files can be opened")

    def executions(self) -> list[tuple[int, int, int]]:
        """Number, workers and first epoch of each execution that the partitions here know of."""
        return self._asked("SELECT ex_num, worker_count, resume_epoch FROM exs", ())

    def fronts(self) -> list[tuple[int, int, int]]:
        """Of the executions how far each worker came: its execution, number and epoch."""
        return self._asked("SELECT ex_num, worker_index, worker_frontier FROM fronts", ())

    def let_go(self) -> list[int]:
        """The epochs before which partitions have let go of what is needed to resume."""
        return [epoch for (epoch,) in self._asked("SELECT commit_epoch FROM commits", ())]

    def ahead(self) -> list[int]:
        """Partitions that have let go of what is needed to resume: the others are older copies."""
        asked = "SELECT part_index FROM commits WHERE commit_epoch > ?"
        return [row[0] for row in self._asked(asked, (self.progress.epoch,))] if self.progress.epoch is not None else []

    def _asked(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        return [
            row
            for part, connection in zip(self.parts, self._open, strict=True)
            for row in self._rows(part.path, connection, query, values)
        ]

    def _rows(self, file: Path, connection: sqlite3.Connection, query: str, values: tuple[Any, ...]) -> list[Any]:
        return list(self._each(file, connection, query, values))

    def _each(self, file: Path, connection: sqlite3.Connection, query: str, values: tuple[Any, ...]) -> Iterator[Any]:
        try:
            yield from connection.execute(query, values)
        except sqlite3.Error as error:
            raise RecoveryError(f"recovery store {self.folder}: {file.name} cannot be read: {error}") from None
