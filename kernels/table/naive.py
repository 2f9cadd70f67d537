"""The table as a dict: the definition."""

from collections.abc import Iterable


def find(table: dict[int, int], hashes: Iterable[int]) -> list[int]:
    """The slot of each hash, -1 where absent or null (0)."""
    return [table.get(h, -1) if h else -1 for h in hashes]


def insert(table: dict[int, int], hashes: Iterable[int]) -> list[int]:
    """The slot of each hash, given the next free one where absent; -1 for null (0)."""
    return [table.setdefault(h, len(table)) if h else -1 for h in hashes]
