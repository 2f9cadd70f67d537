"""How a worker's partitions of the source take turns, tell how far they are and leave, wherever their messages come from."""

import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
from bytewax.inputs import StatefulSourcePartition
from confluent_kafka import Message

from streams.closing import Closing
from streams.routing import shard_number
from streams.shards import FIRST_EPOCH, page_of
from streams.trail import ALL, Trail

PUBLISH_SECONDS, AGAIN_SECONDS = 1.0, 3600.0
"""How often a position is published at most; and at least, since Kafka forgets one that was not for days."""
WAIT_SECONDS = 0.001
"""For which a poll of a worker that has nobody beside it waits: the client wakes it with the first message, while a look each
few hundred microseconds finds it later, and costs more."""
LOOK_AGAIN = timedelta(microseconds=100)
IDLE, LONGEST_IDLE = timedelta(microseconds=300), timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Polled:
    """One poll of one partition: its messages (of which streams/rounds.py makes a raw batch), how many they are, perhaps none,
    the offset of the last, when they were polled (ns), whether they reach the end of the log, the page of the state that is
    snapshotted in their epoch if they are the partition's first of it, else -1, and, where some of them only feed the state,
    the first offset that is decided on."""

    messages: list[Message] | pa.RecordBatch
    rows: int
    last: int
    polled_at: int
    at_end: bool
    page: int = -1
    decide_from: int = 0


