"""Hands what was decided to a shadow (models/shadow.py), after it was: copies on a thread beside the dataflow.

A shadow scores what an event was decided on, whatever inputs it takes: all features, and what the policy reads. A computed
feature's NaN is null, as it is for the policy; a score's is not.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.shadow import CHAMPION, READY, SCORE, STALE_SECONDS, SUFFIX
from streams.decide import Work

TURN_SECONDS = 0.25
MOST_ROWS, MOST_FILES = 1 << 16, 8


class Handed(NamedTuple):
    """What is kept of a work: no more than the shadow is given. version: of the champion."""

    version: int
    batch: pa.RecordBatch
    computed: dict[str, npt.NDArray[Any]]
    scores: npt.NDArray[np.float32]


class Shadowing:
    """Takes works and writes them to a shadow's folder while it is ready; close it before the job."""

    def __init__(
        self,
        folder: Path,
        worker: int,
        names: Sequence[str],
        on_left_out: Callable[[int], None] = lambda rows: None,
        say: Callable[[str], None] = lambda words: None,
        seconds: float = TURN_SECONDS,
    ) -> None:
        """names: the features, and what else a policy reads. on_left_out: told of rows that the shadow will not see."""
        self._folder, self._names, self._seconds = folder, names, seconds
        self._on_left_out, self._say, self._said = on_left_out, say, False
        self._mine = f"{worker}-"
        self._handed: deque[Handed] = deque()
        self._taken, self._gone = 0, 0  # rows; each is counted by one thread alone
        self._number = 0
        self._on = False
        self._stop = threading.Event()
        for file in folder.glob(f"{self._mine}*.part"):
            file.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def take(self, work: Work) -> None:
        """Takes over what was decided and sent; returns at once. Called by one thread."""
        n = work.batch.num_rows
        if not self._on or work.scores.ndim > 1 or not n:
            return
        if self._taken - self._gone + n > MOST_ROWS:
            self._on_left_out(n)
            return
        computed = {name: work.computed[name] for name in self._names if name in work.computed}
        others = work.batch.select([name for name in self._names if name not in computed])
        self._taken += n
        self._handed.append(Handed(work.deciding.names.model_version, others, computed, work.scores))

    def close(self) -> None:
        """Ends its thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._seconds)
            self._on = self._ready()
            handed = [self._handed.popleft() for _ in range(len(self._handed))]
            if handed and self._on:
                self._hand_over(handed)
            self._gone += sum(each.batch.num_rows for each in handed)
        self._on = False

    def _ready(self) -> bool:
        """Whether the shadow has said lately that it is."""
        try:
            return time.time() - (self._folder / READY).stat().st_mtime < STALE_SECONDS
        except OSError:
            return False

    def _hand_over(self, handed: Sequence[Handed]) -> None:
        rows = sum(each.batch.num_rows for each in handed)
        try:
            if sum(1 for _ in self._folder.glob(f"{self._mine}*{SUFFIX}")) >= MOST_FILES:
                self._on_left_out(rows)  # the shadow is behind
                return
            for version in dict.fromkeys(each.version for each in handed):
                self._write(version, [each for each in handed if each.version == version])
        except Exception as error:  # noqa: BLE001 - a full disk, or whatever it is: what is decided is decided
            self._on_left_out(rows)
            if not self._said:
                self._said = True
                self._say(f"the shadow is not given everything: {type(error).__name__}: {error}")

    def _write(self, version: int, handed: Sequence[Handed]) -> None:
        batch = _together(handed, self._names).replace_schema_metadata({CHAMPION: str(version)})
        self._number += 1
        file = self._folder / f"{self._mine}{os.getpid()}-{self._number:09d}"
        part = file.with_suffix(".part")
        try:
            part.touch(mode=0o600)
            with pa.OSFile(str(part), "wb") as out, pa.ipc.new_file(out, batch.schema) as writer:
                writer.write_batch(batch)
            part.rename(file.with_suffix(SUFFIX))
        finally:
            part.unlink(missing_ok=True)


def _together(handed: Sequence[Handed], names: Sequence[str]) -> pa.RecordBatch:
    """The columns of all works, and their scores; column by column, as many works have few rows each."""
    batch, of = pa.concat_batches([each.batch for each in handed]), handed[0].computed
    columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
    for name in of:
        values = np.concatenate([each.computed[name] for each in handed]).astype(np.float64, copy=False)
        columns[name] = pa.array(values, from_pandas=True)
    columns[SCORE] = pa.array(np.concatenate([each.scores for each in handed]))
    return pa.RecordBatch.from_pydict({name: columns[name] for name in [*names, SCORE]})
