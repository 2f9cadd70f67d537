"""Fan-out to the entity groups and gather: where rows meet the state of their entities.

    cut: a decoded batch → for each shard a Parcel with its part of every group, for the gather step a Base
    Shard: parcels → Parts, the features of the rows that were decided on
    Gather: a Base and its Parts → the batch with the features as columns

Groups are never chained: all see the same batch, in parallel, and are joined by (partition, sequence, row), where the
sequence is the offset of the batch's first message. What goes to another worker goes as Arrow IPC bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.operators import StatefulBatchLogic

from features.streaming import Cut, Cutter, Group, State
from streams.meters import Meters
from streams.ordering import NEVER, Held
from streams.routing import shard_name, shard_number
from streams.wire import arrays_from_ipc, arrays_to_ipc, from_ipc, to_ipc

VERSION = 1


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a shard gets of one batch: (group, cut) for the groups concerned, and how far the partition has come."""

    shard: int
    partition: str
    sequence: int
    cuts: tuple[tuple[int, Cut | bytes], ...]
    seen_until: int
    at_end: bool


@dataclass(frozen=True, slots=True)
class Base:
    """The rows to decide on, and how many feature rows the shards will send back for them."""

    sequence: int
    batch: pa.RecordBatch
    expected: int


class Features(NamedTuple):
    """Features of m rows from one shard and group: `row` int32 [m] in the Base's batch, `values` float64 [f, m]."""

    row: npt.NDArray[np.int32]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Features on their way back to their batch."""

    partition: str
    sequence: int
    group: int
    features: Features | bytes


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
    parcels: dict[int, list[tuple[int, Cut | bytes]]] = {shard: [] for shard in range(shards)} if to_all else {}
    expected = 0
    if batch.num_rows:
        for group, cutter in enumerate(cutters):
            whole = cutter(batch, reads)
            expected += int(np.count_nonzero(whole.bits & 1))
            for shard, piece in _split(whole, shards):
                packed = piece if shard % workers == here else arrays_to_ipc(piece)
                parcels.setdefault(shard, []).append((group, packed))
        if reads.any():
            yield partition, Base(sequence, batch.filter(pa.array(reads)), expected)
    seen_until = int(times.max()) if len(times) else NEVER
    for shard, cuts in parcels.items():
        yield shard_name(shard), Parcel(shard, partition, sequence, tuple(cuts), seen_until, at_end)


def _split(whole: Cut, shards: int) -> Iterable[tuple[int, Cut]]:
    of_row = (whole.hash % np.uint64(shards)).astype(np.int64)
    if len(of_row) == 0:
        return
    if (of_row == of_row[0]).all():
        yield int(of_row[0]), whole
        return
    order = np.argsort(of_row, kind="stable")
    by_shard = whole.take(order)
    edges = np.searchsorted(of_row[order], np.arange(shards + 1)).tolist()
    for shard in range(shards):
        if edges[shard] < edges[shard + 1]:
            yield shard, by_shard.between(edges[shard], edges[shard + 1])


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
            for group, packed in parcel.cuts:
                piece = _cut(packed)
                features = Features(piece.row[piece.reads], self._states[group].update(piece))
                if len(features.row):
                    parts.append(self._part(parcel.shard, parcel.partition, parcel.sequence, group, features))
        return parts

    def _in_order(self, parcels: list[Parcel], held: Held) -> list[Part]:
        for parcel in parcels:
            cuts = [(group, _cut(packed)) for group, packed in parcel.cuts]
            held.add(shard_number(parcel.partition), parcel.sequence, cuts, parcel.seen_until, parcel.at_end)
        parts = []
        for group, released in held.release():
            rows = released.cut.row[released.cut.reads]
            values = self._states[group].update(released.cut)
            for partition, sequence, chosen in released.origins():
                features = Features(rows[chosen], values[:, chosen])
                parts.append(self._part(parcels[0].shard, shard_name(partition), sequence, group, features))
        return parts

    def _part(self, shard: int, partition: str, sequence: int, group: int, features: Features) -> Part:
        local = shard % self._workers == shard_number(partition) % self._workers
        return Part(partition, sequence, group, features if local else arrays_to_ipc(features))

    def _late(self) -> int:
        return sum(state.late for state in self._states)

    def snapshot(self) -> dict[str, Any]:
        held = self._held.dump() if self._held is not None else None
        return {"version": VERSION, "groups": [state.dump() for state in self._states], "held": held}


class _Waiting:
    """A Base whose features are coming in; `values` is float64 [features of all groups, rows]."""

    def __init__(self, batch: pa.RecordBatch, missing: int, features: int) -> None:
        self.batch = batch
        self.missing = missing
        self.values = np.full((features, batch.num_rows), np.nan)


class Gather(StatefulBatchLogic[Base | Part, pa.RecordBatch, dict[str, Any]]):
    """Joins features back to their rows, batch by batch in the partition's order. In arrival order it is empty between epochs.

    Where an entity of a row is null its features stay null.
    """

    def __init__(self, groups: Sequence[Group], resume: dict[str, Any] | None) -> None:
        self._names = [name for group in groups for name in group.names]
        edges = np.cumsum([0, *(len(group.names) for group in groups)]).tolist()
        self._of_group = [slice(a, b) for a, b in pairwise(edges)]
        self._waiting: dict[int, _Waiting] = {}
        self._early: list[Part] = []
        if resume:
            for sequence, batch, missing, values in _checked(resume)["waiting"]:
                waiting = _Waiting(from_ipc(batch), missing, len(self._names))
                waiting.values[:] = np.frombuffer(values).reshape(waiting.values.shape)
                self._waiting[sequence] = waiting

    def on_batch(self, values: list[Base | Part]) -> tuple[list[pa.RecordBatch], bool]:
        for value in values:
            if isinstance(value, Base):
                self._waiting[value.sequence] = _Waiting(value.batch, value.expected, len(self._names))
        parts = [*self._early, *(value for value in values if isinstance(value, Part))]
        self._early = [part for part in parts if part.sequence not in self._waiting]
        for part in parts:
            if waiting := self._waiting.get(part.sequence):
                features = part.features if isinstance(part.features, Features) else Features(*arrays_from_ipc(part.features))
                waiting.values[self._of_group[part.group], features.row] = features.values
                waiting.missing -= len(features.row)
        out = []
        for sequence in list(self._waiting):
            if self._waiting[sequence].missing:
                break
            out.append(self._joined(self._waiting.pop(sequence)))
        return out, StatefulBatchLogic.RETAIN

    def _joined(self, waiting: _Waiting) -> pa.RecordBatch:
        arrays = [pa.array(values, from_pandas=True) for values in waiting.values]
        return pa.RecordBatch.from_arrays([*waiting.batch.columns, *arrays], [*waiting.batch.schema.names, *self._names])

    def snapshot(self) -> dict[str, Any]:
        if self._early:
            raise RuntimeError(f"gather: features of {[part.sequence for part in self._early]} came without their batch")
        waiting = [
            (sequence, to_ipc(item.batch), item.missing, item.values.tobytes()) for sequence, item in self._waiting.items()
        ]
        return {"version": VERSION, "waiting": waiting}


def _checked(resume: dict[str, Any]) -> dict[str, Any]:
    if resume["version"] != VERSION:
        raise ValueError(f"recovery store: expected state version {VERSION}, got {resume['version']}")
    return resume


def _cut(packed: Cut | bytes) -> Cut:
    return packed if isinstance(packed, Cut) else Cut(*arrays_from_ipc(packed))
