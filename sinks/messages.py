"""The messages a job writes, the protocol of what takes them, and their encoders. docs/asyncapi.yaml describes the JSON.

The encoders work on whole columns: each column becomes fragments of JSON text, and all fragments of a row are joined in one
Arrow call. A column that is the same in every row becomes part of the constant text between the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

TEXT = pa.string()
EPOCH = datetime(1970, 1, 1)
YEAR_1 = -62_135_596_800_000_000
YEAR_10000 = 253_402_300_800_000_000
TIME_WIDTH = len("2013-01-01 10:15:00.000000")

Piece: TypeAlias = "pa.Array | str"


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages for one topic, in order. keys[i] (None: no key) and values[i] belong to message i."""

    topic: str
    keys: list[bytes | None]
    values: list[bytes]


class DeliveryError(RuntimeError):
    """Messages of a topic were not delivered: how many (at least), and the first reason."""

    def __init__(self, topic: str, count: int, reason: str) -> None:
        super().__init__(f"sink: expected every message delivered, got {count} failed on {topic}: {reason}")
        self.topic, self.count, self.reason = topic, count, reason


class Sink(Protocol):
    """Where messages go. One sink per worker, used by the dataflow's thread alone.

    Once a delivery has failed, every later call of write and flush raises DeliveryError: the job stops, and what was not
    confirmed is decided again from the last durable position.
    """

    def write(self, messages: Messages) -> None:
        """Takes messages over; called for each batch as soon as it is decided. May return before they are delivered.

        Raises DeliveryError when a message, of these or of an earlier call, is known to have failed.
        """

    def flush(self) -> None:
        """Returns when every message taken over is confirmed; called at the end of each epoch, before it becomes durable.

        Raises DeliveryError when one failed, or is not confirmed within the sink's time-out: the epoch never becomes durable.
        """

    def close(self) -> None:
        """Lets go of connections; called once when the job ends, also after a failure. Confirms nothing, raises nothing."""


def encode_decisions(batch: pa.RecordBatch, topic: str, features: Sequence[str] = ()) -> Messages:
    """Decisions as JSON, one message per row, with the event's own key.

    batch: _key binary; decision_id string; event_id int64 or string; decision, model string or dictionary; score float
    (null or NaN: null); reasons, flags list<string>; model_version, schema_version int; event_time, decided_at
    timestamp[us, UTC]. `features` names columns that are written as an object "features", null where missing.
    """
    fields: list[Piece] = []
    for name in ("decision_id", "event_id", "decision", "score", "reasons", "model", "model_version", "flags"):
        fields += _field(name, batch[name])
    for name in ("event_time", "decided_at", "schema_version"):
        fields += _field(name, batch[name])
    if features:
        fields += [',"features":{', *_without_comma([piece for name in features for piece in _field(name, batch[name])]), "}"]
    return Messages(topic, batch["_key"].to_pylist(), _objects(fields, batch.num_rows))


def encode_dead(batch: pa.RecordBatch, topic: str, source_topic: str) -> Messages:
    """Dead letters as JSON, one message per row, with the key of the message they are about.

    batch: code, reason, sha256 string; _key binary; value binary, the message's bytes or the first of them (null: it had no
    value); size int64, how many there were; _partition, _offset, the position in `source_topic`.
    """
    value = batch["value"]
    fields = [
        *_field("code", batch["code"]),
        *_field("reason", batch["reason"]),
        f',"topic":{orjson.dumps(source_topic).decode()}',
        *_field("partition", batch["_partition"]),
        *_field("offset", batch["_offset"]),
        *_field("key_base64", _base64(batch["_key"])),
        *_field("value_base64", _base64(value)),
        *_field("size", batch["size"]),
        *_field("sha256", batch["sha256"]),
        *_field("truncated", pc.less(pc.fill_null(pc.binary_length(value), 0), batch["size"])),
    ]
    return Messages(topic, batch["_key"].to_pylist(), _objects(fields, batch.num_rows))


def encode_drift(batch: pa.RecordBatch, topic: str) -> Messages:
    """Drift reports as JSON, one message per window, feature and statistic, keyed by feature (no key: the whole window).

    batch: pipeline, statistic string; feature string or null; window_start, window_end timestamp[us, UTC]; value, threshold
    float64 (null or NaN: null); alarmed bool; rows int64.
    """
    fields: list[Piece] = []
    for name in ("pipeline", "window_start", "window_end", "feature", "statistic", "value", "threshold", "alarmed", "rows"):
        fields += _field(name, batch[name])
    return Messages(topic, batch["feature"].cast(pa.binary()).to_pylist(), _objects(fields, batch.num_rows))


def _field(name: str, column: pa.Array) -> list[Piece]:
    return [f",{orjson.dumps(name).decode()}:", *_json(name, column)]


def _without_comma(pieces: list[Piece]) -> list[Piece]:
    return [str(pieces[0])[1:], *pieces[1:]]


def _objects(pieces: list[Piece], rows: int) -> list[bytes]:
    """One JSON object per row; each piece is one text for all rows or one per row, and the first begins with a comma."""
    joined: list[Piece] = ["{"]
    for piece in [*_without_comma(pieces), "}"]:
        if isinstance(piece, str) and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    if len(joined) == 1:
        return [str(joined[0]).encode()] * rows
    if rows == 1:
        return ["".join(piece if isinstance(piece, str) else piece[0].as_py() for piece in joined).encode()]
    values: list[bytes] = pc.binary_join_element_wise(*joined, "").cast(pa.binary()).to_pylist()
    return values


