"""Fan-out to the entity groups and gather: where rows meet the state of their entities.

    cut: a decoded batch → for each worker a Parcel with its part of every group, for the gather step a Base
    Shard: parcels → Parts, the features of the rows that were decided on
    Gather: a Base and its Parts → the batch with the features beside it

Groups are never chained: all see the same batch, in parallel, and are joined by (home, sequence, row). In arrival order all
of a worker's batches have one home, one of its partitions, and are numbered: they go on in the order in which they came,
though some wait for features from other workers and some do not. In event order each is of one partition, which is its home,
and its number the offset of its first message. What goes to another worker goes as Arrow IPC bytes.

A worker's shards are snapshotted, recovered and moved one by one, and read and updated in one go: a kernel's call costs as
much for a few rows of one shard as for those of all. So a worker's parcel goes to the first of its shards, and the others
hear of each epoch once, by a Wake of one of their pages, which makes Bytewax take its snapshot (streams/shards.py).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.operators import StatefulBatchLogic

from features.memo import Memo
from features.streaming import Cut, Cutter, Group
from streams.meters import Meters
from streams.ordering import NEVER, Held
from streams.replays import ORIGINAL
from streams.routing import page_name, shard_name, shard_number
from streams.shards import VERSION, Shards, checked
from streams.store import RecoveryError
from streams.wire import arrays_from_ipc, arrays_to_ipc, from_ipc, to_ipc

Hashes: TypeAlias = dict[str, npt.NDArray[np.uint64]]
"""The hashes uint64 [n] of columns by name, so that none is hashed twice."""


@dataclass(frozen=True, slots=True)
class News:
    """How far a partition has come: the times (µs) of a batch's first and latest row, NEVER if it has none, and whether its log
    ends there."""

    partition: str
    first: int
    seen_until: int
    at_end: bool


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker gets of one batch: (group, cut) for the groups concerned, and how far the batch's partitions have come.
    The features go back to where its Base is: `home`, a partition, and `sequence`."""

    worker: int
    home: str
    sequence: int
    cuts: tuple[tuple[int, Cut | bytes], ...]
    news: tuple[News, ...]


@dataclass(frozen=True, slots=True)
class Wake:
    """A shard's state may change in this epoch, of which the snapshot has this page."""

    shard: int
    page: int


@dataclass(frozen=True, slots=True)
class Base:
    """The rows to decide on, how many feature rows the shards will send back for them, the hashes of their entities, and of how
    many decoded rows they are."""

    sequence: int
    batch: pa.RecordBatch
    expected: int
    hashes: Hashes
    polled: int = 0


@dataclass(frozen=True, slots=True)
class Gathered:
    """Rows to decide on with their streaming features, float64 [features of all groups, rows], NaN where there is none; from
    when on (µs) the state that they are from holds everything; of how many decoded rows they are (0: nobody knows)."""

    batch: pa.RecordBatch
    values: npt.NDArray[np.float64]
    hashes: Hashes = field(default_factory=dict)
    begins: int = NEVER
    polled: int = 0


class Features(NamedTuple):
    """Features of m rows from one shard and group: `row` int32 [m] in the Base's batch, `values` float64 [f, m]."""

    row: npt.NDArray[np.int32]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """Features on their way back to their batch; begins: as in Gathered, NEVER where that is long ago."""

    home: str
    sequence: int
    group: int
    features: Features | bytes
    begins: int


def cut(
    home: str,
    sequence: int,
    batch: Memo,
    reads: npt.NDArray[np.bool_],
    news: Sequence[News],
    cutters: Sequence[Cutter],
    shards: int,
    workers: int,
    to_all: bool,
    kept: Sequence[str],
) -> Iterable[tuple[str, Parcel | Base]]:
    """Parcels for the workers concerned (`to_all`: for all, since they wait for news of every partition) and the Base.

    home, sequence: where the gather step joins them. batch: n decoded rows of one or more of this worker's partitions; reads:
    bool [n], those to decide on, of which the columns `kept` go on.
    """
    owners = min(workers, shards)
    here = shard_number(home) % workers
    parcels: list[list[tuple[int, Cut | bytes]]] = [[] for _ in range(owners)]
    expected = 0
    hashes: Hashes = {}
    if batch.num_rows:
        for group, cutter in enumerate(cutters):
            whole = cutter(batch, reads)
            hashes[cutter.group.entity] = whole.hash
            if not whole.bits.any():
                continue
            expected += int(np.count_nonzero(whole.bits & 1))
            if workers == 1 and not to_all:
                parcels[0].append((group, whole))
                continue
            for worker, piece in _split(whole.own, shards, workers):
                parcels[worker].append((group, piece if worker == here else arrays_to_ipc(piece)))
        decided = int(np.count_nonzero(reads))
        if decided:
            picked, of_picked = _picked(batch.batch.select(kept), hashes, reads, decided)
            yield home, Base(sequence, picked, expected, of_picked, batch.num_rows)
    for worker, cuts in enumerate(parcels):
        if cuts or to_all:
            yield shard_name(worker), Parcel(worker, home, sequence, tuple(cuts), tuple(news))


