"""The messages a job writes, the protocol of what takes them, and their encoders. docs/asyncapi.yaml describes the JSON.

The encoders work on whole columns: each becomes pieces of JSON text, constant or per row, and a kernel writes all rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from kernels.json_rows.cpu import YEAR_1, YEAR_10000, Part, Words, Writer
from models.policy import Coded
from sinks.sealed import OVERHEAD

TEXT = pa.string()
LAYOUTS = 64
MOST_WHOLE = 2.0**24
"""Up to here a float32 is as good for whole numbers, each has one of its own, and writes with as many digits."""
INTEGER: Part = ("integer",)
TIME: Part = ("time",)
FLOAT: Part = ("float",)
PLAIN: Part = ("plain",)
QUOTED: Part = ("quoted",)


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


@dataclass(frozen=True, slots=True)
class Position:
    """A column of texts "{prefix}{partition}/{offset}", partition and offset int [n]."""

    prefix: str
    partition: npt.NDArray[np.integer]
    offset: npt.NDArray[np.integer]


Column: TypeAlias = "pa.Array | npt.NDArray[Any] | Coded | Position | str | int"
"""A column [n]: an Arrow array, integers, float32 or float64 (NaN: null), datetime64[us] (UTC), codes of values that JSON has,
positions, or one text or number for all."""

DECISION = (
    "decision_id", "event_id", "decision", "score", "reasons", "model", "model_version", "flags", "event_time", "decided_at",
    "schema_version",
)  # fmt: skip
DEAD = (
    "code", "reason", "topic", "partition", "offset", "key_base64", "value_base64", "size", "sha256", "truncated", "encrypted",
    "replay",
)  # fmt: skip
DRIFT = ("pipeline", "window_start", "window_end", "feature", "statistic", "value", "threshold", "alarmed", "rows")


class Encoder:
    """Writes columns as JSON objects, and remembers the layouts it has met: keep one where batches are small and many."""

    def __init__(self) -> None:
        self._writers: dict[tuple[Any, ...], Writer] = {}
        self._words: dict[int, tuple[Sequence[Any], Words]] = {}
        self._broken = set[str]()  # the columns of float64 that had other numbers than small whole ones

    def objects(
        self, fields: Iterable[tuple[str, Column]], n: int, inner: Iterable[tuple[str, Column]] | None = None
    ) -> list[bytes]:
        """n objects with these fields, and, where `inner` is given, those as an object "features" at the end.

        Raises TypeError for a type that has no form here, ValueError for a time outside the years 1 to 9999.
        """
        parts: list[Part] = []
        columns: list[Any] = []
        for name, column in fields:
            parts.append(_label(name))
            parts += self._parts(name, column, columns)
        if inner is not None:
            parts.append(',"features":{')
            for k, (name, column) in enumerate(inner):
                parts += [_label(name)[0 if k else 1 :], *self._parts(name, column, columns)]
            parts.append("}")
        layout = tuple(parts)
        writer = self._writers.get(layout)
        if writer is None:
            if len(self._writers) >= LAYOUTS:
                self._writers.clear()
                self._words.clear()
            writer = self._writers[layout] = Writer(["{", str(parts[0])[1:], *parts[1:], "}"])
        return writer.rows(columns, n)

    def _parts(self, name: str, column: Column, columns: list[Any]) -> list[Part]:
        """How a column is written; what changes from row to row is added to `columns`."""
        if isinstance(column, str | int):
            return [_text(column)]
        if isinstance(column, Coded):
            columns.append(column.codes)
            return [self._coded(column.values)]
        if isinstance(column, Position):
            columns += [column.partition, column.offset]
            return [_text(column.prefix)[:-1], INTEGER, "/", INTEGER, '"']
        if isinstance(column, np.ndarray):
            if column.dtype == np.float64 and not self._whole(name, column):
                columns.append(_floats(pa.array(column)))
                return [PLAIN]
            if column.dtype.kind == "f":
                columns.append(column)
                return [FLOAT]
            columns.append(column.view(np.int64) if column.dtype.kind == "M" else column)
            return [TIME if column.dtype.kind == "M" else INTEGER]
        kind = column.type
        if pa.types.is_dictionary(kind):
            return self._parts(name, column.dictionary_decode(), columns)
        if pa.types.is_string(kind) and column.null_count == 0:
            columns.append(column)
            return [QUOTED]
        if pa.types.is_integer(kind) and column.null_count == 0:
            columns.append(column.to_numpy())
            return [INTEGER]
        if pa.types.is_timestamp(kind):
            return self._times(name, column, columns)
        if pa.types.is_list(kind):
            columns.append(_listed(column))
            return ["[", PLAIN, "]"]
        if pa.types.is_string(kind):
            columns.append(_nullable(_quoted(column)))
        elif pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32():
            columns.append(_nullable(_vectors(column)))
        elif kind == pa.float32():
            columns.append(column.to_numpy(zero_copy_only=False))
            return [FLOAT]
        elif pa.types.is_floating(kind):
            columns.append(_floats(column))
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            columns.append(_nullable(column.cast(TEXT)))
        else:
            raise TypeError(
                f"sink/encode: expected a column of text, numbers, times, vectors or lists of text, got {kind} at {name}"
            )
        return [PLAIN]

    def _whole(self, name: str, column: npt.NDArray[np.float64]) -> bool:
        """Whether all its numbers, in this batch and before, are such as float32 has, too, and writes with the same digits."""
        if name not in self._broken:
            known = column[~np.isnan(column)]
            if not (np.rint(known) == known).all() or np.abs(known).max(initial=0.0) > MOST_WHOLE:
                self._broken.add(name)
        return name not in self._broken

    def _coded(self, values: Sequence[Any]) -> Words:
        """The values as JSON, those added since the last call too."""
        _, words = self._words.setdefault(id(values), (values, Words()))
        if len(words.texts) < len(values):
            words.texts += [_text(value) for value in values[len(words.texts) :]]
        return words

    def _times(self, name: str, column: pa.Array, columns: list[Any]) -> list[Part]:
        """RFC 3339 in UTC with microseconds, from timestamps in microseconds."""
        if column.type.unit != "us":
            raise TypeError(f"sink/encode: expected times in microseconds, got {column.type} at {name}")
        known = column if column.null_count == 0 else column.drop_null()
        values = known.view(pa.int64()).to_numpy()
        if len(values) and not YEAR_1 <= values.min() <= values.max() < YEAR_10000:
            raise ValueError(f"sink/encode: expected a time in the years 1 to 9999, got another at {name}")
        if column.null_count == 0:
            columns.append(values)
            return [TIME]
        text = np.full(len(column), None, object)
        text[column.is_valid().to_numpy(zero_copy_only=False)] = Writer([TIME]).texts([values], len(values)).to_pylist()
        columns.append(_nullable(pa.array(text, TEXT)))
        return [PLAIN]


def encode_decisions(
    columns: "Mapping[str, Column] | pa.RecordBatch", topic: str, features: Sequence[str] = (), encoder: Encoder | None = None
) -> Messages:
    """Decisions as JSON, one message per row, with the event's own key.

    columns: _key, an Arrow array of binary; decision_id, decision, model text; event_id int64 or text; score an Arrow array
    of floats (null or NaN: null); reasons, flags lists of text; model_version, schema_version int; event_time, decided_at
    times in microseconds. `features` names columns that are written as an object "features", null where missing.
    """
    keys = columns["_key"].to_pylist()  # type: ignore[union-attr]
    fields = [(name, columns[name]) for name in DECISION]
    inner = [(name, columns[name]) for name in features] if features else None
    return Messages(topic, keys, (encoder or Encoder()).objects(fields, len(keys), inner))


def encode_dead(batch: pa.RecordBatch, topic: str, source_topic: str) -> Messages:
    """Dead letters as JSON, one message per row, with the key of the message they are about, or none where that is closed.

    batch: code, reason string; sha256 string, nullable; _key binary; value binary, the message's bytes or the first of them
    (null: it had no value); size int64, how many there were; closed bool: value and _key are sealed (sinks/sealed.py), or null
    where they are left out; _partition, _offset, the position in `source_topic`; _original, if there is such a column: the
    offset of the message that it was a replay of, and is named by.
    """
    value, closed = batch["value"], batch["closed"]
    sealed = pc.and_(closed, value.is_valid())
    kept = pc.subtract(pc.fill_null(pc.binary_length(value), 0), pc.multiply(sealed.cast(pa.int32()), OVERHEAD))
    offset, original = batch["_offset"], batch["_original"] if "_original" in batch.schema.names else batch["_offset"]
    columns: dict[str, Column] = {
        **{name: batch[name] for name in ("code", "reason", "size", "sha256")},
        "topic": source_topic,
        "partition": batch["_partition"],
        "offset": original,
        "key_base64": _base64(batch["_key"]),
        "value_base64": _base64(value),
        "truncated": pc.less(kept, batch["size"]),
        "encrypted": sealed,
        "replay": pc.if_else(pc.equal(offset, original), pa.scalar(None, pa.int64()), offset),
    }
    values = Encoder().objects([(name, columns[name]) for name in DEAD], batch.num_rows)
    return Messages(topic, pc.if_else(closed, None, batch["_key"]).to_pylist(), values)


def encode_drift(batch: pa.RecordBatch, topic: str) -> Messages:
    """Drift reports as JSON, one message per window, feature and statistic, keyed by feature (no key: the whole window).

    batch: pipeline, statistic string; feature string or null; window_start, window_end timestamp[us, UTC]; value, threshold
    float64 (null or NaN: null); alarmed bool; rows int64.
    """
    values = Encoder().objects([(name, batch[name]) for name in DRIFT], batch.num_rows)
    return Messages(topic, batch["feature"].cast(pa.binary()).to_pylist(), values)


@cache
def _label(name: str) -> str:
    return f",{_text(name)}:"


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _floats(column: pa.Array) -> pa.Array:
    """The shortest text that reads back the same."""
    finite = np.isfinite(column.to_numpy(zero_copy_only=False))
    if not finite.all():
        column = pc.if_else(pa.array(finite), column, pa.scalar(None, column.type))
    return _nullable(column.cast(TEXT))


def _listed(column: pa.Array) -> pa.Array:
    """Each list's items quoted and joined by commas; a null list is an empty one."""
    ends = column.offsets.to_numpy()
    items = _nullable(_quoted(column.values.slice(ends[0], ends[-1] - ends[0])))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ends - ends[0]), items), ",")


def _vectors(column: pa.Array) -> pa.Array:
    """Each vector as a JSON array; null for a null one."""
    width = column.type.list_size
    values = column.values.slice(column.offset * width, len(column) * width).to_numpy(zero_copy_only=False)
    texts = Writer([FLOAT]).texts([values], len(values))
    ends = pa.array(np.arange(0, len(values) + 1, width, dtype=np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(ends, texts), ",")
    whole = pc.binary_join_element_wise("[", joined, "]", "")
    return whole if column.null_count == 0 else pc.if_else(column.is_valid(), whole, pa.scalar(None, TEXT))


def _quoted(column: pa.Array) -> pa.Array:
    quoted = Writer([QUOTED]).texts([column.fill_null("")], len(column))
    return quoted if column.null_count == 0 else pc.if_else(column.is_valid(), quoted, pa.scalar(None, TEXT))


def _nullable(column: pa.Array) -> pa.Array:
    return column if column.null_count == 0 else pc.fill_null(column, "null")


def _base64(column: pa.Array) -> pa.Array:
    encoded = pl.Series(column, dtype=pl.Binary).bin.encode("base64").to_arrow(compat_level=pl.CompatLevel.oldest())
    return encoded.cast(TEXT)
