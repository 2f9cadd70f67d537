"""The record of decisions: from the works of the dataflow to rows of a log, and the Bytewax step that hands them over."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from features.spec import Derived, Feature, Fields, Stored
from models.policy import Coded
from sinks.journal import Journal
from sinks.records import FIRST, OF_A_VIEW, TIME, TIMESTAMP, Told
from sinks.records import Feature as Recorded
from streams.decide import Deciding, Work
from streams.meters import Meters
from streams.replays import originals
from streams.routing import shard_name, shard_number

M1, M2, S = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(31)


class Entry(NamedTuple):
    """A decided batch: its work, decision and reasons (None: there is no policy), and when it was decided, µs since 1970."""

    work: Work
    decision: Coded | None
    reasons: Coded | None
    decided_at: int


def entry(work: Work, decisions: Mapping[str, Any], decided_at: int) -> Entry:
    """The entry of a work and its decisions (streams/decide.py), if there are any."""
    return Entry(work, decisions.get("decision"), decisions.get("reasons"), decided_at)


class LogRows:
    """Makes the rows of a log of entries of one version of the model. Called on the journal's thread; what it reads of a work
    nobody changes."""

    def __init__(
        self,
        deciding: Deciding,
        features: Sequence[Feature],
        share: float,
        age_by: str,
        counts: Literal["first", "last"] = "first",
    ) -> None:
        names, stored = deciding.names, deciding.stored
        self._deciding = deciding
        self._prefix = f"{names.pipeline}/{names.topic}/"
        self._share = share
        self._views = list(stored.by_view) if stored else []
        self._places = {}
        end = 0
        for each in deciding.engine.spec.inputs:
            self._places[each.name] = each, end
            end += each.width
        recorded = tuple(self._recorded(features))
        told = Told(names.pipeline, self._prefix, names.model, deciding.digest, deciding.flags, recorded, age_by, share, counts)
        self.told = told
        self._metadata = told.metadata()

    def __call__(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        """The rows of n entries, as the share has it."""
        works = [entry.work for entry in entries]
        sizes = [work.batch.num_rows for work in works]
        names = self._deciding.names

        def column(name: str) -> pa.Array:
            return together([work.batch.column(name) for work in works])

        times = column(names.time)
        decided_at = np.repeat(np.array([entry.decided_at for entry in entries], np.int64), sizes)
        columns: dict[str, pa.Array] = {
            "partition": column("_partition"),
            "offset": together([originals(work.batch) for work in works]),
            "event_id": column(names.id),
            "event_time": times,
            "decided_at": pa.array(decided_at).cast(TIMESTAMP),
            "model_version": pa.array(np.full(sum(sizes), names.model_version, np.int32)),
            "score": rows_of(np.concatenate([work.scores for work in works])),
            "decision": coded([entry.decision for entry in entries], sizes, pa.string()),
            "reasons": coded([entry.reasons for entry in entries], sizes, pa.list_(pa.string())),
            "bits": pa.array(np.concatenate([work.flags for work in works])),
        }
        if self._views:
            held = np.concatenate([work.stored_times for work in works], axis=1)
            columns |= {f"{TIME}{view}": pa.array(one) for view, one in zip(self._views, held, strict=True)}
        matrix = np.concatenate([work.matrix for work in works])
        by_column = np.ascontiguousarray(matrix.T) if len(self.told.features) > 1 else matrix.T
        for feature in self.told.features:
            columns[feature.column] = self._feature(feature, works, by_column, column)
        batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
        batch = batch.replace_schema_metadata(self._metadata)
        if self._share < 1:
            kept = chosen(batch.column("partition").to_numpy(), batch.column("offset").to_numpy(), self._prefix, self._share)
            batch = batch.filter(pa.array(kept))
        return batch

    def _feature(
        self, feature: Recorded, works: Sequence[Work], by_column: npt.NDArray[np.float32], column: Callable[[str], pa.Array]
    ) -> pa.Array:
        if feature.name not in self._places:
            return pa.array(np.concatenate([work.computed[feature.name] for work in works]).astype(np.float64, copy=False))
        each, place = self._places[feature.name]
        if each.kind in ("category", "hashed"):
            values = column(feature.name)
            return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        if each.kind == "vector":
            flat = np.ascontiguousarray(by_column[place : place + each.width].T).ravel()
            return pa.FixedSizeListArray.from_arrays(pa.array(flat), each.width)
        return pa.array(by_column[place])

    def _recorded(self, features: Sequence[Feature]) -> list[Recorded]:
        """What is recorded: the model's inputs, and what else was computed, in the pipeline's order."""
        spec, stored = self._deciding.engine.spec, self._deciding.stored
        views = {name: view for view, names in stored.by_view.items() for name in names} if stored else {}
        sources: dict[str, tuple[str, str | float]] = {}
        for feature in features:
            if isinstance(feature, Stored):
                for name, view in views.items():
                    said = feature.stale.get(name, feature.stale.get(view, feature.otherwise))
                    sources[name] = "stored", said
            else:
                source = "field" if isinstance(feature, Fields) else "derived" if isinstance(feature, Derived) else "stream"
                for name in feature.names:
                    if source != "field" or name in spec.names:
                        sources[name] = source, "null"
        sources |= {name: ("field", "null") for name in spec.names if name not in sources}
        taken = {*FIRST, "bits", *(f"{what}{view}" for view in self._views for what in OF_A_VIEW)}
        made = []
        for name, (source, instead) in sources.items():
            kind = self._places[name][0].kind if name in self._places else "number"
            made.append(
                Recorded(name, f"feature_{name}" if name in taken else name, kind, source, views.get(name, ""), instead)
            )
        return made


def together(columns: Sequence[pa.Array]) -> pa.Array:
    """The columns one after another."""
    return columns[0] if len(columns) == 1 else pa.concat_arrays(columns)


def rows_of(values: npt.NDArray[np.float32]) -> pa.Array:
    """Values [n] as a column, [n, k] as one of lists."""
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def coded(columns: Sequence[Coded | None], sizes: Sequence[int], kind: pa.DataType) -> pa.Array:
    """Columns of codes into one list of values of this kind, which grows at its end; all null where there are none."""
    if columns[0] is None:
        nothing = pa.array(np.zeros(sum(sizes), np.int32), mask=np.ones(sum(sizes), np.bool_))
        return pa.DictionaryArray.from_arrays(nothing, pa.array([], kind))
    codes = np.concatenate([column.codes for column in columns if column is not None]).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(columns[0].values), kind))


def chosen(
    partition: npt.NDArray[np.integer[Any]], offset: npt.NDArray[np.integer[Any]], prefix: str, share: float
) -> npt.NDArray[np.bool_]:
    """Which decisions belong to a share, bool [n]: by a hash of the parts of their ids, so that a replay chooses the same."""
    salt = np.uint64(zlib.crc32(prefix.encode()))
    mixed = offset.astype(np.uint64) + (partition.astype(np.uint64) << np.uint64(44)) + (salt << np.uint64(20))
    for factor in (M1, M2, M1):
        mixed = (mixed ^ (mixed >> S)) * factor
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < share


class _Partition(StatefulSinkPartition[Entry, None]):
    def __init__(self, journal: Journal[Entry], meters: Meters) -> None:
        self._journal, self._meters = journal, meters

    def write_batch(self, values: list[Entry]) -> None:
        with self._meters.stage("sink"):
            for entry in values:
                self._journal.add(entry, entry.work.batch.num_rows)

    def snapshot(self) -> None:
        """The epoch becomes durable after this returns: all that was decided in it must be on disk by then."""
        with self._meters.stage("sink"):
            self._journal.flush()


class RecordOutput(FixedPartitionedSink[Entry, None]):
    """Hands each decided batch to the worker's journal, whatever the partition it came from."""

    def __init__(self, partitions: Callable[[], int], journal: Callable[[], Journal[Entry]], meters: Meters) -> None:
        self._partitions, self._journal, self._meters = partitions, journal, meters

    def list_parts(self) -> list[str]:
        return [shard_name(number) for number in range(self._partitions())]

    def part_fn(self, item_key: str) -> int:
        return shard_number(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition:
        return _Partition(self._journal(), self._meters)
