"""From a binary column of messages to Arrow columns of values: the kernel first, the definition for what it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kernels.flat_json import Field
from kernels.flat_json.cpu import INTEGER, KIND, NUMBER, TEXT, TIME, VECTOR, VECTOR_TEXT, gather, scan
from kernels.flat_json.naive import Fault, Value, parse
from kernels.float_list.cpu import lists

F32 = npt.NDArray[np.float32]
TYPES = ("text", "number", "integer", "time", "kind", "vector")
STORES = {INTEGER: TIME, VECTOR_TEXT: VECTOR}
STORED = {NUMBER: pa.float64(), TIME: pa.timestamp("us", tz="UTC")}
NO_BYTES = np.empty(0, np.uint8)
ALL = np.empty(0, np.bool_)


@dataclass(frozen=True, slots=True)
class Columns:
    """values: an array [n] per field, null or zero where a message is refused. faults: the refused messages by their place."""

    values: list[pa.Array]
    faults: dict[int, Fault]


class Reader:
    """Reads messages by a list of fields.

    What it keeps between calls is which field came after which; it is a hint, so that threads may share a reader.
    """

    def __init__(self, fields: Sequence[Field], max_bytes: int) -> None:
        self.fields, self.max_bytes = tuple(fields), max_bytes
        values = next((field.values for field in fields if field.type == "kind"), ())
        shape = max(len(values), 1), len(self.fields)
        types = np.array([VECTOR_TEXT if field.as_text else TYPES.index(field.type) for field in fields], np.int8)
        self._types = types.tolist()
        self._on = np.array([[not field.on or kind in field.on for field in fields] for kind in range(shape[0])]).reshape(shape)
        required = self._on & ~np.array([field.optional for field in fields], np.bool_)
        self._nullable = (~np.all(required, axis=0)).tolist()
        stores = [STORES.get(kind, kind) for kind in self._types]
        self._slots = [stores[:place].count(store) for place, store in enumerate(stores)]
        self._counts = tuple(stores.count(store) for store in (TIME, NUMBER, TEXT, VECTOR))
        self._vectors = [(f, field) for f, field in enumerate(fields) if field.type == "vector"]
        for f, _ in self._vectors:
            self._slots[f] += self._counts[2]
        self._dictionary = pa.array(values, pa.string())
        words = [(field.type == "integer") or (field.type in ("time", "text")) for field in fields]
        self._layout = (
            *_words([field.name for field in fields]),
            types,
            np.array(self._slots, np.int32),
            np.array([max(field.low, -np.finfo(np.float64).max) for field in fields], np.float64),
            np.array([min(field.high, np.finfo(np.float64).max) for field in fields], np.float64),
            np.array([_whole(field.low) if word else 0 for field, word in zip(fields, words, strict=True)], np.int64),
            np.array([_whole(field.high) if word else 0 for field, word in zip(fields, words, strict=True)], np.int64),
            *_words(values),
            self._on,
            required,
            np.full((len(values) + 1, len(self.fields) + 1), -1, np.int32),
        )

    def read(self, messages: pa.Array) -> Columns:
        """messages: binary [n], nulls and slices allowed."""
        n = len(messages)
        data, offsets = _buffers(messages)
        present = ALL if messages.null_count == 0 else messages.is_valid().to_numpy(zero_copy_only=False)
        width = (n + 7) // 8 * 8
        wholes, numbers, texts, vectors = self._counts
        words = np.zeros((wholes + numbers, width), np.int64)
        floats = words[wholes:].view(np.float64)
        codes = np.zeros(width, np.int8)
        starts, lengths = np.zeros((2, texts + vectors, n), np.int32)
        valid = np.zeros((len(self.fields), width), np.bool_)
        rare = np.empty(n, np.bool_)
        scan(data, offsets, present, self.max_bytes, *self._layout, words[:wholes], floats, codes, starts, lengths, valid, rare)
        matrices: dict[int, F32] = {}
        for f, field in self._vectors:
            matrices[f] = np.empty((n, field.width), np.float32)
            place = starts[self._slots[f]], lengths[self._slots[f]]
            lists(data, *place, valid[f, :n], field.as_text, field.low, field.high, matrices[f], rare)

        faults: dict[int, Fault] = {}
        side = bytearray()
        for i in np.flatnonzero(rare).tolist():
            words[:, i], codes[i], lengths[:, i], valid[:, i] = 0, 0, 0, False
            for matrix in matrices.values():
                matrix[i] = 0
            row = parse(messages[i].as_py(), self.fields, self.max_bytes)
            if isinstance(row, Fault):
                faults[i] = row
            else:
                self._put(i, row, words[:wholes], floats, codes, starts, lengths, valid, matrices, side)
        return Columns(self._arrays(n, data, side, words, codes, starts, lengths, valid, matrices), faults)

    def _put(
        self,
        i: int,
        row: Sequence[Value],
        whole: npt.NDArray[np.int64],
        floats: npt.NDArray[np.float64],
        codes: npt.NDArray[np.int8],
        starts: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int32],
        valid: npt.NDArray[np.bool_],
        matrices: dict[int, F32],
        side: bytearray,
    ) -> None:
        for f, value in enumerate(row):
            if value is None:
                continue
            valid[f, i] = True
            slot, kind = self._slots[f], self._types[f]
            if isinstance(value, str):
                text = value.encode()
                starts[slot, i], lengths[slot, i] = -1 - len(side), len(text)
                side += text
            elif isinstance(value, list):
                matrices[f][i] = value
            elif kind == NUMBER:
                floats[slot, i] = value
            elif kind == KIND:
                codes[i] = value
            else:
                whole[slot, i] = value

    def _arrays(
        self,
        n: int,
        data: npt.NDArray[np.uint8],
        side: bytearray,
        words: npt.NDArray[np.int64],
        codes: npt.NDArray[np.int8],
        starts: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int32],
        valid: npt.NDArray[np.bool_],
        matrices: dict[int, F32],
    ) -> list[pa.Array]:
        wholes, _, texts, _ = self._counts
        stride = words.shape[1] * 8
        numbers = pa.py_buffer(words)
        if texts:
            text_offsets = np.empty((texts, n + 1), np.int32)
            starts, lengths = starts[:texts], lengths[:texts]
            out = np.empty(int(lengths.sum()), np.uint8)
            gather(data, np.frombuffer(side, np.uint8) if side else NO_BYTES, starts, lengths, text_offsets, out)
            text_bytes, offsets = pa.py_buffer(out), pa.py_buffer(text_offsets)
        bits = pa.py_buffer(np.packbits(valid, axis=1, bitorder="little"))
        arrays: list[Any] = []
        for f, (kind, slot) in enumerate(zip(self._types, self._slots, strict=True)):
            mask = bits.slice(f * stride // 64, stride // 64) if self._nullable[f] else None
            if kind == TEXT:
                buffers = [mask, offsets.slice(slot * 4 * (n + 1), 4 * (n + 1)), text_bytes]
                arrays.append(pa.Array.from_buffers(pa.string(), n, buffers))
            elif f in matrices:
                items = pa.array(matrices[f].ravel())
                listed = pa.list_(pa.float32(), self.fields[f].width)
                arrays.append(pa.Array.from_buffers(listed, n, [mask], children=[items]))
            elif kind == KIND:
                indices = pa.Array.from_buffers(pa.int8(), n, [mask, pa.py_buffer(codes)])
                arrays.append(pa.DictionaryArray.from_arrays(indices, self._dictionary, safe=False))
            else:
                at = (slot + (wholes if kind == NUMBER else 0)) * stride
                arrays.append(pa.Array.from_buffers(STORED.get(kind, pa.int64()), n, [mask, numbers.slice(at, stride)]))
        return arrays


def _buffers(messages: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Read-only, whatever Arrow's buffers are: else Numba compiles the kernel for each kind, in the middle of a stream."""
    _, offsets, data = messages.buffers()
    n = len(messages)
    places = np.frombuffer(offsets, np.int32, n + 1, messages.offset * 4) if n else np.zeros(1, np.int32)
    characters = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    places.flags.writeable = characters.flags.writeable = False
    return characters, places


def _words(words: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    encoded = [word.encode() for word in words]
    places = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return np.frombuffer(b"".join(encoded), np.uint8), places


def _whole(bound: float) -> int:
    return int(min(max(bound, -(2**63) + 1), 2**63 - 1))
