"""Where a kernel puts the values of the fields of n messages, and the Arrow columns that are made of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kernels.flat_json import Field
from kernels.flat_json.cpu import INTEGER, KIND, NUMBER, TEXT, TIME, VECTOR, VECTOR_TEXT, gather
from kernels.flat_json.naive import Fault, Value

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]
BOOL = npt.NDArray[np.bool_]
TYPES = ("text", "number", "integer", "time", "kind", "vector")
STORES = {INTEGER: TIME, VECTOR_TEXT: VECTOR}
FLOAT32 = pa.float32()
STORED = {NUMBER: pa.float64(), TIME: pa.timestamp("us", tz="UTC")}
NO_BYTES = np.empty(0, np.uint8)
ALL = np.empty(0, np.bool_)


class Layout:
    """What a kernel is told of fields, and in which row of the arrays for its type each field is.

    arguments: types int8 [F], slots int32 [F], bounds low and high float64 [F] and whole_low and whole_high int64 [F], kinds
    and kind_at [K + 1], on and required bool [max(K, 1), F]. vectors: the vector fields and their places.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        values = next((field.values for field in fields if field.type == "kind"), ())
        shape = max(len(values), 1), len(self.fields)
        types = np.array([VECTOR_TEXT if field.as_text else TYPES.index(field.type) for field in fields], np.int8)
        self.types: list[int] = types.tolist()
        on = np.array([[not field.on or kind in field.on for field in fields] for kind in range(shape[0])]).reshape(shape)
        required = on & ~np.array([field.optional for field in fields], np.bool_)
        self.nullable: list[bool] = (~np.all(required, axis=0)).tolist()
        stores = [STORES.get(kind, kind) for kind in self.types]
        self.slots = [stores[:place].count(store) for place, store in enumerate(stores)]
        self.counts = tuple(stores.count(store) for store in (TIME, NUMBER, TEXT, VECTOR))
        self.vectors = [(f, field) for f, field in enumerate(fields) if field.type == "vector"]
        for f, _ in self.vectors:
            self.slots[f] += self.counts[2]
        self.lists = {f: pa.list_(FLOAT32, field.width) for f, field in self.vectors}
        self.dictionary = pa.array(values, pa.string())
        word = [(field.type == "integer") or (field.type in ("time", "text")) for field in fields]
        kinds, self.kind_at = words(values)
        self.arguments = (
            types,
            np.array(self.slots, np.int32),
            np.array([max(field.low, -np.finfo(np.float64).max) for field in fields], np.float64),
            np.array([min(field.high, np.finfo(np.float64).max) for field in fields], np.float64),
            np.array([_whole(field.low) if whole else 0 for field, whole in zip(fields, word, strict=True)], np.int64),
            np.array([_whole(field.high) if whole else 0 for field, whole in zip(fields, word, strict=True)], np.int64),
            kinds,
            self.kind_at,
            on,
            required,
        )

    def rows(self, n: int) -> "Rows":
        """Room for n messages."""
        return Rows(self, n)


