"""Finds how far back a topic has to be read so that the state of streaming features is whole again.

Times are those of the events, which may be quite other than the broker's: the log is bisected with the topic's decoder. That
takes the log to be in order of time to within `slack`: no message comes after one that is more than that later.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.memo import microseconds
from features.state import retention
from features.streaming import Group
from streams.decode import Decoder
from streams.log import Log
from streams.replays import own
from streams.start import RecoveryError, Start

SECOND = 1_000_000
CLOSE = 256
"""So near, in messages, a place in the log is found."""


@dataclass(frozen=True)
class Timeline:
    """A log, and how the time of its messages is told. by_append: it is when the broker appended them."""

    log: Log
    decoder: Decoder
    time: str
    by_append: bool = False

    def first(self, partition: int, offset: int, end: int | None = None, since: int | None = None) -> tuple[int, int] | None:
        """Offset and time (µs) of the first good message from `offset` on and before `end`, no earlier than `since`; None if
        there is none. Replays are passed over: they come out of the order of time."""
        while end is None or offset < end:
            raw = self.log.read(partition, offset)
            if not raw.num_rows:
                return None
            rows = own(self.decoder(raw).rows)
            times = microseconds(rows.column(self.time))
            for row in np.flatnonzero(times >= since)[:1].tolist() if since is not None else range(rows.num_rows)[:1]:
                found = rows.column("_offset")[row].as_py()
                return (found, int(times[row])) if end is None or found < end else None
            offset = raw.column("_offset")[-1].as_py() + 1
        return None

    def last(self, partition: int, end: int) -> int | None:
        """The time (µs) of about the last good message before `end`."""
        low, back = self.log.bounds(partition)[0], 1
        while low < end:
            found = self.first(partition, max(low, end - back), end)
            if found or end - back <= low:
                return found and found[1]
            back *= 4
        return None

    def place(self, partition: int, time: int, end: int) -> int:
        """An offset of at most `end` before which nothing is later than `time` (µs) plus the slack, and at which, or hardly
        further on, something is later."""
        low, high = self.log.bounds(partition)[0], end
        if self.by_append:  # an embedded broker may say 0, so that the rest is bisected
            low = min(end, max(low, self.log.since(partition, time // 1000)))
        while high - low > CLOSE:
            middle = (low + high) // 2
            found = self.first(partition, middle, high)
            if found is None or found[1] > time:
                high = middle
            else:
                low = found[0]
        return min(low, end)

    def since(self, partition: int, time: int) -> int:
        """The offset at which the log comes to `time` (µs); its end, if it does not."""
        end = self.log.bounds(partition)[1]
        found = self.first(partition, self.place(partition, time - 1, end), end, since=time)
        return found[0] if found else end


def resume(timeline: Timeline, groups: Sequence[Group], partitions: int, decide: Mapping[int, int], slack: int) -> Start:
    """Where to read and where to decide, so that at `decide` (0 where none is said) the state holds all that its features see.

    slack: µs. Partitions that are read to their end do not say how far back to go, unless all are. Raises RecoveryError for
    positions that the log does not have.
    """
    positions = {partition: _there(timeline, partition, decide.get(partition, 0)) for partition in range(partitions)}
    if not groups:
        return Start(positions, positions)
    ahead = [found[1] for found in (timeline.first(*place) for place in positions.items()) if found]
    behind = [] if ahead else [time for time in (timeline.last(*place) for place in positions.items()) if time is not None]
    if not ahead and not behind:
        return Start(positions, positions)
    earliest = (min(ahead) if ahead else max(behind)) - slack - max(map(retention, groups)) * SECOND
    read = {partition: timeline.place(partition, earliest - slack, end) for partition, end in positions.items()}
    return Start(read, positions, _begins(timeline, read, earliest))


def _there(timeline: Timeline, partition: int, position: int) -> int:
    low, end = timeline.log.bounds(partition)
    if 0 < position < low:
        raise RecoveryError(
            f"partition {partition}: messages {position} to {low - 1} were deleted from the topic before they were decided: "
            "--from earliest goes on with what is there"
        )
    if position > end:
        raise RecoveryError(
            f"partition {partition}: expected a position up to {end}, the end of the topic, got {position}: another topic "
            "of that name? Say where to begin with --from earliest, latest or TIME"
        )
    return max(position, low)


def _begins(timeline: Timeline, read: Mapping[int, int], earliest: int) -> int | None:
    """From when on the state will hold everything; None if all there ever was is read."""
    found = []
    for partition, offset in read.items():
        low = timeline.log.bounds(partition)[0]
        if offset > low:
            found.append(earliest)
        elif low > 0 and (first := timeline.first(partition, low)):
            found.append(max(earliest, first[1]))
    return max(found, default=None)
