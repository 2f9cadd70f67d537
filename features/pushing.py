"""Values of entities on their way to Feast: the latest of each, written every so often on a thread of its own.

Feast writes some 5,000 entities a second, in Python: so few are written at a time, with pauses, and what a turn does not get
done waits for the next one, or gives way to a newer value. Whatever the store does, who hands values over does not wait.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

log = logging.getLogger(__name__)

WRITE_ROWS = 256
WRITE_SHARE = 0.1
MERGE_ROWS = 1 << 15
MOST_ROWS = 1 << 18
CLOSE_SECONDS = 5.0


class Values(NamedTuple):
    """n values: of which entity, an Arrow array without nulls; values float64 [f, n], NaN for null; of when, int64 [n] in
    microseconds since 1970-01-01 UTC."""

    entity: pa.Array
    values: npt.NDArray[np.float64]
    times: npt.NDArray[np.int64]

    def rows(self, chosen: npt.NDArray[np.intp]) -> "Values":
        """Those of some rows."""
        return Values(self.entity.take(pa.array(chosen)), self.values[:, chosen], self.times[chosen])


def latest(parts: Sequence[Values], most: int) -> tuple[Values, int]:
    """The latest value of each entity, of one time the one that came later, in the order in which entities came first.

    Of more than `most` entities the ones with the latest values; the second result is how many those are that were left out.
    """
    entity = pa.concat_arrays([part.entity for part in parts])
    values = np.concatenate([part.values for part in parts], axis=1)
    times = np.concatenate([part.times for part in parts])
    codes = entity.dictionary_encode()
    order = np.argsort(times, kind="stable")
    rows = np.empty(len(codes.dictionary), np.intp)
    rows[codes.indices.to_numpy()[order]] = order
    gone = max(0, len(rows) - most)
    if gone:
        rows = rows[np.sort(np.argsort(times[rows], kind="stable")[gone:])]
    return Values(entity, values, times).rows(rows), gone


class Pushing:
    """Writes values by `write`, from a thread, every `every` seconds; of at most `most` entities at a time.

    pushed: how many were written; failed: how often that failed; given_up: values that made room for others and were not
    written. What `write` raises is logged, and tried again at the next turn.
    """

    def __init__(self, name: str, write: Callable[[Values], None], every: float, most: int) -> None:
        self._name, self._write, self._every, self._most = name, write, every, most
        self.pushed = self.failed = self.given_up = 0
        self._parts: deque[Values] = deque()
        self._rows = 0
        self._held: Values | None = None
        self._well = True
        self._change = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"push-{name}", daemon=True)
        self._thread.start()

    def take(self, values: Values) -> None:
        """Takes values over; returns at once."""
        with self._change:
            self._parts.append(values)
            self._rows += len(values.times)
            while self._rows > MOST_ROWS and len(self._parts) > 1:
                gone = len(self._parts.popleft().times)
                self._rows -= gone
                self.given_up += gone
            if self._rows >= MERGE_ROWS:
                self._change.notify()

    @property
    def waiting(self) -> int:
        """How many values wait to be written."""
        held = self._held
        return self._rows + (0 if held is None else len(held.times))

    def close(self) -> None:
        """Writes what is left, for CLOSE_SECONDS at most."""
        self._closing.set()
        with self._change:
            self._change.notify()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        due = time.monotonic() + self._every
        while True:
            with self._change:
                ready = lambda: self._closing.is_set() or self._rows >= MERGE_ROWS  # noqa: E731
                self._change.wait_for(ready, max(0.0, due - time.monotonic()))
            last = self._closing.is_set()
            self._merge()
            if last or time.monotonic() >= due:
                self._turn()
                due = time.monotonic() + self._every
            if last:
                return

    def _merge(self) -> None:
        with self._change:
            parts, self._parts, self._rows = self._parts, deque(), 0
        if parts:
            self._held, gone = latest([*([] if self._held is None else [self._held]), *parts], self._most)
            self.given_up += gone

    def _turn(self) -> None:
        """Writes what is there now, some at a time; what comes meanwhile takes the place of what is older, or waits."""
        left = 0 if self._held is None else len(self._held.times)
        while left > 0 and self._held is not None:
            began, n = time.monotonic(), min(WRITE_ROWS, left)
            rows = np.arange(len(self._held.times))
            try:
                self._write(self._held.rows(rows[:n]))
            except Exception as error:  # noqa: BLE001 - whatever a store raises, decisions go on
                self.failed += 1
                self._is_well(False, f"{type(error).__name__}: {error}")
                self._held = self._held.rows(np.roll(rows, -n))  # the next turn begins with others
                return
            self._is_well(True)
            self.pushed += n
            self._held = self._held.rows(rows[n:]) if len(rows) > n else None
            left -= n
            self._closing.wait((time.monotonic() - began) * (1 / WRITE_SHARE - 1))
            self._merge()

    def _is_well(self, well: bool, problem: str = "") -> None:
        if well != self._well:
            self._well = well
            log.warning("push %s: %s", self._name, "the store takes values again" if well else f"tried again later: {problem}")
