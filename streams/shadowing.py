"""Hands what was decided to a shadow (models/shadow.py), after it was: copies on a thread beside the dataflow.

A shadow scores what an event was decided on, whatever inputs it takes: all features, and what the policy reads. NaN is null.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.shadow import CHAMPION, READY, SCORE, SUFFIX
from sinks.journal import step_back
from streams.decide import Deciding, Work

TURN_SECONDS = 0.25
MOST_ROWS, MOST_FILES = 1 << 16, 8


class Shadowing:
    """Takes works and writes them to a shadow's folder while it is ready; close it before the job."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        names: Sequence[str],
        on_left_out: Callable[[int], None] = lambda rows: None,
        seconds: float = TURN_SECONDS,
    ) -> None:
        """names: the features, and what else a policy reads. on_left_out: told of rows that the shadow will not see."""
        self._folder, self._worker, self._names = folder, worker, names
        self._on_left_out, self._seconds = on_left_out, seconds
        self._works: deque[Work] = deque()
        self._rows, self._number = 0, 0
        self._on = False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def take(self, work: Work) -> None:
        """Takes over what was decided and sent; returns at once."""
        if not self._on or work.scores.ndim > 1:
            return
        left_out = 0
        with self._lock:
            self._works.append(work)
            self._rows += work.batch.num_rows
            while self._rows > MOST_ROWS and len(self._works) > 1:
                gone = self._works.popleft().batch.num_rows
                self._rows, left_out = self._rows - gone, left_out + gone
        if left_out:
            self._on_left_out(left_out)

    def close(self) -> None:
        """Ends its thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        step_back()
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._seconds)
            self._on = (self._folder / READY).exists()
            with self._lock:
                works, self._rows = list(self._works), 0
                self._works.clear()
            if works:
                self._hand_over(works)

    def _hand_over(self, works: list[Work]) -> None:
        rows = sum(work.batch.num_rows for work in works)
        mine = f"{self._worker}-"
        try:
            if sum(file.name.startswith(mine) for file in self._folder.iterdir()) >= MOST_FILES:
                raise BlockingIOError
            for deciding in dict.fromkeys(work.deciding for work in works):
                self._write(deciding, [work for work in works if work.deciding is deciding])
        except OSError:  # the shadow is behind, gone, or the disk is full: what is decided is decided
            self._on_left_out(rows)

    def _write(self, deciding: Deciding, works: Sequence[Work]) -> None:
        batch = _together(works, self._names)
        batch = batch.replace_schema_metadata({CHAMPION: str(deciding.names.model_version)})
        self._number += 1
        file = self._folder / f"{self._worker}-{self._number:09d}"
        part = file.with_suffix(".part")
        with pa.OSFile(str(part), "wb") as out, pa.ipc.new_file(out, batch.schema) as writer:
            writer.write_batch(batch)
        part.rename(file.with_suffix(SUFFIX))


def _together(works: Sequence[Work], names: Sequence[str]) -> pa.RecordBatch:
    """The columns of all works, and their scores; column by column, as many works have few rows each."""
    computed = [name for name in names if name in works[0].computed]
    others = [name for name in names if name not in works[0].computed]
    batch = pa.concat_batches([work.batch.select(others) for work in works])
    columns = {name: np.concatenate([work.computed[name] for work in works]) for name in computed}
    columns |= {SCORE: np.concatenate([work.scores for work in works])}
    for name in others:
        column = batch.column(name)
        columns[name] = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return pa.RecordBatch.from_pydict({name: columns[name] for name in [*names, SCORE]})
