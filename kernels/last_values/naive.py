"""Last values by going through all that was seen: the definition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event of a stream, in arrival order: `slot` its entity (-1: none), `value` None if it does not update."""

    slot: int
    time: int
    value: float | None
    reads: bool


def last(events: Sequence[Event], within: int) -> list[float]:
    """The newest value for each event that reads (among equal times the one that came later), nan if none or too old."""
    best: dict[int, tuple[int, float]] = {}
    out = []
    for event in events:
        if event.reads:
            time, value = best.get(event.slot, (event.time + 1, math.nan))
            out.append(value if event.slot >= 0 and 0 <= event.time - time <= within else math.nan)
        if event.slot >= 0 and event.value is not None and event.time >= best.get(event.slot, (event.time, 0.0))[0]:
            best[event.slot] = (event.time, event.value)
    return out
