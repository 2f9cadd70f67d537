"""Derived features: numbers made by expressions from the event, from the other features, and from one another in order."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.expressions import BOOL, DOUBLE, Expression, compile_expression
from features.spec import Derived, Feature, Last, Stored, Window

STORED_NAME = re.compile(r"\b[^\W\d]\w*?__\w+\b")


def compile_derived(
    features: Sequence[Feature], columns: pa.Schema, stored: Sequence[str] | None
) -> tuple[tuple[str, Expression], ...]:
    """Each Derived with its expression compiled over the event's columns, all stored and streaming features, and the Derived
    before it. A feature comes before a column of the same name.

    stored: the names of the stored features; None where they are not known yet: then any name like theirs ("view__feature")
    is taken for one, if the pipeline has any. Raises ValueError, naming the feature, as `compile_expression` does.
    """
    known = {name: DOUBLE for feature in features if isinstance(feature, Window | Last) for name in feature.names}
    has_stored = any(isinstance(feature, Stored) for feature in features)
    made = []
    for feature in features:
        if not isinstance(feature, Derived):
            continue
        names = stored if stored is not None else STORED_NAME.findall(feature.expression) if has_stored else ()
        seen = {field.name: field.type for field in columns} | dict.fromkeys(names, pa.float32()) | known
        try:
            expression = compile_expression(feature.expression, pa.schema(list(seen.items())))
        except ValueError as error:
            raise ValueError(f"feature {feature.name}: {error}") from None
        made.append((feature.name, expression))
        known[feature.name] = expression.type
    return tuple(made)


class Seen:
    """A batch of n rows together with numbers [n] by name (NaN for null), as Arrow columns; the numbers come first."""

    def __init__(self, batch: pa.RecordBatch, numbers: Mapping[str, npt.NDArray[Any]]) -> None:
        self.num_rows: int = batch.num_rows
        self._batch = batch
        self._numbers = numbers
        self._made: dict[str, pa.Array] = {}

    def column(self, name: str) -> pa.Array:
        """A column by name. Raises KeyError where there is none."""
        found = self._made.get(name)
        if found is None:
            numbers = self._numbers.get(name)
            found = self._batch.column(name) if numbers is None else pa.array(numbers, from_pandas=True)
            self._made[name] = found
        return found

    def add(self, name: str, column: pa.Array) -> None:
        """Adds a column."""
        self._made[name] = column


def evaluate(
    derived: Sequence[tuple[str, Expression]], batch: pa.RecordBatch, numbers: Mapping[str, npt.NDArray[Any]]
) -> dict[str, pa.Array]:
    """The derived columns [n] by name. numbers: stored and streaming features [n] by name, NaN for null."""
    seen = Seen(batch, numbers)
    columns = {}
    for name, expression in derived:
        columns[name] = expression(seen)
        seen.add(name, columns[name])
    return columns


def numbers_of(column: pa.Array) -> npt.NDArray[Any]:
    """A derived column as numbers, a condition as 0 and 1: with NaN for null, if there are any."""
    if column.type == BOOL:
        column = column.cast(pa.int8())
    return np.asarray(column.to_numpy(zero_copy_only=False))
