"""The rows of a record: what stands in a log, what is made of it for readers, and how they are read with repeats left out.

A log holds what costs least to write: positions, codes and bits. `shaped` makes the columns of the Parquet files of it; what
it needs for that (names, flags, features) is in the schema's metadata, as `Told`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kernels.stored_rows.cpu import NONE
from sinks.segments import KEY, LOG, SEALED, RecordError, chains, described, in_order, read_frames, sealed

SOURCE, TIME, AGE = OF_A_VIEW = "source__", "time__", "age__"
TIMESTAMP = pa.timestamp("us", "UTC")
SOURCES = ("store", "store:future", "store:unread", "store:future:unread", "instead:stale", "instead:unread", "none")
FLAGS = ("missing", "stale", "future", "unread")
FILE = "_file"
FIRST = (
    "decision_id", "event_id", "event_time", "decided_at", "partition", "offset", "model", "model_version", "model_digest",
    "score", "decision", "reasons", "flags",
)  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """A feature as it is recorded. column: of the file. kind: as of a model's inputs (models/spec.py). source: "field" of the
    event, "derived" from it, "stream" or "stored"; view: of a stored one, instead: what the pipeline gives where its row is
    stale or unread: a number, "null", "median" or "refuse"."""

    name: str
    column: str
    kind: str
    source: str
    view: str = ""
    instead: str | float = "null"


@dataclass(frozen=True)
class Told:
    """What a record says of all its rows. prefix: of decision_id, before "{partition}/{offset}"; flags: their names by bit;
    age_by: "event" or "wall", the clock by which stored rows' age counts; share: of the decisions, that is recorded. counts:
    which row of one decision is what consumers go by: the "first", or, where it is delivered exactly once, the "last", as those
    before it were made in an epoch that did not last and were never seen."""

    pipeline: str
    prefix: str
    model: str
    model_digest: str
    flags: tuple[str, ...]
    features: tuple[Feature, ...]
    age_by: str
    share: float
    counts: Literal["first", "last"]

    @classmethod
    def of(cls, schema: pa.Schema) -> "Told":
        """What a log's or a file's schema says. Raises RecordError where it says nothing."""
        if not schema.metadata or KEY not in schema.metadata:
            raise RecordError(f"record: expected {KEY.decode()} in the metadata, got none")
        content: dict[str, Any] = json.loads(schema.metadata[KEY])
        features = tuple(Feature(**each) for each in content["features"])
        plain = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**plain | {"features": features, "flags": tuple(content["flags"])})

    def metadata(self) -> dict[bytes, bytes]:
        """As the metadata of a schema."""
        return {KEY: json.dumps(asdict(self)).encode()}

    @property
    def views(self) -> list[str]:
        """The views of stored features."""
        return list(dict.fromkeys(feature.view for feature in self.features if feature.view))


def shaped(rows: pa.Table) -> pa.Table:
    """The columns of a file from those of a log, [n] each.

    Texts are plain or dictionaries, lists of texts are lists, what is missing is null. Of each view of stored features
    `source__VIEW` is one of SOURCES, `time__VIEW` when the row is from that the worker held, and `age__VIEW` how old that was,
    in seconds.
    """
    told = Told.of(rows.schema)
    n = rows.num_rows
    position = [rows[name].combine_chunks() for name in ("partition", "offset")]
    texts = [column.cast(pa.string()) for column in position]
    bits = pa.array(rows["bits"].to_numpy()).dictionary_encode()
    columns: dict[str, Any] = {
        "decision_id": pc.binary_join_element_wise(told.prefix, texts[0], "/", texts[1], ""),
        "event_id": rows["event_id"],
        "event_time": rows["event_time"],
        "decided_at": rows["decided_at"],
        "partition": position[0],
        "offset": position[1],
        "model": repeated(told.model, n),
        "model_version": rows["model_version"],
        "model_digest": repeated(told.model_digest, n),
        "score": known(rows["score"]),
        "decision": rows["decision"].unify_dictionaries().combine_chunks(),
        "reasons": looked_up(rows["reasons"]),
        "flags": listed(bits, told.flags),
    }
    for view in told.views:
        columns[f"{SOURCE}{view}"] = sources(bits, view, told.flags)
        held = rows[f"{TIME}{view}"].to_numpy()
        unknown = held == NONE
        now = rows["event_time" if told.age_by == "event" else "decided_at"].cast(pa.int64()).to_numpy()
        columns[f"{TIME}{view}"] = pa.array(held, mask=unknown).cast(TIMESTAMP)
        columns[f"{AGE}{view}"] = pa.array(((now - held) / 1e6).astype(np.float32), mask=unknown)
    for feature in told.features:
        column = rows[feature.column]
        columns[feature.column] = known(column) if pa.types.is_floating(column.type) else column
    return pa.table(columns)


def repeated(text: str, n: int) -> pa.Array:
    """The same text n times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), [text])


