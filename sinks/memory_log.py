"""A transactional log in memory, for tests and for trying out exactly-once delivery without a broker.

It does what Kafka does to a lane (sinks/staged.py): whoever opens it shuts out those before, a commit may be lost, may happen
without an answer, or may arrive late, and is refused where the lane has another owner by then.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from sinks.messages import Messages
from sinks.staged import FencedError, InDoubtError

Fate = Literal["done", "lost", "unanswered", "late", "unreachable"]


class MemoryLog:
    """What is committed, and who may commit.

    topics: messages (key, value) of each topic in order. transactions: how many were committed. late: commits that are still
    on their way; `arrive` lets the first of them arrive.
    """

    def __init__(self) -> None:
        self.topics: dict[str, list[tuple[bytes | None, bytes]]] = {}
        self.transactions = 0
        self.late: list[Callable[[], None]] = []
        self._owners: dict[str, int] = {}
        self._progress: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()

    def arrive(self) -> None:
        """The commit that is longest on its way arrives, and happens unless the lane has another owner."""
        self.late.pop(0)()

    def values(self, topic: str) -> list[bytes]:
        """The values of a topic, in order."""
        with self._lock:
            return [value for _, value in self.topics.get(topic, [])]

    def take_over(self, lane: str) -> tuple[int, dict[str, int]]:
        """A new owner's number, and the lane's progress."""
        with self._lock:
            self._owners[lane] = self._owners.get(lane, 0) + 1
            return self._owners[lane], dict(self._progress.get(lane, {}))

    def owns(self, lane: str, owner: int) -> bool:
        """Whether this is the lane's owner."""
        return self._owners.get(lane) == owner

    def happen(self, lane: str, owner: int, messages: Sequence[Messages], progress: Mapping[str, int]) -> bool:
        """Commits, unless the lane has another owner; returns whether it did."""
        with self._lock:
            if not self.owns(lane, owner):
                return False
            for each in messages:
                self.topics.setdefault(each.topic, []).extend(zip(each.keys, each.values, strict=True))
            self._progress[lane] = dict(progress)
            self.transactions += 1
            return True


class MemoryLane:
    """One writer of a lane (sinks/staged.py: Log). fate: asked at each `open` and `commit` what becomes of it."""

    def __init__(self, log: MemoryLog, lane: str, fate: Callable[[str], Fate] = lambda call: "done") -> None:
        self._log, self._lane, self._fate = log, lane, fate
        self._owner = 0

    def open(self) -> dict[str, int]:
        """See Log."""
        if self._fate("open") == "unreachable":
            raise InDoubtError("told not to answer")
        self._owner, progress = self._log.take_over(self._lane)
        return progress

    def commit(self, messages: Sequence[Messages], progress: Mapping[str, int]) -> None:
        """See Log."""
        owner, told = self._owner, dict(progress)
        fate = self._fate("commit")
        if not self._log.owns(self._lane, owner):
            raise FencedError(self._lane, "it has another owner")
        if fate == "late":
            self._log.late.append(lambda: (self._log.happen(self._lane, owner, messages, told), None)[1])
        elif fate in ("done", "unanswered"):
            self._log.happen(self._lane, owner, messages, told)
        if fate != "done":
            raise InDoubtError("told not to answer")

    def close(self) -> None:
        """See Log."""
