"""The rows as a dict per view: the definition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Row:
    """values; when they are from (None: there is no such entity); until when they need not be read again."""

    values: list[float]
    time: int | None
    until: int


@dataclass(frozen=True)
class Given:
    """What an event is given of a view, whether it is missing, stale, future, unread, refused, and when the row that is held is
    from."""

    values: list[float]
    flags: tuple[bool, bool, bool, bool, bool]
    time: int | None = None


def give(
    row: Row | None, known: bool, time: int, now: int, *, ttl: int, fill: Sequence[float], refuses: bool, wall: bool
) -> Given:
    """What an event at `time` is given at `now` of a row, or of none; known: is there an entity to ask for at all?

    A row is stale when it is older than ttl (0: never), by the clock on the wall or the event's own; unread when it should have
    been read again, or never was. Where that leaves nothing to give, `fill` is given, or, with `refuses`, the event is refused.
    """
    nothing = [math.nan] * len(fill)
    if not known:
        return Given(nothing, (True, False, False, False, False))
    if row is None:
        return Given(list(fill), (True, False, False, True, refuses))
    unread = now > row.until
    if row.time is None:
        return Given(list(fill) if unread else nothing, (True, False, False, unread, unread and refuses))
    if ttl and (now if wall else time) - row.time > ttl:
        return Given(list(fill), (False, True, False, unread, refuses), row.time)
    return Given(row.values, (False, False, row.time > time, unread, False), row.time)
