"""Streaming features: a batch is cut to what a group of features needs, and a shard's state turns the cut into columns.

A group is all streaming features of one entity. `Cutter` makes the cut: the rows that update or read the group, with
the entity's hash, the time and the values, which can be split by hash and sent to other processes. `State` (features/state.py)
is what a shard knows of a group; `State.update` returns the features of the rows that read. Training and serving both go
through these two and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.expressions import compile_expression, mask
from features.memo import Memo, microseconds
from features.spec import Input, Last, Streaming, Window
from kernels.hashing.cpu import hash_column

READ = np.uint32(1)
MOST_CONDITIONS = 31


@dataclass(frozen=True)
class Group:
    """The streaming features of one entity."""

    entity: str
    features: tuple[Streaming, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for feature in self.features for name in feature.names)

    @property
    def conditions(self) -> list[str]:
        """The different conditions, in order of first appearance."""
        return list(dict.fromkeys(feature.where for feature in self.features))

    @property
    def inputs(self) -> list[Input]:
        """The different values, in order of first appearance."""
        return list(dict.fromkeys(each for feature in self.features for each in feature.inputs))


def groups(features: Sequence[Any]) -> tuple[Group, ...]:
    """The streaming features among `features`, by entity in order of first appearance."""
    by_entity: dict[str, list[Streaming]] = {}
    for feature in features:
        if isinstance(feature, Window | Last):
            by_entity.setdefault(feature.entity, []).append(feature)
    return tuple(Group(entity, tuple(members)) for entity, members in by_entity.items())


class Cut(NamedTuple):
    """What a group needs of n rows of a batch, with v values, and k columns that order rows of one time.

    Plain arrays, since it is made and read for every batch. Rows without bits are not the group's.
    """

    row: npt.NDArray[np.int32]  # [n], the row among those of the batch that read
    hash: npt.NDArray[np.uint64]  # [n], the entity; 0 where there is none, and then no bits
    time: npt.NDArray[np.int64]  # [n], microseconds
    bits: npt.NDArray[np.uint32]  # [n], bit 0: reads, bit c + 1: the group's condition c holds
    values: npt.NDArray[np.float64]  # [v, n], the group's inputs, NaN: null, or where no feature takes it
    ties: npt.NDArray[np.int64]  # [k, n]

    def take(self, rows: npt.NDArray[np.int64]) -> "Cut":
        """These rows, in this order."""
        arrays: list[Any] = [array[..., rows] for array in self]
        return Cut(*arrays)

    @property
    def own(self) -> "Cut":
        """The group's rows alone."""
        return self.take(np.flatnonzero(self.bits))

    @property
    def reads(self) -> npt.NDArray[np.bool_]:
        """bool [n]: which rows read."""
        return (self.bits & READ).astype(np.bool_)


def joined(cuts: Sequence[Cut]) -> Cut:
    """Several cuts as one, in this order."""
    return cuts[0] if len(cuts) == 1 else Cut(*(np.concatenate(arrays, axis=-1) for arrays in zip(*cuts, strict=True)))


class Cutter:
    """Cuts batches for a group."""

    def __init__(self, group: Group, columns: pa.Schema, time: str, ties: Sequence[str] = ()) -> None:
        """Raises ValueError, naming the feature, for an entity, value or condition that the columns do not have, and for names
        that are not different."""
        self.group = group
        self._time = time
        self._ties = ties
        if len(set(group.names)) < len(group.names):
            twice = next(name for name in group.names if group.names.count(name) > 1)
            raise ValueError(f"feature {twice}: expected one of this name, got two: give one of them another by name=")
        conditions = group.conditions
        if len(conditions) > MOST_CONDITIONS:
            raise ValueError(f"entity {group.entity}: expected at most {MOST_CONDITIONS} conditions, got {len(conditions)}")
        for feature in group.features:
            if feature.entity not in columns.names:
                known = ", ".join(columns.names)
                raise ValueError(f"feature {feature.names[0]}: no column {feature.entity}, expected one of {known}")
            for each in feature.inputs:
                _checked(feature.names[0], each, compile_expression(each.value, columns).type)
        self._wheres = [compile_expression(where, columns) for where in conditions]
        self._inputs = []
        for each in group.inputs:
            takers = {conditions.index(feature.where) for feature in group.features if each in feature.inputs}
            self._inputs.append((compile_expression(each.value, columns), each.kind == "code", takers))

    def __call__(self, batch: Memo, reads: npt.NDArray[np.bool_], hashed: npt.NDArray[np.uint64] | None = None) -> Cut:
        """The cut of n decoded rows. reads: bool [n], the rows that will read the group's features; hashed: uint64 [n], the
        entity's hashes, if they are known."""
        entity = batch.column(self.group.entity)
        hashes = hash_column(entity) if hashed is None else hashed
        bits = reads.astype(np.uint32)
        held = set()
        for c, where in enumerate(self._wheres):
            fires = mask(where, batch)
            if fires.any():
                held.add(c)
                bits |= fires.astype(np.uint32) << (c + 1)
        if entity.null_count:
            bits[hashes == 0] = 0
        n = batch.num_rows
        values = np.empty((len(self._inputs), n))
        for k, (value, coded, takers) in enumerate(self._inputs):
            values[k] = np.nan if held.isdisjoint(takers) else codes(value(batch)) if coded else floats(value(batch))
        row = batch.once(("row", id(reads)), lambda: np.cumsum(reads, dtype=np.int32) - np.int32(1))
        ties = np.empty((len(self._ties), n), np.int64)
        for k, name in enumerate(self._ties):
            ties[k] = _ranks(batch.column(name))
        return Cut(row, hashes, batch.microseconds(self._time), bits, values, ties)


def event_order(batch: pa.RecordBatch, time: str, ties: Sequence[str]) -> npt.NDArray[np.int64]:
    """The permutation [n] that puts rows in the order of time, then of ties, then as they stand."""
    return np.lexsort([*(_ranks(batch[name]) for name in reversed(ties)), microseconds(batch[time])])


def _ranks(column: pa.Array) -> npt.NDArray[np.int64]:
    """Integers as they are, dictionaries by code; null before all."""
    values = column.indices if pa.types.is_dictionary(column.type) else column
    return pc.fill_null(values.cast(pa.int64()), -(2**63)).to_numpy(zero_copy_only=False)


def floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """A column as float64, null as NaN; of texts only whether they are there, 1."""
    if column.type != pa.float64():
        if not _number(column.type):
            return np.where(column.is_valid().to_numpy(zero_copy_only=False), 1.0, np.nan)
        if column.null_count == 0 and not pa.types.is_boolean(column.type):
            return column.to_numpy().astype(np.float64)  # a tenth of a cast, of a few rows
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)


def codes(column: pa.Array) -> npt.NDArray[np.float64]:
    """52 bits of a hash of each value as a whole number, null as NaN: what tells values apart."""
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        column = pa.array(floats(column) + 0.0, from_pandas=True).view(pa.int64())
    hashes = hash_column(column)
    return np.where(hashes == 0, np.nan, (hashes >> np.uint64(12)).astype(np.float64))


def _number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _checked(feature: str, each: Input, kind: pa.DataType) -> None:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_number(plain) or (each.kind != "number" and (pa.types.is_string(plain) or pa.types.is_binary(plain)))):
        wanted = "a number" if each.kind == "number" else "a number or a text"
        raise ValueError(f"feature {feature}: expected {each.value} to be {wanted}, got {kind}")
