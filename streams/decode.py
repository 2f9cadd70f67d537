"""From raw batches of a poll to rows and dead letters."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from features.schema import Field as SchemaField
from features.schema import Integer, Kind, Number, Schema, Text, Time, Vector
from kernels.flat_json import Field
from kernels.flat_json.columns import Columns, Reader
from kernels.flat_json.naive import Fault, iso

PROVENANCE = pa.schema(
    [
        ("_key", pa.binary()),
        ("_partition", pa.int32()),
        ("_offset", pa.int64()),
        ("_appended_at", pa.int64()),
        ("_polled_at", pa.int64()),
    ]
)
DEAD = pa.schema(
    [
        ("code", pa.string()),
        ("reason", pa.string()),
        ("value", pa.binary()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("closed", pa.bool_()),
        *PROVENANCE,
    ]
)
KEPT_BYTES = 64 * 1024
SENSIBLE_US = 946_684_800_000_000
"""The year 2000."""
APPENDED = "_time"
CODES = (
    "too_large",
    "bad_utf8",
    "not_object",
    "unknown_kind",
    "missing_field",
    "null_value",
    "wrong_type",
    "out_of_range",
    "time_out_of_range",
)
"""Of dead letters, whatever the format of the messages."""
BROKEN = {
    "not_avro": "Avro as the writer's schema says",
    "unknown_schema": "the id of a schema",
    "bad_schema": "a schema of Avro",
}


@dataclass(frozen=True)
class Decoded:
    """What became of a raw batch; each message is in one of the two, in order.

    rows: the schema's columns, `_key` and provenance, and `_value` if the decoder keeps it. dead: a row per bad message with
    `code`, `reason`, `value` (its first 64 kB, null for a tombstone), `size` and `sha256` (hex) of the whole value, `closed`
    (whether the topic has secrets, and value and key are encrypted or left out: streams/secret.py), `_key` and provenance.
    """

    rows: pa.RecordBatch
    dead: pa.RecordBatch


class Ahead(NamedTuple):
    """The field with an event's time, and how far (µs) it may be ahead of our clock when it is polled. A clock that is before
    SENSIBLE_US is none."""

    name: str
    most: int


Decoder = Callable[[pa.RecordBatch], Decoded]
"""Takes a raw batch: `_key`, `_value` (binary, nullable), `_partition`, `_offset`, `_appended_at` (ms), `_polled_at` (ns)."""


def json_decoder(
    schema: Schema,
    *,
    max_bytes: int = 1_000_000,
    step: str = "decode",
    topic: str = "",
    whole: bool = False,
    ahead: Ahead | None = None,
) -> Decoder:
    """A decoder of JSON objects. It raises for no bytes whatever; a bad message costs only itself.

    whole: the rows keep the messages themselves, as `_value`. ahead: an event whose time is further ahead of the clock is
    refused: it would move what goes by the stream's time. step and topic are named in reasons:
    `flights/decode: expected float, got "n/a" at $.dep_delay (flight-events/3@1742)`. Those of a schema with secrets do not say
    what was found: `got what is not shown`. The secrets themselves are hashed by streams/secret.py.
    Codes: too_large (more than max_bytes, looked at first), not_json (also NaN, Infinity, no value), bad_utf8, not_object,
    unknown_kind, missing_field, null_value, wrong_type (also text that is no time), out_of_range (also a text too long),
    time_out_of_range. Fields unknown or not of the row's kind are ignored; of equal names the last one counts.
    """
    return decoder_of(Reader(kernel_fields(schema), max_bytes), schema, step=step, topic=topic, whole=whole, ahead=ahead)


class Reads(Protocol):
    """What makes columns of messages, whatever their format."""

    def read(self, messages: pa.Array) -> Columns:
        """messages: binary [n], nulls and slices allowed."""


def decoder_of(reader: Reads, schema: Schema, *, step: str, topic: str, whole: bool, ahead: Ahead | None = None) -> Decoder:
    """The decoder of a reader's format; the reader gives the schema's columns."""
    time = list(schema.fields).index(ahead.name) if ahead else 0
    kept = [*PROVENANCE, pa.field("_value", pa.binary())] if whole else [*PROVENANCE]
    read_as = [(name, pa.int64() if isinstance(field, Integer) else field.arrow) for name, field in schema.fields.items()]
    columns = pa.schema([*read_as, *kept])
    none_dead = pa.RecordBatch.from_pylist([], schema=DEAD)

    def decode(batch: pa.RecordBatch) -> Decoded:
        read = reader.read(batch.column("_value"))
        rows = pa.RecordBatch.from_arrays([*read.values, *(batch.column(field.name) for field in kept)], schema=columns)
        faults = read.faults
        if ahead and (far := _far_ahead(read.values[time], batch, ahead, schema)):
            faults = dict(sorted((far | faults).items()))
        if not faults:
            return Decoded(rows, none_dead)
        good = pa.array([i not in faults for i in range(batch.num_rows)], pa.bool_())
        return Decoded(rows.filter(good), _dead(batch, faults, step, topic, quotes=not schema.secrets))

    return decode


def _far_ahead(values: pa.Array, batch: pa.RecordBatch, ahead: Ahead, schema: Schema) -> dict[int, Fault]:
    """The messages whose time is further ahead than it may be, by their place."""
    if not len(values):
        return {}
    whole = values.view(pa.int64())
    times = (whole.fill_null(0) if whole.null_count else whole).to_numpy()
    latest = batch.column("_polled_at").to_numpy() // 1000 + ahead.most
    if times.max() <= latest[0]:  # the first was polled first
        return {}
    field, far = schema.fields[ahead.name], (times > latest) & (latest >= SENSIBLE_US)
    return {
        i: Fault("time_out_of_range", f"time up to {iso(latest[i])}", iso(times[i]), f"$.{field.path or ahead.name}")
        for i in np.flatnonzero(far).tolist()
    }


def with_append_time(decoder: Decoder) -> Decoder:
    """The decoder with a column more: `_time`, timestamp[us, UTC], when the broker appended the message."""

    def decode(batch: pa.RecordBatch) -> Decoded:
        decoded = decoder(batch)
        micros = pa.py_buffer(decoded.rows.column("_appended_at").to_numpy() * 1000)
        times = pa.Array.from_buffers(Time.arrow, decoded.rows.num_rows, [None, micros])
        return Decoded(decoded.rows.append_column(APPENDED, times), decoded.dead)

    return decode


def kernel_fields(schema: Schema) -> list[Field]:
    """The schema as the kernels take it."""
    places = {kind: place for place, kind in enumerate(schema.kinds)}
    return [_kernel_field(name, field, tuple(places[kind] for kind in field.on)) for name, field in schema.fields.items()]


def _kernel_field(name: str, field: SchemaField, on: tuple[int, ...]) -> Field:
    match field:
        case Text():
            return Field(name, "text", 0, field.max_bytes, on, field.optional, path=field.path)
        case Number():
            return Field(name, "number", field.low, field.high, on, field.optional, path=field.path)
        case Integer():
            return Field(name, "integer", field.low, field.high, on, field.optional, path=field.path)
        case Vector():
            low, high, width, text = field.low, field.high, field.width, field.text
            return Field(name, "vector", low, high, on, field.optional, width=width, as_text=text, path=field.path)
        case Time():
            return Field(name, "time", *field.bounds_us, on, field.optional, path=field.path)
        case Kind():
            return Field(name, "kind", values=field.values, path=field.path)


def _closed(fault: Fault) -> Fault:
    """The same without what comes from the message: of broken Avro what is expected is, too, a length that it says."""
    return fault._replace(expected=BROKEN.get(fault.code, fault.expected), got="what is not shown")


def _dead(batch: pa.RecordBatch, found: dict[int, Fault], step: str, topic: str, quotes: bool) -> pa.RecordBatch:
    faults = found if quotes else {i: _closed(fault) for i, fault in found.items()}
    places = batch.select(PROVENANCE.names).take(pa.array(list(faults), pa.int64()))
    messages = [batch.column("_value")[i].as_py() for i in faults]
    positions = zip(places.column("_partition").to_pylist(), places.column("_offset").to_pylist(), strict=True)
    reasons = [
        f"{step}: expected {fault.expected}, got {fault.got} at {fault.path} ({topic}/{partition}@{offset})"
        for fault, (partition, offset) in zip(faults.values(), positions, strict=True)
    ]
    arrays = [
        pa.array([fault.code for fault in faults.values()], pa.string()),
        pa.array(reasons, pa.string()),
        pa.array([None if message is None else message[:KEPT_BYTES] for message in messages], pa.binary()),
        pa.array([len(message or b"") for message in messages], pa.int64()),
        pa.array([hashlib.sha256(message or b"").hexdigest() for message in messages], pa.string()),
        pa.array([False] * len(messages), pa.bool_()),
    ]
    return pa.RecordBatch.from_arrays([*arrays, *places.columns], schema=DEAD)