def uncut(batch: Memo, reads: npt.NDArray[np.bool_], kept: Sequence[str]) -> Iterable[Gathered]:
    """The rows of a batch to decide on where there are no groups, see `cut`: nothing is joined to them."""
    if decided := int(np.count_nonzero(reads)):
        picked, _ = _picked(batch.batch.select(kept), {}, reads, decided)
        yield Gathered(picked, np.empty((0, decided)), polled=batch.num_rows)


def wakes(pages: Iterable[int], shards: int) -> Iterable[tuple[str, Wake]]:
    """Has these pages of all shards snapshotted."""
    for page in pages:
        for shard in range(shards):
            yield page_name(shard, page), Wake(shard, page)


def _picked(batch: pa.RecordBatch, hashes: Hashes, reads: npt.NDArray[np.bool_], count: int) -> tuple[pa.RecordBatch, Hashes]:
    """The `count` rows that read; a run of rows is a slice, at a tenth of the cost of a filter."""
    if count == len(reads):
        return batch, hashes
    first = int(reads.argmax())
    if reads[first : first + count].all():
        return batch.slice(first, count), {name: one[first : first + count] for name, one in hashes.items()}
    return batch.filter(pa.array(reads)), {name: one[reads] for name, one in hashes.items()}


def _split(whole: Cut, shards: int, workers: int) -> Iterable[tuple[int, Cut]]:
    """The cut by worker; shard s is worker s % workers'."""
    of_row = (whole.hash % np.uint64(shards) % np.uint64(workers)).astype(np.int64)
    for worker in np.unique(of_row).tolist():
        yield worker, whole.take(np.flatnonzero(of_row == worker))


class Shard(StatefulBatchLogic[Parcel | Wake, Part, dict[str, Any]]):
    """What Bytewax sees of the state: the first of a worker's shards by name feeds the whole; a page is snapshotted. apart:
    whether pages are taken between batches by another, which holds none of them."""

    def __init__(
        self,
        whole: Shards,
        resume: dict[str, Any] | None,
        meters: Meters,
        workers: int,
        apart: Callable[[], bool] = lambda: False,
    ) -> None:
        self._whole, self._apart = whole, apart
        self._page: tuple[int, int] | None = None
        if resume is not None and checked(resume)["shard"] is not None:
            whole.resume(resume)
            self._page = resume["shard"], resume["page"]
        self._meters = meters
        self._workers = workers

    def on_batch(self, values: list[Parcel | Wake]) -> tuple[list[Part], bool]:
        parcels = []
        for value in values:
            if isinstance(value, Wake):
                self._page = value.shard, value.page
                self._whole.wake(value.shard, value.page)
            else:
                parcels.append(value)
        if not parcels:
            return [], StatefulBatchLogic.RETAIN
        with self._meters.stage("features"):
            self._whole.ready()
            self._whole.fed()
            if not self._apart():
                self._whole.ahead()
            for parcel in parcels:
                for news in parcel.news:
                    if news.first > NEVER:
                        self._whole.hear(news.partition, news.first)
            held = self._whole.held
            early = held.early if held else 0
            parts = self._at_once(parcels) if held is None else self._in_order(parcels, held)
            for state in self._whole.states:
                self._meters.state(state.group.entity, state.late, state.entities)
            if held is not None and held.early > early:
                self._meters.early.inc(held.early - early)
        return parts, StatefulBatchLogic.RETAIN

    def _at_once(self, parcels: list[Parcel]) -> list[Part]:
        parts = []
        for parcel in parcels:
            clock = [self._whole.clock(news.partition, news.seen_until, news.at_end) for news in parcel.news][-1]
            begins = max((self._whole.begins_near(news.first) for news in parcel.news if news.first > NEVER), default=NEVER)
            for group, packed in parcel.cuts:
                piece = _cut(packed)
                values = self._whole.states[group].update(piece, clock)
                if values.shape[1]:
                    features = Features(piece.row[piece.reads], values)
                    parts.append(self._part(parcel.worker, parcel.home, parcel.sequence, group, features, begins))
        return parts

    def _in_order(self, parcels: list[Parcel], held: Held) -> list[Part]:
        for parcel in parcels:
            cuts = [(group, _cut(packed)) for group, packed in parcel.cuts]
            (news,) = parcel.news
            held.add(shard_number(parcel.home), parcel.sequence, cuts, news.seen_until, news.at_end)
        parts = []
        for group, released in held.release():
            rows = released.cut.row[released.cut.reads]
            values = self._whole.states[group].update(released.cut)
            begins = self._whole.begins_near(int(released.cut.time[0]))
            for partition, sequence, chosen in released.origins():
                features = Features(rows[chosen], values[:, chosen])
                parts.append(self._part(parcels[0].worker, shard_name(partition), sequence, group, features, begins))
        return parts

    def _part(self, worker: int, home: str, sequence: int, group: int, features: Features, begins: int) -> Part:
        local = worker == shard_number(home) % self._workers
        return Part(home, sequence, group, features if local else arrays_to_ipc(features), begins)

    def snapshot(self) -> dict[str, Any]:
        if self._page is None:
            return {"version": VERSION, "shard": None}
        return self._whole.snapshot(*self._page)


