"""A worker's lanes (sinks/staged.py), committed by threads beside the dataflow's."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sinks.staged import Lane, Log, Stage

THREADS = 4
EPOCHS_BEHIND = 3


class Outbox:
    """Lanes by the number of their shard. Used by the dataflow's thread alone.

    opened: what a lane is committed to. shards: those whose lanes are opened at once, since that takes a while; others are
    when they are first written to. Raises DeliveryError.
    """

    def __init__(
        self,
        opened: Callable[[int], Log],
        shards: Iterable[int] = (),
        *,
        at: Callable[[str], None] = lambda point: None,
        epochs_behind: int = EPOCHS_BEHIND,
    ) -> None:
        self._opened, self._at, self._epochs_behind = opened, at, epochs_behind
        self._threads = ThreadPoolExecutor(THREADS, "commit")
        self._epochs: deque[list[Future[None]]] = deque()
        self._begun = self._ended = 0
        self._lanes = {shard: self._lane(shard) for shard in shards}
        for opening in [self._threads.submit(lane.open) for lane in self._lanes.values()]:
            opening.result()

    def stage(self, stream: str, shard: int, state: Mapping[str, Any] | None) -> Stage:
        """A stream of a shard, going on from its last durable snapshot; what is pending in it is committed first."""
        lane = self._lanes.get(shard)
        if lane is None:
            lane = self._lane(shard)
            lane.open()
            self._lanes[shard] = lane
        stage = Stage(lane, stream, state)
        lane.commit()
        return stage

    def durable(self) -> int:
        """All snapshots taken so far are durable: they are committed from here on. Returns a number for `committed`.

        Waits where commits are several epochs behind. Raises what a commit raised.
        """
        begun = [self._threads.submit(lane.commit) for lane in self._lanes.values() if lane.durable()]
        if begun:  # each partition of the source asks, the first of an epoch for all
            self._epochs.append(begun)
            self._begun += 1
        while len(self._epochs) > self._epochs_behind:
            self._await()
        return self._begun

    def committed(self, wait: bool = False) -> int:
        """The last number of `durable` up to which all is committed; `wait` until that is all. Raises what a commit raised."""
        while self._epochs and (wait or all(future.done() for future in self._epochs[0])):
            self._await()
        return self._ended

    def finish(self) -> None:
        """Commits all, when the dataflow has ended in order and so every snapshot is durable. Raises what a commit raised."""
        self.durable()
        self.committed(wait=True)

    def close(self) -> None:
        """Lets go of the lanes; what is not committed is not. Raises nothing."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes.values():
            lane.close()

    def _lane(self, shard: int) -> Lane:
        return Lane(f"lane {shard}", self._opened(shard), at=self._at)

    def _await(self) -> None:
        for future in self._epochs[0]:
            if (error := future.exception()) is not None:
                raise error
        self._epochs.popleft()
        self._ended += 1
