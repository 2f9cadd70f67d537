"""Event order: a shard holds rows until every partition that is not at the end of its log has passed their time.

Exact on a topic written before the start, whatever the number of partitions and workers; live it waits only for partitions with a
backlog. Rows of one time are ordered by the topic's ties, then by partition and offset.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streams.routing import shard_number

NEVER = -(2**62)
ALWAYS = 2**62


@dataclass(frozen=True)
class Released:
    """Rows of one group in event order, and where each came from."""

    batch: pa.RecordBatch
    partitions: Sequence[str]

    def origins(self) -> Iterator[tuple[str, int, npt.NDArray[np.int64]]]:
        """(partition, sequence, rows among those that read) for each batch that has such rows here."""
        reads = self.batch["_reads"].to_numpy(zero_copy_only=False)
        numbers, sequences = self.batch["_from"].to_numpy()[reads], self.batch["_sequence"].to_numpy()[reads]
        if len(numbers) == 0:
            return
        order = np.lexsort((sequences, numbers))
        changes = np.flatnonzero((np.diff(numbers[order]) != 0) | (np.diff(sequences[order]) != 0)) + 1
        for rows in np.split(order, changes):
            yield self.partitions[numbers[rows[0]]], int(sequences[rows[0]]), rows


class Held:
    """What one shard holds: rows by group, and how far each partition has come."""

    def __init__(self, partitions: Sequence[str], groups: int, ties: int, bound: int) -> None:
        """ties: how many `t{k}` columns the cuts have; bound: most rows held, beyond which the oldest go before their turn."""
        self._partitions = list(partitions)
        self._ties = [f"t{k}" for k in range(ties)]
        self._bound = bound
        self._seen = {name: NEVER for name in partitions}
        self._at_end = {name: False for name in partitions}
        self._rows: list[list[pa.RecordBatch]] = [[] for _ in range(groups)]
        self.early = 0

    def add(
        self, partition: str, sequence: int, cuts: Iterable[tuple[int, pa.RecordBatch]], seen_until: int, at_end: bool
    ) -> None:
        """Takes a batch's rows, and the news of its partition."""
        self._seen[partition] = max(self._seen[partition], seen_until)
        self._at_end[partition] = at_end
        for group, piece in cuts:
            number = np.full(piece.num_rows, shard_number(partition), np.int32)
            from_columns = [pa.array(number), pa.array(np.full(piece.num_rows, sequence, np.int64))]
            names = [*piece.schema.names, "_from", "_sequence"]
            self._rows[group].append(pa.RecordBatch.from_arrays([*piece.columns, *from_columns], names))

    def release(self) -> Iterator[tuple[int, Released]]:
        """Rows whose turn has come, in order, by group."""
        horizon = min((seen for name, seen in self._seen.items() if not self._at_end[name]), default=ALWAYS)
        for group, pieces in enumerate(self._rows):
            if not pieces:
                continue
            held = pieces[0] if len(pieces) == 1 else pa.concat_batches(pieces)
            times = held["_time"].to_numpy()
            ready = times < horizon
            excess = held.num_rows - int(ready.sum()) - self._bound
            if excess > 0:
                ready |= times <= np.partition(times[~ready], excess - 1)[excess - 1]
                self.early += excess
            if not ready.any():
                self._rows[group] = [held]
                continue
            keys = ["_row", "_sequence", "_from", *reversed(self._ties), "_time"]
            rows = np.flatnonzero(ready)
            order = np.lexsort([held[name].to_numpy()[rows] for name in keys])
            self._rows[group] = [held.filter(pa.array(~ready))] if not ready.all() else []
            yield group, Released(held.take(pa.array(rows[order])), self._partitions)

    def dump(self) -> dict[str, Any]:
        """Plain data; whether a partition is at its end is asked again on resume."""
        rows = []
        for pieces in self._rows:
            sink = pa.BufferOutputStream()
            if pieces:
                with pa.ipc.new_stream(sink, pieces[0].schema) as writer:
                    writer.write_batch(pa.concat_batches(pieces))
            rows.append(sink.getvalue().to_pybytes())
        return {"seen": dict(self._seen), "rows": rows, "early": self.early}

    def load(self, dump: dict[str, Any]) -> None:
        """Goes on from what `dump` returned."""
        self._seen |= dump["seen"]
        self.early = dump["early"]
        self._rows = [list(pa.ipc.open_stream(rows)) if rows else [] for rows in dump["rows"]]
