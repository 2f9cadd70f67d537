"""Fan-out to the entity groups and gather: where rows meet the state of their entities.

    cut: a decoded batch → for each shard a Parcel with its part of every group, for the gather step a Base
    Shard: parcels → Parts, the features of the rows that were decided on
    Gather: a Base and its Parts → the batch with the features as columns

Groups are never chained: all see the same batch, in parallel, and are joined by (partition, sequence, row), where the
sequence is the offset of the batch's first message. What goes to another worker goes as Arrow IPC bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.operators import StatefulBatchLogic

from features.streaming import Cutter, Group, State
from streams.meters import Meters
from streams.ordering import Held
from streams.routing import shard_name, shard_number

Wire = pa.RecordBatch | bytes
VERSION = 1


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a shard gets of one batch: (group, cut) for the groups concerned, and how far the partition has come."""

    shard: int
    partition: str
    sequence: int
    cuts: tuple[tuple[int, Wire], ...]
    seen_until: int
    at_end: bool


@dataclass(frozen=True, slots=True)
class Base:
    """The rows to decide on, and how many feature rows the shards will send back for them."""

    sequence: int
    batch: Wire
    expected: int


@dataclass(frozen=True, slots=True)
class Part:
    """Features from one shard and group: `_row` int32 in the Base's batch, and the group's columns."""

    partition: str
    sequence: int
    group: int
    columns: Wire


def pack(batch: pa.RecordBatch, local: bool) -> Wire:
    """The batch itself if it stays on this worker, its Arrow IPC bytes if not."""
    if local:
        return batch
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def unpack(wire: Wire) -> pa.RecordBatch:
    """The batch that was packed."""
    return wire if isinstance(wire, pa.RecordBatch) else pa.ipc.open_stream(wire).read_next_batch()


def cut(
    partition: str,
    batch: pa.RecordBatch,
    reads: npt.NDArray[np.bool_],
    times: npt.NDArray[np.int64],
    at_end: bool,
    cutters: Sequence[Cutter],
    shards: int,
    workers: int,
    to_all: bool,
) -> Iterable[tuple[str, Parcel | Base]]:
    """Parcels for the shards concerned (`to_all`: for all, since they wait for news of every partition) and the Base.

    batch: n decoded rows; reads: bool [n], those to decide on; times: int64 [n], microseconds.
    """
    here = shard_number(partition) % workers
    sequence = batch["_offset"][0].as_py() if batch.num_rows else -1
    parcels: dict[int, list[tuple[int, Wire]]] = {shard: [] for shard in range(shards)} if to_all else {}
    expected = 0
    if batch.num_rows:
        for number, cutter in enumerate(cutters):
            whole = cutter(batch, reads)
            expected += int(whole["_reads"].true_count)
            for shard, piece in _split(whole, shards):
                parcels.setdefault(shard, []).append((number, pack(piece, shard % workers == here)))
        if reads.any():
            yield partition, Base(sequence, batch.filter(pa.array(reads)), expected)
    seen_until = int(times.max()) if len(times) else -(2**62)
    for shard, cuts in parcels.items():
        yield shard_name(shard), Parcel(shard, partition, sequence, tuple(cuts), seen_until, at_end)


def _split(batch: pa.RecordBatch, shards: int) -> Iterable[tuple[int, pa.RecordBatch]]:
    if batch.num_rows == 0:
        return
    of_row = (batch["_hash"].to_numpy() % np.uint64(shards)).astype(np.int64)
    if batch.num_rows == 1 or (of_row == of_row[0]).all():
        yield int(of_row[0]), batch
        return
    order = np.argsort(of_row, kind="stable")
    sorted_batch = batch.take(pa.array(order))
    edges = np.searchsorted(of_row[order], np.arange(shards + 1))
    for shard in range(shards):
        if edges[shard] < edges[shard + 1]:
            yield shard, sorted_batch.slice(edges[shard], edges[shard + 1] - edges[shard])


