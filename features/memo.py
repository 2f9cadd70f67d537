"""A batch that is looked at by many: what one of them has found, the others need not look for again."""

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Memo:
    """A record batch of n rows with a memory. Of a batch of a few rows the looking is most of the work."""

    __slots__ = ("_known", "batch", "num_rows")

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.num_rows: int = batch.num_rows
        self._known: dict[Hashable, Any] = {}

    def column(self, name: str) -> Any:
        """A column by name. Raises KeyError where there is none."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self.batch.column(name)
        return found

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned when it was first asked for by this key, a tuple; strings are columns."""
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return found

    def microseconds(self, name: str) -> npt.NDArray[np.int64]:
        """A column of timestamp[us] without nulls as int64 [n]."""
        return self.once((name, "us"), lambda: microseconds(self.column(name)))


def microseconds(column: pa.Array) -> npt.NDArray[np.int64]:
    """A timestamp[us] column without nulls as int64."""
    return column.view(pa.int64()).to_numpy()
