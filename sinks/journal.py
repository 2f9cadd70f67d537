"""Rows on their way to disk: taken over at once, written by a thread of its own, there when `flush` returns."""

import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Generic, TypeVar

import pyarrow as pa

from sinks.segments import HALF, LOG, SEALED, Frames, RecordError, Segment, drop_empty, in_order, seal, sync_folder

Item = TypeVar("Item")
Shape = Callable[[pa.Table], pa.Table]
FRAME_ROWS = 8_192
LINGER_SECONDS = 0.5
SEALS_WAITING = 2


class Journal(Generic[Item]):
    """One worker's chain of files (sinks/segments.py). Use it from one thread; close it.

    make: the rows of some items of one kind as a batch, called on the journal's thread; shape: of the sealed files. kind: of an
    item; a file has items of one kind (the same object, or equal). bytes_a_file: of a log,
    before it is sealed and the next one begun, as happens on each new day, too. most_rows: how many may wait to be written
    before `add` waits. clock: seconds since 1970. sync: makes what was written to a file descriptor last.

    What was left by a job that was killed is sealed first. Raises RecordError if another process writes to this chain. Whatever
    its thread raises is raised by the next `add` or `flush`: nothing is left out of the record and the job goes on.
    """

    def __init__(
        self,
        chain: Path,
        make: Callable[[Sequence[Item]], pa.RecordBatch],
        shape: Shape,
        *,
        bytes_a_file: int,
        kind: Callable[[Item], object] = lambda item: None,
        most_rows: int = 100_000,
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        chain.mkdir(parents=True, exist_ok=True)
        self._chain, self._make, self._shape = chain, make, shape
        self._bytes_a_file, self._most_rows = bytes_a_file, most_rows
        self._kind = kind
        self._of_kind: object = None
        self._clock, self._sync = clock, sync
        self._lock = locked(chain)
        drop_empty(chain)
        self._number = max((Segment.of(path).number for end in (SEALED, LOG) for path in in_order(chain, end)), default=0)
        self._segment = Segment(0, "")
        self._file: IO[bytes] | None = None
        self._frames = Frames()
        self._written = 0
        self._sealer = ThreadPoolExecutor(1, "seal")
        self._sealing: deque[Future[Path | None]] = deque()
        self._changed = threading.Condition()
        self._items: list[Item] = []
        self._waiting = self._rows = 0
        self._asked = self._done = 0
        self._added = self._closing = False
        self._failed: BaseException | None = None
        self.rows = 0
        for half in chain.glob(f"*{HALF}"):
            half.unlink()
        for log in in_order(chain, LOG):
            self._sealing.append(self._sealer.submit(seal, log, shape))
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def add(self, item: Item, rows: int) -> None:
        """Takes an item over, which is so many rows. Waits while too many have not been written yet."""
        with self._changed:
            while self._rows and self._rows + rows > self._most_rows and self._failed is None:
                self._hurry()
                self._changed.wait()
            self._raise()
            self._items.append(item)
            self._added = True
            self._waiting += rows
            self._rows += rows
            if self._waiting >= FRAME_ROWS:
                self._changed.notify_all()

    def begin_flush(self) -> None:
        """Has everything written that was added, without waiting for it."""
        with self._changed:
            self._hurry()

    def flush(self) -> None:
        """Returns when everything that was added is on disk. Raises RecordError when it cannot be."""
        with self._changed:
            asked = self._hurry()
            while self._done < asked and self._failed is None:
                self._changed.wait()
            self._raise()

    def close(self) -> None:
        """Writes and seals what is left, and ends its threads; raises nothing."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._sealer.shutdown(wait=True)
        self._lock.close()

    def _hurry(self) -> int:
        if self._added:
            self._asked, self._added = self._asked + 1, False
            self._changed.notify_all()
        return self._asked

    def _raise(self) -> None:
        if self._failed is not None:
            why = f"{type(self._failed).__name__}: {self._failed}"
            raise RecordError(f"record {self._chain}: cannot be written ({why})") from self._failed

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it is, the job must hear of it
            with self._changed:
                self._failed = error
                self._changed.notify_all()
        finally:
            if self._file is not None:
                self._file.close()

    def _turn(self) -> bool:
        """Writes what there is, and makes it last if somebody waits for it; whether there is more to come."""
        with self._changed:
            if not self._to_do():
                self._changed.wait(LINGER_SECONDS)
            items, self._items = self._items, []
            rows, self._waiting = self._waiting, 0
            asked, closing = self._asked, self._closing
        for kind, some in groupby(items, self._kind):
            self._write(kind, list(some))
        if asked > self._done and self._file is not None:
            self._file.flush()
            self._sync(self._file.fileno())
        with self._changed:
            self._done = asked
            self._rows -= rows
            self.rows += rows
            self._changed.notify_all()
        if closing and not items:
            self._roll()
            self._sealed(all_of_them=True)
        return not (closing and not items)

    def _to_do(self) -> bool:
        return self._waiting >= FRAME_ROWS or self._asked > self._done or self._closing

    def _write(self, kind: object, items: Sequence[Item]) -> None:
        day = datetime.fromtimestamp(self._clock(), UTC).strftime("%Y-%m-%d")
        other = day != self._segment.day or kind != self._of_kind
        if self._file is not None and (self._written >= self._bytes_a_file or other):
            self._roll()
        self._of_kind = kind
        batch = self._make(items)
        if not batch.num_rows:
            return
        if self._file is None:
            self._number += 1
            self._segment = Segment(self._number, day)
            self._file = self._segment.path(self._chain, LOG).open("xb")
            sync_folder(self._chain)
            self._written = 0
        self._written += self._frames.write(self._file, batch)

    def _roll(self) -> None:
        """Lets the log be sealed, on another thread."""
        if self._file is None:
            return
        self._file.flush()
        self._sync(self._file.fileno())
        self._file.close()
        self._file = None
        self._sealing.append(self._sealer.submit(seal, self._segment.path(self._chain, LOG), self._shape))
        self._sealed(all_of_them=False)

    def _sealed(self, all_of_them: bool) -> None:
        """Raises what sealing raised, and waits where more than a few files wait for it."""
        while self._sealing and (all_of_them or len(self._sealing) > SEALS_WAITING or self._sealing[0].done()):
            self._sealing.popleft().result()


def locked(chain: Path) -> IO[bytes]:
    """The lock on a chain, held until it is closed or this process ends. Raises RecordError if another process has it."""
    file = (chain / "_lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise RecordError(f"record {chain}: another process is writing to it: stop that job first") from None
    return file


def adopt(folder: Path, worker: int, workers: range, shape: Shape) -> None:
    """Seals what workers left that this job no longer has on this machine; each of those that it has takes some of them."""
    for chain in folder.glob("worker-*"):
        number = chain.name.removeprefix("worker-")
        if number.isdigit() and int(number) not in workers and workers[int(number) % len(workers)] == worker:
            with locked(chain):
                for log in in_order(chain, LOG):
                    seal(log, shape)