class Shard(StatefulBatchLogic[Parcel, Part, dict[str, Any]]):
    """One shard's state of every group. In arrival order it is fed at once; in event order by way of `held`."""

    def __init__(
        self,
        groups: Sequence[Group],
        resume: dict[str, Any] | None,
        held: Held | None,
        meters: Meters,
        workers: int,
    ) -> None:
        dumps = _checked(resume)["groups"] if resume else [None] * len(groups)
        self._states = [State(group, dump) for group, dump in zip(groups, dumps, strict=True)]
        self._held = held
        if held is not None and resume:
            held.load(resume["held"])
        self._meters = meters
        self._workers = workers

    def on_batch(self, values: list[Parcel]) -> tuple[list[Part], bool]:
        with self._meters.stage("features"):
            late, early = self._late(), self._held.early if self._held else 0
            parts = self._at_once(values) if self._held is None else self._in_order(values, self._held)
            self._meters.late.inc(self._late() - late)
            self._meters.early.inc((self._held.early if self._held else 0) - early)
        return parts, StatefulBatchLogic.RETAIN

    def _at_once(self, parcels: list[Parcel]) -> list[Part]:
        parts = []
        for parcel in parcels:
            for group, wire in parcel.cuts:
                columns = self._states[group].update(unpack(wire))
                if columns.num_rows:
                    parts.append(self._part(parcel.shard, parcel.partition, parcel.sequence, group, columns))
        return parts

    def _in_order(self, parcels: list[Parcel], held: Held) -> list[Part]:
        for parcel in parcels:
            cuts = [(group, unpack(wire)) for group, wire in parcel.cuts]
            held.add(parcel.partition, parcel.sequence, cuts, parcel.seen_until, parcel.at_end)
        parts = []
        for group, released in held.release():
            columns = self._states[group].update(released.batch)
            for partition, sequence, rows in released.origins():
                parts.append(self._part(parcels[0].shard, partition, sequence, group, columns.take(pa.array(rows))))
        return parts

    def _part(self, shard: int, partition: str, sequence: int, group: int, columns: pa.RecordBatch) -> Part:
        local = shard % self._workers == shard_number(partition) % self._workers
        return Part(partition, sequence, group, pack(columns, local))

    def _late(self) -> int:
        return sum(state.late for state in self._states)

    def snapshot(self) -> dict[str, Any]:
        held = self._held.dump() if self._held is not None else None
        return {"version": VERSION, "groups": [state.dump() for state in self._states], "held": held}


class _Waiting:
    """A Base whose features are coming in."""

    def __init__(self, base: Base, names: Sequence[str]) -> None:
        self.batch = unpack(base.batch)
        self.missing = base.expected
        self.columns = {name: np.full(self.batch.num_rows, np.nan) for name in names}

    def fill(self, columns: pa.RecordBatch) -> None:
        rows = columns["_row"].to_numpy()
        for name in columns.schema.names[1:]:
            self.columns[name][rows] = columns[name].to_numpy()
        self.missing -= len(rows)

    def joined(self) -> pa.RecordBatch:
        arrays = [*self.batch.columns, *(pa.array(column) for column in self.columns.values())]
        return pa.RecordBatch.from_arrays(arrays, [*self.batch.schema.names, *self.columns])


class Gather(StatefulBatchLogic[Base | Part, pa.RecordBatch, dict[str, Any]]):
    """Joins features back to their rows, batch by batch in the partition's order. In arrival order it is empty between epochs.

    Where an entity of a row is null its features stay NaN.
    """

    def __init__(self, names: Sequence[str], resume: dict[str, Any] | None) -> None:
        self._names = names
        self._waiting: dict[int, _Waiting] = {}
        self._early: list[Part] = []
        if resume:
            for sequence, batch, missing in _checked(resume)["waiting"]:
                whole = unpack(batch)
                kept = [name for name in whole.schema.names if name not in names]
                waiting = _Waiting(Base(sequence, whole.select(kept), missing), names)
                waiting.columns = {name: whole[name].to_numpy().copy() for name in names}
                self._waiting[sequence] = waiting

    def on_batch(self, values: list[Base | Part]) -> tuple[list[pa.RecordBatch], bool]:
        for value in values:
            if isinstance(value, Base):
                self._waiting[value.sequence] = _Waiting(value, self._names)
        parts = [*self._early, *(value for value in values if isinstance(value, Part))]
        self._early = []
        for part in parts:
            if part.sequence in self._waiting:
                self._waiting[part.sequence].fill(unpack(part.columns))
            else:
                self._early.append(part)
        out = []
        for sequence in list(self._waiting):
            if self._waiting[sequence].missing:
                break
            out.append(self._waiting.pop(sequence).joined())
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> dict[str, Any]:
        if self._early:
            raise RuntimeError(
                f"gather: features of batches {[part.sequence for part in self._early]} came without the batch"
            )
        waiting = [
            (sequence, pack(item.joined(), local=False), item.missing) for sequence, item in self._waiting.items()
        ]
        return {"version": VERSION, "waiting": waiting}


def _checked(resume: dict[str, Any]) -> dict[str, Any]:
    if resume["version"] != VERSION:
        raise ValueError(f"recovery store: expected state version {VERSION}, got {resume['version']}")
    return resume
