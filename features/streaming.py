"""Streaming features: a batch is cut to what a group of features needs, and a shard's state turns the cut into columns.

A group is all streaming features of one entity. `Cutter` makes the cut: the rows that update or read the group, with
the entity's hash, the time and the values, as a slim record batch that can be split by hash and sent to other processes.
`State` is what a shard knows of a group; `State.update` returns the features of the rows that read. Training and
serving both go through these two and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.expressions import compile_expression, mask
from features.spec import Last, Streaming, Window, seconds, tile_seconds
from kernels.hashing.cpu import hash_column
from kernels.table import cpu as table
from kernels.windows import cpu as windows

Dump = dict[str, Any]
STATE_VERSION = 1
MICROSECONDS = 1_000_000
AGGREGATES = ("count", "sum", "min", "max")


@dataclass(frozen=True)
class Group:
    """The streaming features of one entity."""

    entity: str
    features: tuple[Streaming, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for feature in self.features for name in feature.names)


def groups(features: Sequence[Any]) -> tuple[Group, ...]:
    """The streaming features among `features`, by entity in order of first appearance."""
    by_entity: dict[str, list[Streaming]] = {}
    for feature in features:
        if isinstance(feature, Window | Last):
            by_entity.setdefault(feature.entity, []).append(feature)
    return tuple(Group(entity, tuple(members)) for entity, members in by_entity.items())


class Cutter:
    """Cuts batches for a group. The columns of a cut of n rows:

    `_row` int32, the row among those that read; `_hash` uint64, the entity (never 0: rows without it are left out);
    `_time` int64, microseconds; `_reads` bool; for feature j with its values k, `u{j}` bool (updates) and `v{j}.{k}` float64
    (NaN: null); and `t{k}` int64 for the columns that order rows of one time.
    """

    def __init__(self, group: Group, columns: pa.Schema, time: str, ties: Sequence[str] = ()) -> None:
        """Raises ValueError, naming the feature, for an entity, value or condition that the columns do not have."""
        self.group = group
        self._time = time
        self._ties = ties
        self._wheres = []
        for feature in group.features:
            for name in (feature.entity, *feature.values):
                if name not in columns.names:
                    raise ValueError(
                        f"feature {feature.names[0]}: no column {name}, expected one of {', '.join(columns.names)}"
                    )
            for name in feature.values:
                kind = columns.field(name).type
                if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                    raise ValueError(f"feature {feature.names[0]}: expected {name} to be a number, got {kind}")
            self._wheres.append(compile_expression(feature.where, columns))

    def __call__(self, batch: pa.RecordBatch, reads: npt.NDArray[np.bool_]) -> pa.RecordBatch:
        hashes = hash_column(batch[self.group.entity])
        updates = [mask(where, batch) for where in self._wheres]
        rows = np.flatnonzero((hashes != 0) & np.logical_or.reduce([reads, *updates]))
        cut = {
            "_row": (np.cumsum(reads) - 1)[rows].astype(np.int32),
            "_hash": hashes[rows],
            "_time": microseconds(batch[self._time])[rows],
            "_reads": reads[rows],
        }
        for j, feature in enumerate(self.group.features):
            cut[f"u{j}"] = updates[j][rows]
            for k, name in enumerate(feature.values):
                cut[f"v{j}.{k}"] = floats(batch[name])[rows]
        for k, name in enumerate(self._ties):
            cut[f"t{k}"] = _ranks(batch[name])[rows]
        return pa.record_batch({name: pa.array(values) for name, values in cut.items()})


def event_order(batch: pa.RecordBatch, time: str, ties: Sequence[str]) -> npt.NDArray[np.int64]:
    """The permutation [n] that puts rows in the order of time, then of ties, then as they stand."""
    return np.lexsort([*(_ranks(batch[name]) for name in reversed(ties)), microseconds(batch[time])])


def _ranks(column: pa.Array) -> npt.NDArray[np.int64]:
    """Integers as they are, dictionaries by code; null before all."""
    values = column.indices if pa.types.is_dictionary(column.type) else column
    return pc.fill_null(values.cast(pa.int64()), -(2**63)).to_numpy(zero_copy_only=False)


def microseconds(column: pa.Array) -> npt.NDArray[np.int64]:
    """A timestamp[us] column without nulls as int64."""
    return column.cast(pa.int64()).to_numpy()


def floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """A numeric column as float64, null as NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


