"""From a binary column of messages to Arrow columns of values: the kernel first, the definition for what it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kernels.flat_json import Field
from kernels.flat_json.cpu import scan
from kernels.flat_json.layout import Layout, buffers, words
from kernels.flat_json.naive import Fault, parse
from kernels.float_list.cpu import lists


@dataclass(frozen=True, slots=True)
class Columns:
    """values: an array [n] per field, null or zero where a message is refused. faults: the refused messages by their place."""

    values: list[pa.Array]
    faults: dict[int, Fault]


class Reader:
    """Reads messages by a list of fields.

    Objects in objects are left to the definition altogether. What it keeps between calls is which field came after which; it is
    a hint, so that threads may share a reader.
    """

    def __init__(self, fields: Sequence[Field], max_bytes: int) -> None:
        self.fields, self.max_bytes = tuple(fields), max_bytes
        self._layout = layout = Layout(fields)
        self._memo = np.full((len(layout.kind_at), len(self.fields) + 1), -1, np.int32)
        steps = [field.steps for field in fields]
        self._nested = any(len(path) > 1 for path in steps) or len(set(steps)) < len(steps)
        self._names = words([path[0] for path in steps])

    def read(self, messages: pa.Array) -> Columns:
        """messages: binary [n], nulls and slices allowed."""
        layout = self._layout
        data, offsets, present = buffers(messages)
        rows = layout.rows(len(messages))
        if self._nested:
            rows.rare[:] = True
            faults = rows.complete(lambda i: parse(messages[i].as_py(), self.fields, self.max_bytes))
            return Columns(rows.arrays(data), faults)
        scan(
            data, offsets, present, self.max_bytes, *self._names, *layout.arguments, self._memo,
            rows.wholes, rows.floats, rows.codes, rows.starts, rows.lengths, rows.valid, rows.rare,
        )  # fmt: skip
        for f, field in layout.vectors:
            place = rows.starts[layout.slots[f]], rows.lengths[layout.slots[f]]
            lists(data, *place, rows.valid[f, : rows.n], field.as_text, field.low, field.high, rows.matrices[f], rows.rare)
        faults = rows.complete(lambda i: parse(messages[i].as_py(), self.fields, self.max_bytes))
        return Columns(rows.arrays(data), faults)
