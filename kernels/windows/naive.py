"""Windows and last values by brute force over everything seen: the definition.

An update in tile T stays alive while T > newest - tiles, where newest is the newest tile that its entity was updated in;
an update that is not alive when it comes is late and dropped. A read at time t sees what is alive then, in the tiles
from floor(t / tile) - (tiles - 1) to floor(t / tile).
"""

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


def window(events: Sequence[Event], tile: int, tiles: int) -> tuple[list[tuple[int, float, float, float]], int]:
    """(count, sum, min, max) for each event that reads, and the number of late updates. Empty: (0, 0, nan, nan)."""
    kept: list[tuple[int, int, float]] = []
    out, late = [], 0
    for event in events:
        now = event.time // tile
        newest = max((t for slot, t, _ in kept if slot == event.slot), default=None)
        if event.reads:
            seen = [
                value
                for slot, t, value in kept
                if slot == event.slot >= 0 and newest is not None and t > newest - tiles and now - tiles < t <= now
            ]
            out.append((len(seen), math.fsum(seen), min(seen, default=math.nan), max(seen, default=math.nan)))
        if event.slot >= 0 and event.value is not None:
            if newest is not None and now <= newest - tiles:
                late += 1
            else:
                kept.append((event.slot, now, event.value))
    return out, late


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