class Rows:
    """Room for the values of n messages, zero and invalid at first; m is n, rounded up to whole bytes of bits.

    wholes int64 [*, m] (integers; times in microseconds), floats float64 [*, m], codes int8 [m] (kinds), starts and lengths
    int32 [*, n] (texts, and what a kernel says of vectors), valid bool [F, m], matrices: float32 [n, width] of each vector
    field. rare bool [n]: what the kernel left.
    """

    def __init__(self, layout: Layout, n: int) -> None:
        self.layout, self.n = layout, n
        width = (n + 7) // 8 * 8
        wholes, numbers, texts, vectors = layout.counts
        self._words = np.zeros((wholes + numbers, width), np.int64)
        self.wholes = self._words[:wholes]
        self.floats = self._words[wholes:].view(np.float64)
        self.codes = np.zeros(width, np.int8)
        self.starts, self.lengths = np.zeros((2, texts + vectors, n), np.int32)
        self.valid = np.zeros((len(layout.fields), width), np.bool_)
        self.rare = np.empty(n, np.bool_)
        self.matrices: dict[int, F32] = {f: np.empty((n, field.width), np.float32) for f, field in layout.vectors}

    def complete(self, parse: Callable[[int], list[Value] | Fault], side: bytearray | None = None) -> dict[int, Fault]:
        """Puts what `parse` makes of message i where the kernel left it; returns what it refuses."""
        self._side = bytearray() if side is None else side
        faults: dict[int, Fault] = {}
        for i in np.flatnonzero(self.rare).tolist():
            self._words[:, i], self.codes[i], self.lengths[:, i], self.valid[:, i] = 0, 0, 0, False
            for matrix in self.matrices.values():
                matrix[i] = 0
            row = parse(i)
            if isinstance(row, Fault):
                faults[i] = row
            else:
                self._put(i, row)
        return faults

    def _put(self, i: int, row: Sequence[Value]) -> None:
        for f, value in enumerate(row):
            if value is None:
                continue
            self.valid[f, i] = True
            slot, kind = self.layout.slots[f], self.layout.types[f]
            if isinstance(value, str):
                text = value.encode()
                self.starts[slot, i], self.lengths[slot, i] = -1 - len(self._side), len(text)
                self._side += text
            elif isinstance(value, list):
                self.matrices[f][i] = value
            elif kind == NUMBER:
                self.floats[slot, i] = value
            elif kind == KIND:
                self.codes[i] = value
            else:
                self.wholes[slot, i] = value

    def arrays(self, data: U8) -> list[pa.Array]:
        """A column for each field; call `complete` first. data: the bytes that the texts' starts are places in."""
        layout, n = self.layout, self.n
        wholes, _, texts, _ = layout.counts
        stride = self._words.shape[1] * 8
        numbers = pa.py_buffer(self._words)
        if texts:
            text_offsets = np.empty((texts, n + 1), np.int32)
            starts, lengths = self.starts[:texts], self.lengths[:texts]
            out = np.empty(int(lengths.sum()), np.uint8)
            side = np.frombuffer(self._side, np.uint8) if self._side else NO_BYTES
            gather(data, side, starts, lengths, text_offsets, out)
            text_bytes, offsets = pa.py_buffer(out), pa.py_buffer(text_offsets)
        bits = pa.py_buffer(np.packbits(self.valid, axis=1, bitorder="little"))
        arrays: list[Any] = []
        for f, (kind, slot) in enumerate(zip(layout.types, layout.slots, strict=True)):
            mask = bits.slice(f * stride // 64, stride // 64) if layout.nullable[f] else None
            if kind == TEXT:
                buffers = [mask, offsets.slice(slot * 4 * (n + 1), 4 * (n + 1)), text_bytes]
                arrays.append(pa.Array.from_buffers(pa.string(), n, buffers))
            elif f in self.matrices:
                matrix = self.matrices[f]
                items = pa.Array.from_buffers(FLOAT32, matrix.size, [None, pa.py_buffer(matrix)])
                arrays.append(pa.Array.from_buffers(layout.lists[f], n, [mask], children=[items]))
            elif kind == KIND:
                indices = pa.Array.from_buffers(pa.int8(), n, [mask, pa.py_buffer(self.codes)])
                arrays.append(pa.DictionaryArray.from_arrays(indices, layout.dictionary, safe=False))
            else:
                at = (slot + (wholes if kind == NUMBER else 0)) * stride
                arrays.append(pa.Array.from_buffers(STORED.get(kind, pa.int64()), n, [mask, numbers.slice(at, stride)]))
        return arrays


def buffers(messages: pa.Array) -> tuple[U8, I32, BOOL]:
    """The bytes, offsets [n + 1] and presence [n] ([0]: all are) of a binary column.

    Read-only, whatever Arrow's buffers are: else Numba compiles the kernel for each kind, in the middle of a stream.
    """
    _, offsets, data = messages.buffers()
    n = len(messages)
    places = np.frombuffer(offsets, np.int32, n + 1, messages.offset * 4) if n else np.zeros(1, np.int32)
    characters = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    places.flags.writeable = characters.flags.writeable = False
    present = ALL if messages.null_count == 0 else messages.is_valid().to_numpy(zero_copy_only=False)
    return characters, places, present


def words(texts: Sequence[str]) -> tuple[U8, I32]:
    """The texts' bytes one after the other, and where each begins [K + 1]."""
    encoded = [text.encode() for text in texts]
    places = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return np.frombuffer(b"".join(encoded), np.uint8), places


def _whole(bound: float) -> int:
    return int(min(max(bound, -(2**63) + 1), 2**63 - 1))
