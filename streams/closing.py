"""Leaves the cores to others while an epoch is being closed.

A source of Bytewax's whose epoch has ended is not asked for more before all workers are through with that epoch; until then its
worker asks, step after step without a pause, whether they are, and takes a whole core for it, often from the worker that it
waits for. No method of ours is called meanwhile but `on_notify`, of a step that asked for it. So one asks, where there are
several workers: it sleeps a little whenever its worker has found nothing to do. It does so from the first batch of a life on.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from bytewax.operators import StatefulBatchLogic

REST_SECONDS, NOTHING_SECONDS = 0.0001, 0.0003
"""How long it sleeps; and the time on a core in which a worker has gone through all its steps and found nothing to do."""
SOON = timedelta(milliseconds=2)


class Closing:
    """Whether this worker's partitions all wait for an epoch to be closed, and the sleep of a worker whose do."""

    def __init__(
        self,
        epoch_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """worked: the seconds of a core that this thread has had."""
        self._going, self._waiting = set[str](), set[str]()
        self._epoch = timedelta(seconds=epoch_seconds)
        self._sleep, self._worked, self._clock = sleep, worked, clock
        self._ended_at = clock()
        self._rested_at = 0.0

    def ended(self, partition: str) -> None:
        """A partition's epoch has: it waits, unless it has left."""
        if partition in self._going:
            self._going.discard(partition)
            self._waiting.add(partition)
            self._ended_at = self._clock()

    def goes_on(self, partition: str) -> None:
        """It does not wait, or not any more."""
        self._waiting.discard(partition)
        self._going.add(partition)

    def left(self, partition: str) -> None:
        """The partition has left: it neither goes on nor waits."""
        self._going.discard(partition)

    def next_rest(self) -> datetime:
        """When to ask for the next: when the epoch should have ended; while all wait a time that has passed, which is the next
        step to Bytewax."""
        return self._ended_at if self._all_wait else max(self._ended_at + self._epoch, self._clock() + SOON)

    def rest(self) -> None:
        """Sleeps if all wait and nothing was done since it last did."""
        if not self._all_wait:
            return
        if self._worked() - self._rested_at < NOTHING_SECONDS:
            self._sleep(REST_SECONDS)
        self._rested_at = self._worked()

    @property
    def _all_wait(self) -> bool:
        return bool(self._waiting) and not self._going


class Rest(StatefulBatchLogic[None, None, None]):
    """The step that sleeps: one of a worker's, under the key of its first partition, which every epoch with a batch awakes."""

    def __init__(self, closing: Closing) -> None:
        self._closing, self._asks = closing, False

    def on_batch(self, values: list[None]) -> tuple[list[None], bool]:
        self._asks = True
        return [], StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[list[None], bool]:
        self._closing.rest()
        return [], StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        return self._closing.next_rest() if self._asks else None

    def snapshot(self) -> None:
        return None