def _json(name: str, column: pa.Array) -> list[Piece]:
    """A column as JSON text, null for nulls. Raises TypeError for a type that has no form here."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        words = [orjson.dumps(word).decode() for word in column.dictionary.to_pylist()]
        if _constant(column.indices):
            return [words[column.indices[0].as_py()]]
        return [_nullable(pa.array(words, TEXT).take(column.indices))]
    if len(column) == 1 and (pa.types.is_string(kind) or pa.types.is_list(kind)):
        only = column[0].as_py()
        return [orjson.dumps([] if only is None and pa.types.is_list(kind) else only).decode()]
    if pa.types.is_string(kind):
        return ['"', _escaped(column), '"'] if column.null_count == 0 else [_nullable(_quoted(column))]
    if pa.types.is_list(kind):
        return ["[", *_listed(column), "]"]
    if pa.types.is_floating(kind):
        return _floats(column)
    if pa.types.is_integer(kind):
        return [str(column[0])] if _constant(column) else [_nullable(column.cast(TEXT))]
    if pa.types.is_boolean(kind):
        return [_nullable(column.cast(TEXT))]
    if pa.types.is_timestamp(kind):
        return _times(name, column)
    raise TypeError(f"sink/encode: expected a column of text, numbers, times or lists of text, got {kind} at {name}")


def _constant(column: pa.Array) -> bool:
    """Whether the values of a column of whole bytes are all the same; never for a column that is empty or has nulls."""
    if len(column) == 0 or column.null_count:
        return False
    width = column.type.bit_width // 8
    values = np.frombuffer(column.buffers()[1], f"i{width}", len(column), column.offset * width)
    return bool(values[0] == values[-1] and (values == values[0]).all())


def _floats(column: pa.Array) -> list[Piece]:
    finite = np.isfinite(column.to_numpy(zero_copy_only=False))
    if not finite.all():
        column = pc.if_else(pa.array(finite), column, pa.scalar(None, column.type))
    return [_nullable(column.cast(TEXT))]


def _times(name: str, column: pa.Array) -> list[Piece]:
    """RFC 3339 in UTC with microseconds, from timestamps in microseconds. Raises ValueError for a year past 9999."""
    if column.type.unit != "us":
        raise TypeError(f"sink/encode: expected times in microseconds, got {column.type} at {name}")
    if _constant(column):
        microseconds = column[0].value
        if not YEAR_1 <= microseconds < YEAR_10000:
            raise ValueError(f"sink/encode: expected a time in the years 1 to 9999, got {microseconds} µs at {name}")
        return [f'"{(EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")}Z"']
    text = column.view(pa.timestamp("us")).cast(TEXT)
    bitmap, offsets, data = text.buffers()
    used = np.frombuffer(offsets, np.int32, len(column) + 1)[-1] if len(column) else 0
    characters = np.frombuffer(data, np.uint8, used).copy() if used else np.empty(0, np.uint8)
    if used != TIME_WIDTH * (len(column) - column.null_count):
        raise ValueError(f"sink/encode: expected a time in the years 1 to 9999, got another at {name}")
    characters[10::TIME_WIDTH] = ord("T")
    text = pa.Array.from_buffers(TEXT, len(column), [bitmap, offsets, pa.py_buffer(characters)])
    if column.null_count:
        return [_nullable(pc.binary_join_element_wise('"', text, 'Z"', ""))]
    return ['"', text, 'Z"']


def _listed(column: pa.Array) -> list[Piece]:
    """Each list's items quoted and joined by commas; a null list is an empty one."""
    starts = column.offsets
    ends = starts.to_numpy()
    if ends[0] == ends[-1]:
        return [""]
    if column.null_count == 0 and (ends[1:] > ends[:-1]).all():
        items = _escaped(column.values.slice(ends[0], ends[-1] - ends[0]))
        return ['"', _joined(ends, items, '","'), '"']
    items = _nullable(_quoted(column.values.slice(ends[0], ends[-1] - ends[0])))
    return [_joined(ends, items, ",")]


def _joined(ends: npt.NDArray[np.int32], items: pa.Array, separator: str) -> pa.Array:
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ends - ends[0]), items), separator)


def _quoted(column: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', _escaped(column), '"', "")


def _nullable(column: pa.Array) -> pa.Array:
    return column if column.null_count == 0 else pc.fill_null(column, "null")


def _escaped(column: pa.Array) -> pa.Array:
    """Strings with the characters that JSON does not take as they are escaped; as a rule there are none."""
    _, offsets, data = column.buffers()
    if data is None or len(column) == 0:
        return column
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    used = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    special = used[(used < 0x20) | (used == ord('"')) | (used == ord("\\"))]
    if len(special):
        for code in sorted(set(special.tolist()), key=lambda code: code != ord("\\")):
            column = pc.replace_substring(column, chr(code), orjson.dumps(chr(code)).decode()[1:-1])
    return column


def _base64(column: pa.Array) -> pa.Array:
    encoded = pl.Series(column, dtype=pl.Binary).bin.encode("base64").to_arrow(compat_level=pl.CompatLevel.oldest())
    return encoded.cast(TEXT)
