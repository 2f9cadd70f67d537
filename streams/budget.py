"""The time that an event may take from its poll to the hand-over of its decision, and what keeps to it.

What waits for its turn waits in Kafka: a round of polls takes as many rows as are decided in time (`Pace.rows`). A row that
will not make it all the same, since something held the job, is decided and flagged `late`, or has no score and is the
fallback's. Nothing waits for a batch to fill: a job that is busy finds more to decide together when it polls again, and one
that is not has nothing to gain from waiting.
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
FIRST_ROWS, FEWEST_ROWS, MOST_ROWS, MORE = 256, 32, 1 << 20, 1.25
FORGET_SECONDS, PROBE_SECONDS = 10.0, 0.25
SHARE, FULL = 0.7, 0.45
"""Of the budget, that a batch is to take: the rest is for what nobody foresees. Of a round's rows, from which on it is full if
some partition took all it might: what others leave is not always given to it."""


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
    """How long something took lately, by how many rows: powers of two."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples = np.zeros((SIZES, SAMPLES))
        self._count, self._at = [0] * SIZES, [0.0] * SIZES
        self._high = [0.0] * SIZES

    def note(self, rows: int, seconds: float) -> None:
        """So many rows took so many seconds."""
        size, now = _size(rows), self._clock()
        count = self._count[size] if now - self._at[size] <= FORGET_SECONDS else 0
        self._samples[size, count % SAMPLES] = seconds
        self._count[size], self._at[size] = count + 1, now
        if count < ENOUGH or count % ENOUGH == 0:
            some = np.sort(self._samples[size, : min(count + 1, SAMPLES)])
            self._high[size] = float(some[int(HIGH * (len(some) - 1))])

    def of(self, rows: int) -> float:
        """The seconds that so many rows are likely to take, 19 times of 20: by the largest size up to theirs that is known,
        from ENOUGH times, of which one within FORGET_SECONDS. 0.0 where none is: nobody is said to be late on a guess."""
        since = self._clock() - FORGET_SECONDS
        for size in range(_size(rows), -1, -1):
            if self._count[size] >= ENOUGH and self._at[size] >= since:
                return self._high[size]
        return 0.0


class Pace:
    """Knows how many rows a worker's rounds may have, and which rows will be late. Of one thread, but for `forget`.

    The size of a round follows what rounds took, as Clipper's batches do (Crankshaw et al., "Clipper: A Low-Latency Online
    Prediction Serving System", NSDI 2017): a little more while full ones are short enough, down to half once any is not, full
    or not: what has come while the machine stood still is not to be one round that is late, too. A budget that not even
    FEWEST_ROWS keep, ENOUGH rounds one after another, is let be for FORGET_SECONDS: all are late then, and at least as many are
    decided as can be.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self.sheds = budget.late == "shed"
        self._seconds, self._clock = budget.milliseconds / 1e3, clock
        self._forgotten = False
        self._begin()

    def _begin(self) -> None:
        self._from = {"score": Lately(self._clock), "decide": Lately(self._clock)}
        self._rows, self._missed, self._hopeless_until, self._probed = float(FIRST_ROWS), 0, 0.0, -PROBE_SECONDS
        self._slowest: tuple[float, int] | None = None

    def forget(self) -> None:
        """What is known is of another model. Any thread may say so."""
        self._forgotten = True

    def _look(self) -> None:
        if self._forgotten:
            self._forgotten = False
            self._begin()

    def rows(self, limited: bool) -> int:
        """How many rows a round of polls may take. limited: whether a partition took as many as it might in the one before."""
        self._look()
        if self._slowest is not None and self._clock() >= self._hopeless_until:
            self._adapt(*self._slowest, limited)
        self._slowest = None
        return MOST_ROWS if self._clock() < self._hopeless_until else int(self._rows)

    def _adapt(self, took: float, polled: int, limited: bool) -> None:
        aim, limit = SHARE * self._seconds, self._rows
        full = limited and polled >= FULL * limit
        if took > aim:
            self._rows = max(float(FEWEST_ROWS), limit * 0.5, min(polled, limit) * aim / took)
        elif full:
            self._rows = min(limit * MORE, float(MOST_ROWS))
        if full:
            self._missed = self._missed + 1 if took > self._seconds and limit <= FEWEST_ROWS else 0
        if self._missed >= ENOUGH:
            self._hopeless_until, self._rows, self._missed = self._clock() + FORGET_SECONDS, float(FIRST_ROWS), 0

    def late(self, step: str, polled_at: I64, now: int) -> npt.NDArray[np.bool_]:
        """Which of n rows will not make it that are about to go through a step and all that follow: bool [n].

        polled_at, now: ns. Where all would be shed that come to be scored, they are scored now and then, to see.
        """
        self._look()
        left = self._seconds - self._from[step].of(len(polled_at))
        late = np.asarray(now - polled_at > 1e9 * left)
        if step == "score" and late.all() and self._clock() - self._probed >= PROBE_SECONDS:
            self._probed = self._clock()
            return np.zeros_like(late)
        return late

    def took(self, polled: int, rows: int, polled_at: int, scored_from: int, decided_from: int, now: int) -> None:
        """A batch is handed over: of so many rows that were polled and so many that were decided; times in ns. Not to be told
        of one of which rows were shed or got no score of the model: it tells nothing."""
        self._from["score"].note(rows, (now - scored_from) / 1e9)
        self._from["decide"].note(rows, (now - decided_from) / 1e9)
        took = (now - polled_at) / 1e9
        if self._slowest is None or took > self._slowest[0]:
            self._slowest = took, polled


def _size(rows: int) -> int:
    return min(SIZES, max(rows, 1).bit_length()) - 1