class State:
    """What one shard knows of one group: a table from entity to slot, and arrays by slot."""

    def __init__(self, group: Group, dump: Dump | None = None) -> None:
        """Raises ValueError for a dump of another version or of other features."""
        self._group = group
        self.late = 0
        self._used = 0
        self._table = table.new_table()
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.empty((0, *shape), kind) for name, (shape, kind, _) in self._layout().items()
        }
        if dump is not None:
            self._load(dump)

    def update(self, cut: pa.RecordBatch) -> pa.RecordBatch:
        """Feeds a cut; returns `_row` int32 and the group's features float64 (NaN: none) of the rows that read."""
        column = {name: cut[name].to_numpy(zero_copy_only=False) for name in cut.schema.names}
        updates = np.logical_or.reduce([column[f"u{j}"] for j in range(len(self._group.features))])
        slots = self._slots(column["_hash"], updates)
        times, reads = column["_time"], column["_reads"]
        count = int(reads.sum())
        out: dict[str, npt.NDArray[Any]] = {"_row": column["_row"][reads]}
        for j, feature in enumerate(self._group.features):
            if isinstance(feature, Window):
                values = np.empty((count, 4))
                self.late += windows.window(
                    slots, times, column[f"v{j}.0"], column[f"u{j}"], reads, tile_seconds(seconds(feature.over)) * MICROSECONDS,
                    *(self._arrays[f"{j}.{name}"] for name in ("newest", "ids", "count", "total", "low", "high")), values,
                )  # fmt: skip
                with np.errstate(invalid="ignore"):
                    by_name = dict(zip(AGGREGATES, values.T, strict=True)) | {"mean": values[:, 1] / values[:, 0]}
                out |= {
                    name: np.ascontiguousarray(by_name[agg])
                    for name, agg in zip(feature.names, feature.aggs, strict=True)
                }
            else:
                stacked = np.stack([column[f"v{j}.{k}"] for k in range(len(feature.values))])
                values = np.empty((len(feature.values), count))
                within = seconds(feature.within) * MICROSECONDS
                seen_at, seen = self._arrays[f"{j}.seen_at"], self._arrays[f"{j}.seen"]
                windows.last(slots, times, stacked, column[f"u{j}"], reads, within, seen_at, seen, values)
                out |= dict(zip(feature.names, values, strict=True))
        return pa.record_batch({name: pa.array(values) for name, values in out.items()})

    def dump(self) -> Dump:
        """The state as plain data: a versioned dict of (dtype, shape, bytes)."""
        keys = np.zeros(self._used, np.uint64)
        filled = self._table[0] != 0
        keys[self._table[1][filled]] = self._table[0][filled]
        arrays = {"keys": keys} | {name: array[: self._used] for name, array in self._arrays.items()}
        return {
            "version": STATE_VERSION,
            "features": [repr(feature) for feature in self._group.features],
            "late": self.late,
            "arrays": {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in arrays.items()},
        }

    def _load(self, dump: Dump) -> None:
        features = [repr(feature) for feature in self._group.features]
        if dump["version"] != STATE_VERSION:
            raise ValueError(f"state of {self._group.entity}: expected version {STATE_VERSION}, got {dump['version']}")
        if dump["features"] != features:
            raise ValueError(f"state of {self._group.entity}: expected the features {features}, got {dump['features']}")
        arrays = {
            name: np.frombuffer(data, kind).reshape(shape).copy()
            for name, (kind, shape, data) in dump["arrays"].items()
        }
        self.late = dump["late"]
        keys = arrays.pop("keys")
        self._slots(keys, np.ones(len(keys), np.bool_))
        for name, array in arrays.items():
            self._arrays[name][: len(array)] = array

    def _slots(self, hashes: npt.NDArray[np.uint64], updates: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """The slot of each entity [n]; those that update get one if they have none, those that only read do not (-1)."""
        out = np.empty(len(hashes), np.int32)
        table.find(*self._table, hashes, out)
        new = hashes[(out < 0) & updates]
        if len(new):
            self._table = table.grow(*self._table, self._used + len(new))
            self._used = table.insert(*self._table, new, np.empty(len(new), np.int32), self._used)
            self._grow()
            table.find(*self._table, hashes, out)
        return out

    def _grow(self) -> None:
        for name, (shape, kind, fill) in self._layout().items():
            old = self._arrays[name]
            if len(old) < self._used:
                new = np.full((max(2 * len(old), self._used), *shape), fill, kind)
                new[: len(old)] = old
                self._arrays[name] = new

    def _layout(self) -> dict[str, tuple[tuple[int, ...], type, float]]:
        """Name -> (shape of one slot, type, what an empty slot holds)."""
        layout: dict[str, tuple[tuple[int, ...], type, float]] = {}
        for j, feature in enumerate(self._group.features):
            if isinstance(feature, Window):
                over = seconds(feature.over)
                ring = (over // tile_seconds(over) + 1,)
                layout[f"{j}.newest"] = ((), np.int64, windows.NEVER)
                layout[f"{j}.ids"] = (ring, np.int64, windows.NEVER)
                layout[f"{j}.count"] = (ring, np.int64, 0)
                layout |= {f"{j}.{name}": (ring, np.float64, 0.0) for name in ("total", "low", "high")}
            else:
                layout[f"{j}.seen_at"] = ((len(feature.values),), np.int64, windows.NEVER)
                layout[f"{j}.seen"] = ((len(feature.values),), np.float64, np.nan)
        return layout