class _Waiting:
    """A Base whose features are coming in; `values` is float64 [features of all groups, rows]."""

    def __init__(self, batch: pa.RecordBatch, missing: int, features: int, hashes: Hashes, polled: int = 0) -> None:
        self.batch = batch
        self.hashes = hashes
        self.polled = polled
        self.begins = NEVER
        self.missing = missing
        self.values = np.full((features, batch.num_rows), np.nan)


class Gather(StatefulBatchLogic[Base | Part, Gathered, dict[str, Any]]):
    """Joins features back to their rows, batch by batch in the order in which these came. In arrival order it is empty between
    epochs.

    Where an entity of a row is null its features stay null. undecided: where a snapshot writes what the partition's first
    waiting batch is, if one waits. kept: the columns that are needed of an event; RecoveryError is raised where rows that wait
    in a snapshot lack one.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        resume: dict[str, Any] | None,
        undecided: dict[int, int] | None = None,
        kept: Sequence[str] = (),
    ) -> None:
        edges = np.cumsum([0, *(len(group.names) for group in groups)]).tolist()
        self._features = edges[-1]
        self._of_group = [slice(a, b) for a, b in pairwise(edges)]
        self._waiting: dict[int, _Waiting] = {}
        self._early: list[Part] = []
        self._undecided = {} if undecided is None else undecided
        self._partition = -1
        if resume:
            for sequence, packed, missing, begins, values in checked(resume)["waiting"]:
                waiting = _Waiting(_with(from_ipc(packed), kept), missing, self._features, {})
                waiting.begins = begins
                waiting.values[:] = np.frombuffer(values).reshape(waiting.values.shape)
                self._waiting[sequence] = waiting
            self._tell()

    def on_batch(self, values: list[Base | Part]) -> tuple[list[Gathered], bool]:
        for value in values:
            if isinstance(value, Base):
                waiting = _Waiting(value.batch, value.expected, self._features, value.hashes, value.polled)
                self._waiting[value.sequence] = waiting
        parts = [*self._early, *(value for value in values if isinstance(value, Part))]
        self._early = [part for part in parts if part.sequence not in self._waiting]
        for part in parts:
            if part.sequence in self._waiting:
                waiting = self._waiting[part.sequence]
                features = part.features if isinstance(part.features, Features) else Features(*arrays_from_ipc(part.features))
                waiting.values[self._of_group[part.group], features.row] = features.values
                waiting.missing -= len(features.row)
                waiting.begins = max(waiting.begins, part.begins)
        out = []
        for sequence in list(self._waiting):
            if self._waiting[sequence].missing:
                break
            waiting = self._waiting.pop(sequence)
            out.append(Gathered(waiting.batch, waiting.values, waiting.hashes, waiting.begins, waiting.polled))
        return out, StatefulBatchLogic.RETAIN

    def snapshot(self) -> dict[str, Any]:
        if self._early:
            raise RuntimeError(f"gather: features of {[part.sequence for part in self._early]} came without their batch")
        self._tell()
        waiting = [
            (sequence, to_ipc(item.batch), item.missing, item.begins, item.values.tobytes())
            for sequence, item in self._waiting.items()
        ]
        return {"version": VERSION, "waiting": waiting}

    def _tell(self) -> None:
        """Says what the first batch that waits is."""
        if self._waiting:
            sequence, item = next(iter(self._waiting.items()))
            self._partition = item.batch.column("_partition")[0].as_py()
            self._undecided[self._partition] = sequence
        else:
            self._undecided.pop(self._partition, None)


def _with(batch: pa.RecordBatch, kept: Sequence[str]) -> pa.RecordBatch:
    """Rows that wait, with the columns that are needed now."""
    if lacking := [name for name in kept if name not in batch.schema.names]:
        raise RecoveryError(
            f"recovery store: rows that wait for other partitions: expected columns {', '.join(lacking)}, got none: let the "
            "pipeline run as it was until no row waits, or --rebuild"
        )
    names = [*kept, *(name for name in (ORIGINAL,) if name in batch.schema.names)]
    return batch.select(names) if kept else batch


def _cut(packed: Cut | bytes) -> Cut:
    return packed if isinstance(packed, Cut) else Cut(*arrays_from_ipc(packed))
