"""A guard around an engine: where a model throws, its rows get no score, and the stream moves on.

A batch that throws is halved until the rows that do it stand alone, so that the others keep their scores. A model that throws
at everything is let be for a while: the breaker is open. Then one batch tries it again (half-open), and closes the breaker or
opens it for twice as long. One that takes too long is let be at once, for ten times as long as it took at least, so that it
holds the stream for a tenth of the time at most. What has no score is decided by the policy's fallback, and says so.
"""

import time
from collections.abc import Callable

import numpy as np

from models.engine import Engine, Matrix, TimedOut

MOST_CALLS = 64
FAILURES = 3
REST_SECONDS, MOST_REST_SECONDS = 1.0, 60.0
TELL_SECONDS = 60.0
REST_OF_TIMED_OUT = 10.0


class Guard:
    """Scores by an engine, NaN where it throws. One thread uses it at a time.

    say: told that it fails, once a minute, and when it scores again after a rest, in words and with fields for a log.
    on_failed: told of rows that get no score. failed: how many they are so far.
    """

    def __init__(
        self,
        engine: Engine,
        say: Callable[..., None] = lambda words, **fields: None,
        clock: Callable[[], float] = time.monotonic,
        on_failed: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.failed = 0
        self._engine, self._say, self._clock, self._on_failed = engine, say, clock, on_failed
        self._in_a_row = 0
        self._rest, self._until = REST_SECONDS, 0.0
        self._told = -TELL_SECONDS

    @property
    def resting(self) -> bool:
        """Whether the model is let be, after it failed at all of several batches, or took too long."""
        return self._in_a_row >= FAILURES

    def infer(self, matrix: Matrix) -> Matrix:
        """Scores float32 [n], or [n, k], of a matrix float32 [n, K]; NaN where the engine throws or is let be."""
        if self.resting and self._clock() < self._until:
            self._count(len(matrix))
            return self._none(len(matrix))
        began = self._clock()
        try:
            scores = self._engine.infer(matrix)
        except TimedOut as error:
            self._count(len(matrix))
            self._in_a_row = max(self._in_a_row + 1, FAILURES)
            self._rests(REST_OF_TIMED_OUT * (self._clock() - began))
            self._tell(len(matrix), len(matrix), error)
            return self._none(len(matrix))
        except Exception as error:  # noqa: BLE001 - whatever a model throws, the stream goes on, and says so
            return self._halved(matrix, error)
        if self.resting:
            words = f"scores again; {self.failed} rows had no score so far"
            self._say(f"model {self._engine.spec.name}: {words}", failed=self.failed)
        self._in_a_row, self._rest = 0, REST_SECONDS
        return scores

    def _halved(self, matrix: Matrix, error: Exception) -> Matrix:
        """The scores of what does not throw, in at most MOST_CALLS calls; none is tried again of a model let be."""
        scores = self._none(len(matrix))
        middle = len(matrix) // 2
        left = [(middle, len(matrix)), (0, middle)] if middle and not self.resting else []
        calls, timed_out = MOST_CALLS, False
        while left and calls:
            first, last = left.pop()
            calls, began = calls - 1, self._clock()
            try:
                scores[first:last] = self._engine.infer(matrix[first:last])
            except Exception as found:  # noqa: BLE001 - as above
                error, middle = found, (first + last) // 2
                if isinstance(found, TimedOut):
                    left, timed_out = [], True
                elif last - first > 1:
                    left += [(middle, last), (first, middle)]
        failed = int(np.isnan(scores).reshape(len(scores), -1).any(axis=1).sum())
        self._count(failed)
        if timed_out:
            self._in_a_row = max(self._in_a_row + 1, FAILURES)
            self._rests(REST_OF_TIMED_OUT * (self._clock() - began))
        elif failed == len(matrix):
            self._in_a_row += 1
            if self.resting:
                self._rests()
        else:
            self._in_a_row = 0
        self._tell(failed, len(matrix), error)
        return scores

    def _rests(self, least: float = 0.0) -> None:
        self._until = self._clock() + max(self._rest, least)
        self._rest = min(2 * self._rest, MOST_REST_SECONDS)

    def _tell(self, failed: int, rows: int, error: Exception) -> None:
        if self._clock() - self._told >= TELL_SECONDS:
            self._told = self._clock()
            what = f"no score for {failed} of {rows} rows, the fallback decides"
            fields = {"rows": rows, "failed": failed, "error": type(error).__name__, "resting": self.resting}
            self._say(f"model {self._engine.spec.name}: {what}: {fields['error']}: {error}", level="warning", **fields)

    def _count(self, rows: int) -> None:
        self.failed += rows
        self._on_failed(rows)

    def _none(self, rows: int) -> Matrix:
        return np.full(self._engine.spec.shape(rows), np.nan, np.float32)
