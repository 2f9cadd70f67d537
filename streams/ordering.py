"""Event order: a worker holds rows until every partition that is not at the end of its log has passed their time.

Exact on a topic written before the start, whatever the number of partitions and workers; live it waits only for
partitions with a backlog. Rows of one time are ordered by the topic's ties, then by partition and offset.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.streaming import Cut, joined
from streams.wire import arrays_from_ipc, arrays_to_ipc

I64 = npt.NDArray[np.int64]
NEVER = -(2**62)
ALWAYS = 2**62


@dataclass(frozen=True)
class Released:
    """Rows of one group in event order, and the partition and sequence [n] of the batch that each came from."""

    cut: Cut
    partition: I64
    sequence: I64

    def origins(self) -> Iterator[tuple[int, int, I64]]:
        """(partition, sequence, rows among those that read) for each batch that has such rows here."""
        reads = self.cut.reads
        partition, sequence = self.partition[reads], self.sequence[reads]
        if len(partition) == 0:
            return
        order = np.lexsort((sequence, partition))
        changes = np.flatnonzero((np.diff(partition[order]) != 0) | (np.diff(sequence[order]) != 0)) + 1
        for rows in np.split(order, changes):
            yield int(partition[rows[0]]), int(sequence[rows[0]]), rows


class Held:
    """What one worker holds: rows by group, and how far each partition has come."""

    def __init__(self, partitions: int, groups: int, bound: int) -> None:
        """bound: most rows held of a group, beyond which the oldest go before their turn, and are counted in `early`."""
        self._bound = bound
        self._seen = [NEVER] * partitions
        self._at_end = [False] * partitions
        self._rows: list[list[Released]] = [[] for _ in range(groups)]
        self.early = 0

    def add(self, partition: int, sequence: int, cuts: Iterable[tuple[int, Cut]], seen_until: int, at_end: bool) -> None:
        """Takes a batch's rows, and the news of its partition."""
        self._seen[partition] = max(self._seen[partition], seen_until)
        self._at_end[partition] = at_end
        for group, cut in cuts:
            n = len(cut.row)
            self._rows[group].append(Released(cut, np.full(n, partition), np.full(n, sequence)))

    def release(self) -> Iterator[tuple[int, Released]]:
        """Rows whose turn has come, in order, by group."""
        backlog = [seen for seen, at_end in zip(self._seen, self._at_end, strict=True) if not at_end]
        horizon = min(backlog, default=ALWAYS)
        for group, pieces in enumerate(self._rows):
            held = _joined(pieces)
            if held is None:
                continue
            self._rows[group] = [held]
            ready = held.cut.time < horizon
            excess = len(ready) - int(np.count_nonzero(ready)) - self._bound
            if excess > 0:
                waiting = held.cut.time[~ready]
                ready |= held.cut.time <= np.partition(waiting, excess - 1)[excess - 1]
                self.early += excess
            if not ready.any():
                continue
            rows = np.flatnonzero(ready)
            cut = held.cut
            keys = [cut.row, held.sequence, held.partition, *reversed(cut.ties), cut.time]
            order = rows[np.lexsort([key[rows] for key in keys])]
            self._rows[group] = [] if len(rows) == len(ready) else [_taken(held, np.flatnonzero(~ready))]
            yield group, _taken(held, order)

    def dump(self, shard: int = 0, shards: int = 1) -> dict[str, Any]:
        """The rows of one shard as plain data; whether a partition is at its end is asked again on resume."""
        rows = {}
        for group, pieces in enumerate(self._rows):
            held = _joined(pieces)
            if held is not None:
                part = _taken(held, np.flatnonzero(held.cut.hash % np.uint64(shards) == shard))
                rows[group] = arrays_to_ipc([*part.cut, part.partition, part.sequence])
        return {"seen": list(self._seen), "rows": rows}

    def load(self, dump: dict[str, Any]) -> None:
        """Adds what `dump` returned."""
        for partition, seen in enumerate(dump["seen"]):
            self._seen[partition] = max(self._seen[partition], seen)
        for group, data in dump["rows"].items():
            *arrays, of_partition, sequence = arrays_from_ipc(data)
            if len(sequence):
                self._rows[group].append(Released(Cut(*arrays), of_partition, sequence))


def _joined(pieces: list[Released]) -> Released | None:
    if len(pieces) <= 1:
        return pieces[0] if pieces else None
    return Released(
        joined([piece.cut for piece in pieces]),
        np.concatenate([piece.partition for piece in pieces]),
        np.concatenate([piece.sequence for piece in pieces]),
    )


def _taken(held: Released, rows: I64) -> Released:
    return Released(held.cut.take(rows), held.partition[rows], held.sequence[rows])
