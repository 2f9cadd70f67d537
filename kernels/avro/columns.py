"""From a binary column of messages to Arrow columns of values: the kernel first, the definition for what it leaves."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from kernels.avro.cpu import heads, scan
from kernels.avro.naive import parse
from kernels.avro.program import Code
from kernels.avro.writer import Type
from kernels.flat_json import Field
from kernels.flat_json.columns import Columns
from kernels.flat_json.layout import Layout, buffers
from kernels.flat_json.naive import Fault


class Reader:
    """Reads messages by a list of fields. Keeps the program of each writer's schema that it met; for one thread at a time."""

    def __init__(self, fields: Sequence[Field], max_bytes: int, find: Callable[[int], Type | Fault]) -> None:
        """find: the schema with an id, asked once for each that there is, or why messages with that id are refused."""
        self.fields, self.max_bytes = tuple(fields), max_bytes
        self._find = find
        self._layout = Layout(fields)
        self._wide_at = np.cumsum([0, *(field.width for field in fields)]).astype(np.int32)
        self._code = Code(fields)
        self._arrays = self._code.arrays()
        self._programs: dict[int, tuple[int, Type]] = {}

    def read(self, messages: pa.Array) -> Columns:
        """messages: binary [n], nulls and slices allowed. Raises what `find` raises; no message is taken then."""
        n = len(messages)
        data, offsets, present = buffers(messages)
        ids = np.empty(n, np.int64)
        heads(data, offsets, present, self.max_bytes, ids)
        which = np.full(n, -1, np.int32)
        writers: dict[int, Type | Fault] = {}
        for id in _distinct(ids):
            program, writers[id] = self._writer(id)
            if program >= 0:
                which[ids == id] = program
        rows = self._layout.rows(n)
        wide = np.zeros((n, int(self._wide_at[-1])), np.float32)
        for f, _ in self._layout.vectors:
            rows.matrices[f] = wide[:, self._wide_at[f] : self._wide_at[f + 1]]
        scan(
            data, offsets, which, *self._arrays, self._wide_at, *self._layout.arguments,
            rows.wholes, rows.floats, rows.codes, rows.starts, rows.lengths, wide, rows.valid, rows.rare,
        )  # fmt: skip
        for f, _ in self._layout.vectors:
            rows.matrices[f][~rows.valid[f, :n]] = 0
        faults = rows.complete(
            lambda i: parse(messages[i].as_py(), self.fields, self.max_bytes, writers.__getitem__),
            bytearray(self._code.symbols),
        )
        return Columns(rows.arrays(data), faults)

    def _writer(self, id: int) -> tuple[int, Type | Fault]:
        known = self._programs.get(id)
        if known is not None:
            return known
        found = self._find(id)
        if isinstance(found, Fault):
            return -1, found
        self._programs[id] = made = self._code.add(found), found
        self._arrays = self._code.arrays()
        return made


def _distinct(ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[int]:
    if not len(ids):
        return []
    low, high = int(ids.min()), int(ids.max())
    some = [low] if low == high else np.unique(ids).tolist()
    return [id for id in some if id >= 0]
