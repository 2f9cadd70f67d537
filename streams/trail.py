"""How far a job's workers are, written down so that it outlives them, for who starts them again (ops/restart.py).

A file that all workers of a machine map: for each partition the offset from which on nothing is durable, and the offset up to
which was polled. What lies between is what a worker that died may have died of. Writing takes two stores into memory, and the
file is whole whatever kills the process.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

from streams.routing import WORKERS_MULTIPLE

Ranges = Mapping[int, tuple[int, int]]
"""Offsets [first, until) of partitions."""

ALL = 1 << 60
_INT = 8


class Trail:
    """The file, and what is to be read with care.

    suspects: where they are, a partition is polled by itself, `piece` messages at a time, each an epoch of its own, until all
    of them are durable: what is between durable and polled then is that piece.
    """

    def __init__(self, file: Path, suspects: Ranges | None = None, piece: int = ALL) -> None:
        size = WORKERS_MULTIPLE * 2 * _INT
        with file.open("a+b") as opened:
            opened.truncate(size)
            self._map = mmap.mmap(opened.fileno(), size)
        self._at = memoryview(self._map).cast("q")
        self._left = {partition: until for partition, (_, until) in sorted((suspects or {}).items())}
        self._piece = piece

    def begins(self, partition: int, position: int) -> None:
        """The partition is read from here."""
        self._at[2 * partition] = self._at[2 * partition + 1] = position

    def polled(self, partition: int, first: int, until: int) -> None:
        """It was polled up to `until`; `first` is told of messages that are read with care."""
        if self._left:
            self._at[2 * partition] = first
        self._at[2 * partition + 1] = until

    def durable(self, partition: int, position: int) -> None:
        """What is before this position is durable."""
        self._at[2 * partition] = position

    def ended(self, partition: int) -> None:
        """Its log ends here: what was suspected of it is not there any more."""
        if partition in self._left:
            self._at[2 * partition] = self._at[2 * partition + 1] = self._left[partition]

    def most(self, partition: int, begins_epoch: bool) -> int:
        """How many messages of a partition may be polled now; 0: none, as others have to be durable first."""
        while self._left:
            suspect, until = next(iter(self._left.items()))
            if self._at[2 * suspect] < until:
                return self._piece if suspect == partition and begins_epoch else 0
            del self._left[suspect]
        return ALL

    @property
    def careful(self) -> bool:
        """Whether suspects are left."""
        return bool(self._left)

    def worked(self) -> Ranges:
        """What was polled and is not durable."""
        pairs = ((p, self._at[2 * p], self._at[2 * p + 1]) for p in range(WORKERS_MULTIPLE))
        return {partition: (first, until) for partition, first, until in pairs if until > first}

    def past(self, ranges: Ranges) -> bool:
        """Whether all of these are durable."""
        return all(self._at[2 * partition] >= until for partition, (_, until) in ranges.items())

    def safe(self) -> int:
        """The sum of all durable positions: grows where the job goes on."""
        return sum(self._at[0 : 2 * WORKERS_MULTIPLE : 2])

    def clear(self) -> None:
        """Nothing is being worked on."""
        for partition in range(WORKERS_MULTIPLE):
            self._at[2 * partition + 1] = self._at[2 * partition]
