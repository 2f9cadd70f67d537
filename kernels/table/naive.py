"""The table as a dict: the definition."""

import math
from collections.abc import Iterable


def find(table: dict[int, int], hashes: Iterable[int]) -> list[int]:
    """The slot of each hash, -1 where absent or null (0)."""
    return [table.get(h, -1) if h else -1 for h in hashes]


def insert(table: dict[int, int], hashes: Iterable[int]) -> list[int]:
    """The slot of each hash, given the next free one where absent; -1 for null (0)."""
    return [table.setdefault(h, len(table)) if h else -1 for h in hashes]


def take(
    row: tuple[list[float], int] | None, time: int, ttl: int, features: int
) -> tuple[list[float], tuple[bool, bool, bool]]:
    """What an event at `time` gets of a row (values, its time), or of none: values; is it absent, too old, later than it?"""
    nothing = [math.nan] * features
    if row is None:
        return nothing, (True, False, False)
    values, at = row
    if ttl and time - at > ttl:
        return nothing, (False, True, False)
    return values, (False, False, at > time)
