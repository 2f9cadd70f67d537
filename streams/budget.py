"""The time that an event may take from its poll to the hand-over of its decision, and what keeps to it.

What waits for its turn waits in Kafka: a round of polls takes as many rows as are decided in time, by how long batches of
about so many took lately (`Pace.rows`). A row that will not make it all the same, since something held the job, is decided and
flagged `late`, or has no score and is the fallback's. Nothing waits for a batch to fill: a job that is busy finds more to
decide together when it polls again, and one that is not has nothing to gain from waiting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
LATE = "late"
AS_SET: tuple[Literal["mark", "shed"], ...] = ("mark", "shed")
SIZES, SAMPLES, ENOUGH, HIGH = 24, 64, 8, 0.95
FORGET_SECONDS = 10.0
SHARE = 0.7
"""Of the budget that a batch is to take: the rest is for what nobody foresees."""
FIRST_ROWS = 256


@dataclass(frozen=True)
class Budget:
    """Milliseconds from the poll of an event to the hand-over of its decision to the producer.

    late: what becomes of those that take longer: `mark` decides them all the same, `shed` without the model, which leaves more
    time to the others; both flag them `late`. Raises ValueError.
    """

    milliseconds: float
    late: Literal["mark", "shed"] = "mark"

    def __post_init__(self) -> None:
        if not self.milliseconds > 0:
            raise ValueError(f"budget: expected milliseconds above 0, got {self.milliseconds:g}")
        if self.late not in AS_SET:
            raise ValueError(f"budget: expected late {' or '.join(AS_SET)}, got {self.late}")


class Lately:
    """How long something took lately, by how many rows: powers of two.

    What nobody has seen for FORGET_SECONDS is forgotten, so that a size that once was slow is tried again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples = np.zeros((SIZES, SAMPLES))
        self._count, self._at = [0] * SIZES, [0.0] * SIZES
        self._known: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def note(self, rows: int, seconds: float) -> None:
        """So many rows took so many seconds."""
        size = _size(rows)
        count = self._count[size]
        self._samples[size, count % SAMPLES] = seconds
        self._count[size], self._at[size] = count + 1, self._clock()
        if count < ENOUGH or count % ENOUGH == 0 or seconds > self._known[size]:
            some = np.sort(self._samples[size, : min(count + 1, SAMPLES)])
            self._known[size] = float(some[int(HIGH * (len(some) - 1))])

    def of(self, rows: int) -> float:
        """The seconds that so many rows are likely to take, 19 times of 20; 0.0 while nothing is known."""
        size = _size(rows)
        if size in self._known and self._clock() - self._at[size] <= FORGET_SECONDS:
            return self._known[size]
        if size in self._known:
            del self._known[size]
            self._count[size] = 0
        known = self._known
        below = sorted(each for each in known if each <= size)[-2:]
        if not below:
            return known[min(known)] if known else 0.0
        last = below[-1]
        before, took = (0, 0.0) if len(below) == 1 else (1 << below[0], known[below[0]])
        a_row = max(0.0, known[last] - took) / ((1 << last) - before)
        more = (known[each] for each in known if each > size)
        return min([known[last] + a_row * ((1 << size) - (1 << last)), *more])

    def most(self, seconds: float) -> int:
        """The largest power of two of rows that is likely to take no longer; at least 1."""
        return next((1 << size for size in range(SIZES - 1, 0, -1) if self.of(1 << size) <= seconds), 1)


class Pace:
    """Knows how long a worker's batches take and which rows will be late."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self.sheds = budget.late == "shed"
        self._seconds = budget.milliseconds / 1e3
        self._whole, self._from = Lately(clock), {"score": Lately(clock), "decide": Lately(clock)}

    def rows(self) -> int:
        """How many rows a round of polls may take."""
        return self._whole.most(SHARE * self._seconds) if self._whole else FIRST_ROWS

    def late(self, step: str, polled_at: I64, now: int) -> npt.NDArray[np.bool_]:
        """Which of n rows will not make it that are about to go through a step and all that follow: bool [n].

        polled_at (0: made up), now: ns."""
        left = self._seconds - self._from[step].of(len(polled_at))
        return np.asarray((polled_at > 0) & (now - polled_at > 1e9 * left))

    def took(self, polled: int, rows: int, polled_at: int, scored_from: int, decided_from: int, now: int) -> None:
        """A batch is handed over: of so many rows that were polled and so many that were decided; times in ns. Not to be told
        of one of which rows were shed: it tells nothing."""
        self._whole.note(polled, (now - polled_at) / 1e9)
        self._from["score"].note(rows, (now - scored_from) / 1e9)
        self._from["decide"].note(rows, (now - decided_from) / 1e9)


def _size(rows: int) -> int:
    return min(SIZES, max(rows, 1).bit_length()) - 1
