"""Leaves the cores to others while an epoch is being closed.

A source of Bytewax's whose epoch has ended is not asked for more before all workers are through with that epoch; until then its
worker asks, step after step without a pause, whether they are, and takes a whole core for it, often from the worker that it
waits for. No step of ours is called meanwhile but one that has asked to be notified. So one does: it sleeps a little whenever
its worker has done nothing since it last slept.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

REST_SECONDS, NOTHING_SECONDS = 0.0003, 0.00015
"""How long it sleeps; and the time on a core in which a worker has gone through all its steps and found nothing to do."""
SOON = timedelta(milliseconds=2)


class Closing:
    """Whether this worker's partitions all wait for an epoch to be closed. None does where it works alone: nobody has to be
    waited for there."""

    def __init__(
        self,
        epoch_seconds: float,
        workers: int,
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """worked: the seconds of a core that this thread has had."""
        self._going, self._waiting = set[str](), set[str]()
        self._epoch = timedelta(seconds=epoch_seconds)
        self._alone = workers == 1
        self._sleep, self._worked, self._clock = sleep, worked, clock
        self._ended_at = clock()
        self._rested_at = 0.0

    def ended(self, partition: str) -> None:
        """A partition's epoch has: it waits, unless it has left."""
        if partition not in self._going:
            return
        self._going.discard(partition)
        self._waiting.add(partition)
        self._ended_at = self._clock()

    def goes_on(self, partition: str) -> None:
        """It does not wait, or not any more."""
        self._waiting.discard(partition)
        self._going.add(partition)

    def left(self, partition: str) -> None:
        """It has."""
        self._going.discard(partition)

    def next(self) -> datetime | None:
        """When to ask for a rest, None if never: while all wait in the very next step, which is what a time that has passed
        means to Bytewax."""
        if self._alone:
            return None
        return self._ended_at if self._all_wait else max(self._ended_at + self._epoch, self._clock() + SOON)

    def rest(self) -> None:
        """Sleeps if there is nothing to do."""
        if not self._all_wait:
            return
        if self._worked() - self._rested_at < NOTHING_SECONDS:
            self._sleep(REST_SECONDS)
        self._rested_at = self._worked()

    @property
    def _all_wait(self) -> bool:
        return bool(self._waiting) and not self._going