class Gate:
    """Lets a worker's partitions poll again when what they brought is decided.

    Without it a source is asked for more while earlier batches are still between two steps, and a moderate rate becomes many
    batches of one row, each of which costs as much as twenty together. What waits is still in Kafka. Partitions poll in
    rounds, each once, so that all of a worker's get their turn and are decided together.
    """

    def __init__(
        self,
        most: int = 1,
        patience: float = 0.0,
        rows: Callable[[bool], int] = lambda limited: ALL,
        moved: Callable[[], None] = lambda: None,
        closing: Closing | None = None,
    ) -> None:
        """most: batches on their way at which no new round begins; 0: never waits. patience: the seconds that a poll may wait
        for messages, for a worker that nobody waits for meanwhile. rows: asked at each round how many it may take, told
        whether a partition took as many as it might in the one before. moved: told of each round that begins: the worker moves,
        or has nothing to do. closing: told which partitions wait for an epoch to
        be closed.
        """
        self.partitions, self.home = 0, ""
        """How many poll by it, and the first of them."""
        self.closing = closing or Closing(0.0)
        self._rows, self._moved = rows, moved
        self._left, self._to_poll, self._busy, self._had = ALL, 0, 0, 0
        self._share, self._limited = ALL, False
        self.patience = patience
        self._unwritten = 0
        self._first = True
        self._look_at = datetime.min.replace(tzinfo=UTC)
        self._most = most
        self._on_their_way = 0
        self._round = 0

    def opens(self, last: int) -> int:
        """The round in which a partition may poll that last did in round `last`, 0 if it has to wait."""
        if last == self._round and (self._on_their_way < self._most or not self._most):
            self._round += 1
            self._first = True
            self._moved()
            self._left, self._to_poll, self._busy, self._had = self._rows(self._limited), self.partitions, self._had, 0
            self._limited = False
        return self._round if last < self._round else 0

    def share(self) -> int:
        """How many rows the partition that polls now may take: as many as each that still is to poll in this round, counting
        as many as had any in the one before, and one more."""
        self._share = max(1, self._left // max(1, min(self._to_poll, self._busy + 1)))
        self._to_poll -= 1
        return self._share

    def took(self, rows: int) -> None:
        """It took so many."""
        self._limited = self._limited or rows >= self._share
        self._left -= rows
        self._had += 1

    def wait(self) -> float:
        """The seconds that the next poll may wait for messages: the first of a round, for all of them, and none while something
        is on its way that would wait with it."""
        first, self._first = self._first, False
        return self.patience if first and self.idle else 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        return not self._on_their_way and not self._unwritten

    def look_again(self, after: timedelta) -> datetime:
        """When a partition that waits or had nothing looks again: all that ask meanwhile at once, or they would be decided in
        small groups instead of together."""
        now = datetime.now(UTC)
        if self._look_at <= now:
            self._look_at = now + after
        return self._look_at

    def begun(self) -> None:
        """A batch is on its way."""
        self._on_their_way += 1

    def done(self, batches: int) -> None:
        """So many are decided, or have nothing to decide."""
        self._on_their_way = max(0, self._on_their_way - batches)

    def answered(self, items: int) -> None:
        """So many items are on their way to the sink."""
        self._unwritten += items

    def written(self, items: int) -> None:
        """So many have come to it."""
        self._unwritten -= items


@dataclass
class Beginning:
    """Where a source begins and what it tells of its progress: see streams/start.py.

    epoch: the first of this run. read, decide: the first offset of a partition that is read, where there is no state, and that
    is decided on. undecided: the first offset of a partition that is read and waits to be decided, if any does, at the end of
    the last epoch. left: told the partition and how many messages before `decide` are still to be read. publishes: whether safe
    positions are committed to the consumer group. failed: told that such a commit was refused. durable: told that an epoch is;
    returns a number, which `committed` (wait for it?) reaches once all that came of it is visible. reading: the partitions that
    are not at their end. lags: by partition, what tells how many messages are after what was decided (None: not known yet).
    trail: where it is written down how far each partition is.
    """

    epoch: int = FIRST_EPOCH
    read: Mapping[int, int] = field(default_factory=dict)
    decide: Mapping[int, int] = field(default_factory=dict)
    undecided: dict[int, int] = field(default_factory=dict)
    left: Callable[[int, int], None] = lambda partition, left: None
    publishes: bool = False
    failed: Callable[[], None] = lambda: None
    durable: Callable[[], int] = lambda: 0
    committed: Callable[[bool], int] = lambda wait: 0
    reading: set[int] = field(default_factory=set)
    lags: dict[int, Callable[[], int | None]] = field(default_factory=dict)
    trail: Trail | None = None


class Partition(StatefulSourcePartition[tuple[str, Polled], int]):
    """Polls with `poll` from `position` on; leaves at the end of the log where `until_end`, or on `stop`: emits nothing more,
    lets an epoch pass, so that all that was emitted is delivered and snapshotted, and ends.

    The epoch of a snapshot is durable when Bytewax asks this partition for its next batch, and its position safe when what came
    of it is visible, too. It is published once a second at most, once an hour at least, and at the end.
    """

    def __init__(
        self, name: str, position: int, stop: threading.Event, until_end: bool, gate: Gate, beginning: Beginning
    ) -> None:
        self._name = name
        self._number = shard_number(name)
        self._beginning = beginning
        self._decide_from = beginning.decide.get(self._number, 0)
        beginning.reading.add(self._number)
        self._snapshotted: int | None = None
        self._coming: deque[tuple[int, int]] = deque()
        self._safe = self._published = -1
        self._publish_at = self._again_at = 0.0
        if position < self._decide_from:
            beginning.left(self._number, self._decide_from - position)
        self._gate = gate
        gate.partitions += 1
        gate.home = gate.home or name
        self._round = 0
        self._waits = self._idle = False
        self._waited_from: datetime | None = None
        self._position = self._decided = position
        beginning.lags[self._number] = self.lag
        self._stop = stop
        self._until_end = until_end
        self._was_at_end = False
        self._snapshots = 0
        self._begins_epoch = True
        self._leave_after: int | None = None
        self._most = ALL
        self._trail = beginning.trail
        if self._trail is not None:
            self._trail.begins(self._number, position)

    @abstractmethod
    def poll(self, wait: float = 0.0) -> Polled | None:
        """What came since the last poll, `_most` messages at most; None if nothing did. Waits for messages of any partition, so
        many seconds, where there are none at all."""

    @abstractmethod
    def ahead(self) -> int | None:
        """How many messages the log has after those that were polled; None where that is not known. Any thread may ask."""

    @abstractmethod
    def publish(self, position: int, wait: bool) -> None:
        """Tells others the safe position, which must not hold the stream unless it is to `wait`. Raises nothing."""

    def lag(self) -> int | None:
        """How many messages are after what was decided: in the log, or on their way. None where that is not known. Any thread
        may ask."""
        decided = min(self._decided, self._beginning.undecided.get(self._number, self._decided))
        ahead = self.ahead()
        return None if ahead is None else max(0, ahead + self._position - max(decided, self._decide_from))

    def _durable(self, leaving: bool = False) -> None:
        """The epoch of the last snapshot is durable."""
        if self._snapshotted is not None:
            safe = min(self._snapshotted, self._beginning.undecided.get(self._number, self._snapshotted))
            safe = max(safe, self._decide_from)  # below it all is decided, though it is read again
            self._coming.append((self._beginning.durable(), safe))
            if self._trail is not None:
                self._trail.durable(self._number, self._snapshotted)
            self._snapshotted = None
        if self._coming:
            committed = self._beginning.committed(leaving)
            while self._coming and self._coming[0][0] <= committed:
                self._safe = self._coming.popleft()[1]
        if self._safe >= 0 and self._beginning.publishes:
            now = time.monotonic()
            if now >= self._again_at or (self._safe > self._published and (leaving or now >= self._publish_at)):
                self._publish_at, self._again_at = now + PUBLISH_SECONDS, now + AGAIN_SECONDS
                self._published = self._safe
                self.publish(self._safe, leaving)

    def next_batch(self) -> list[tuple[str, Polled]]:
        self._gate.closing.goes_on(self._name)
        self._durable()
        self._waits = self._idle = False
        self._waited_from = None
        if self._stop.is_set() or (self._until_end and self._was_at_end):
            if self._leave_after is None:
                self._leave_after = self._snapshots + 1
            if self._until_end or self._snapshots >= self._leave_after:
                self._durable(leaving=True)
                self._beginning.reading.discard(self._number)
                self._beginning.lags.pop(self._number, None)
                self._gate.partitions -= 1
                self._gate.closing.left(self._name)
                raise StopIteration
            return []
        most = ALL if self._trail is None else self._trail.most(self._number, self._begins_epoch)
        opened = self._gate.opens(self._round) if most else 0
        self._waits = not opened
        if self._waits:
            return []
        self._round, self._decided = opened, self._position
        self._most = min(most, self._gate.share())
        wait, asked = self._gate.wait(), datetime.now(UTC)
        polled = self.poll(wait)
        self._idle = polled is None
        if wait and self._idle and datetime.now(UTC) - asked > timedelta(seconds=wait / 2):
            self._waited_from = asked
        if self._trail is not None and polled is not None:
            self._note(self._trail, polled)
        if polled is None or (polled.rows == 0 and polled.at_end == self._was_at_end):
            return []
        self._was_at_end = polled.at_end
        if polled.rows:
            self._gate.took(polled.rows)
            if self._position < self._decide_from:
                polled = replace(polled, decide_from=self._decide_from)
                self._beginning.left(self._number, 0 if polled.at_end else max(0, self._decide_from - polled.last - 1))
            self._position = polled.last + 1
        if self._begins_epoch:
            self._begins_epoch = False
            polled = replace(polled, page=page_of(self._beginning.epoch + self._snapshots))
        self._gate.begun()
        return [(self._name, polled)]

    @staticmethod
    def _first(polled: Polled) -> int:
        messages = polled.messages
        return messages.column("_offset")[0].as_py() if isinstance(messages, pa.RecordBatch) else messages[0].offset()

    def _note(self, trail: Trail, polled: Polled) -> None:
        if polled.rows:
            trail.polled(self._number, self._first(polled) if trail.careful else 0, polled.last + 1)
        elif polled.at_end:
            trail.ended(self._number)

    def next_awake(self) -> datetime | None:
        if self._waited_from:
            return self._waited_from  # the poll was the pause
        if self._waits or (self._idle and self._gate.patience):
            return self._gate.look_again(LOOK_AGAIN)
        return self._gate.look_again(min(self._gate.partitions * IDLE, LONGEST_IDLE)) if self._idle else None

    def snapshot(self) -> int:
        self._snapshots += 1
        self._begins_epoch = True
        self._snapshotted = self._position
        self._gate.closing.ended(self._name)
        return self._position