def known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of floats with null in place of NaN; other types as they are."""
    if not pa.types.is_floating(column.type):
        return column
    chunks = []
    for chunk in column.chunks:
        values = chunk.to_numpy(zero_copy_only=False)
        missing = np.isnan(values)
        chunks.append(pa.array(values, mask=missing) if missing.any() else chunk)
    return pa.chunked_array(chunks, column.type)


def looked_up(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of codes as what they stand for."""
    kind = column.type.value_type
    return pa.chunked_array([chunk.dictionary.take(chunk.indices) for chunk in column.chunks], kind)


def listed(bits: pa.DictionaryArray, names: Sequence[str]) -> pa.Array:
    """The names of the bits that are set, a list for each row."""
    lists = [[name for k, name in enumerate(names) if one >> k & 1] for one in bits.dictionary.to_pylist()]
    return pa.array(lists, pa.list_(pa.string())).take(bits.indices)


def sources(bits: pa.DictionaryArray, view: str, names: Sequence[str]) -> pa.Array:
    """Where a view's values came from, a text of SOURCES for each row."""
    found = bits.dictionary.to_numpy()
    code = np.zeros(len(found), np.int32)
    for place, flag in enumerate(FLAGS):
        if f"{flag}:{view}" in names:
            code |= (found >> names.index(f"{flag}:{view}") & 1).astype(np.int32) << place
    texts = [
        SOURCES[4 if stale else 5 if missing and unread else 6 if missing else future + 2 * unread]
        for missing, stale, future, unread in ((k & 1, k >> 1 & 1, k >> 2 & 1, k >> 3 & 1) for k in range(16))
    ]
    return pa.DictionaryArray.from_arrays(pa.array(code[bits.indices.to_numpy()]), texts)


@dataclass(frozen=True)
class Records:
    """The rows of a record with repeats left out, in the order of their positions; told: what the newest file says of its rows;
    by_file: what each does, and a row's is that of the number in its column FILE; repeats: how many rows were left out."""

    table: pl.DataFrame
    told: Told
    repeats: int
    by_file: Sequence[Told]


def read(folder: Path, only: Callable[[pl.LazyFrame], pl.LazyFrame] = lambda rows: rows) -> Records:
    """Reads a record, what is not sealed yet too. A decision made again after a crash has the same id; see Told for the
    one that counts.

    only: of the rows of a file, those wanted. Raises RecordError for a folder without a record and a file that cannot be read.
    """
    frames: list[pl.DataFrame] = []
    by_file: list[Told] = []
    for chain in chains(folder):
        for table in tables(chain):
            frame = pl.DataFrame(table.replace_schema_metadata(None)).lazy()
            frames.append(only(frame.with_columns(pl.lit(len(by_file)).alias(FILE))).collect())
            by_file.append(Told.of(table.schema))
    told = told_by(folder)
    every = pl.concat(frames, how="diagonal_relaxed")
    once = every.sort("decided_at", maintain_order=True).unique("decision_id", keep=told.counts, maintain_order=True)
    return Records(once.sort("partition", "offset"), told, every.height - once.height, by_file)


def told_by(folder: Path) -> Told:
    """What a record says of its newest rows. Raises RecordError where there are none."""
    for chain in chains(folder):
        for log in reversed(in_order(chain, LOG)):
            for batch, _ in read_frames(log):
                return Told.of(batch.schema)
        for path in reversed(in_order(chain, SEALED)):
            described(path)
            return Told.of(pq.read_schema(path))
    raise RecordError(f"no record in {folder}: expected at least one decision, got none")


def tables(chain: Path) -> Iterator[pa.Table]:
    """The files of a chain in order, then what is not sealed yet."""
    for path in in_order(chain, SEALED):
        try:
            yield pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise RecordError(f"{path}: cannot be read as Parquet: {error}") from None
    for log in in_order(chain, LOG):
        if not sealed(log).exists():
            for batch, _ in read_frames(log):
                yield shaped(pa.Table.from_batches([batch])).replace_schema_metadata(batch.schema.metadata)


def explained(records: Records, decision_id: str) -> Mapping[str, Any]:
    """One decision for a person to read: what was decided, and of each feature its value, where it is from, and its age in
    seconds. Raises RecordError where there is no such decision."""
    found = records.table.filter(pl.col("decision_id") == decision_id)
    if found.is_empty():
        raise RecordError(f"no decision {decision_id} in the record, which has a share of {records.told.share:g} of them")
    row = found.row(0, named=True)
    features = []
    for feature in records.by_file[row[FILE]].features:
        source = feature.source
        if feature.view:
            source = row[f"{SOURCE}{feature.view}"]
            if source.startswith("instead"):
                source = f"{source} ({feature.instead})"
        age = row[f"{AGE}{feature.view}"] if feature.view else None
        features.append({"name": feature.name, "value": row[feature.column], "source": source, "age": age})
    return {name: row[name] for name in FIRST} | {"features": features}
