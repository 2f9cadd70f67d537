"""Served features computed again from the events, by the code that makes training frames, and compared with the record."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.history import historical
from features.skew import TOLERANCE, Bools, Skew, close, numbers, skews, total
from features.training import training_frame
from ops.replay import between
from sinks.records import FILE, SOURCE, TIME, Records, read
from streams.decode import PROVENANCE
from streams.pipeline import Pipeline
from streams.replays import originals
from streams.rounds import as_one
from streams.routing import shard_name
from streams.settings import JobSettings
from streams.source import KafkaSource

POSITION = "_position"
PARTITION_BITS = 44
Progress = Callable[[str, float], None]


class EventsError(ValueError):
    """The events to compute the features from cannot be had; the message says what was expected."""


@dataclass(frozen=True)
class Report:
    """features: their skew. compared: decisions; repeats: rows of the record left out as such; without_event: decisions of the
    record whose event is not among the events; without_record: events that are decided on and are not in the record."""

    features: list[Skew]
    compared: int
    repeats: int
    without_event: int
    without_record: int

    @property
    def skewed(self) -> int:
        """How many values are not what they should be."""
        return total(self.features)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"skewed": self.skewed}


def skew(
    folder: Path,
    pipeline: Pipeline,
    settings: JobSettings,
    events: pa.Table,
    *,
    tolerance: float = TOLERANCE,
    progress: Progress = lambda doing, share: None,
) -> Report:
    """Compares a record with features computed again from events, decoded columns in any order.

    Where they have `_partition` and `_offset`, as from the topic, a decision finds its event by its position; else by the
    event's id and time, of which the first counts.
    """
    progress("reading the record", 0.0)
    records = read(folder)
    progress("computing the features again", 0.0)
    again, decided = frame(pipeline, settings, events)
    by = [POSITION] if POSITION in again.columns else ["event_id", "event_time"]
    first = again.with_row_index("_again").unique(by, keep="first", maintain_order=True)
    recorded = records.table.with_columns(position("partition", "offset")).with_row_index("_row")
    joined = recorded.select("_row", *by).join(first.select("_again", *by), on=by, how="inner").sort("_row")
    served, again = recorded[joined["_row"]], again[joined["_again"]]
    columns = {one.name: one.column for one in records.told.features if one.kind != "vector" and one.name in again.columns}
    hashed = [one for one in records.told.features if one.kind == "hashed" and one.name in columns]  # no number is near another
    served = served.with_columns(pl.col(one.column).cast(pl.String) for one in hashed)
    again = again.with_columns(pl.col(one.name).cast(pl.String) for one in hashed)
    substituted, own_rows = dict[str, Bools](), dict[str, pl.Series]()
    if decided is not None:
        progress("looking stored rows up", 0.0)
        decided = decided.take(joined["_again"].to_arrow())
        substituted, own_rows = _stored(records, pipeline, settings, served, again, decided, tolerance)
    asked = {name: _asked(records, served, name) for name in columns}
    found = skews(served, again, columns, asked=asked, substituted=substituted, own_rows=own_rows, tolerance=tolerance)
    n = served.height
    return Report(found, n, records.repeats, records.table.height - n, first.height - n)


def lines(report: Report) -> list[str]:
    """The report for people."""
    counted = ("match", "mismatch", "missing", "extra", "other_row", "substituted")
    width = max(len(one.feature) for one in report.features)
    made = [f"{'feature':{width}}" + "".join(f"{name:>12}" for name in (*counted, "smape"))]
    for one in report.features:
        smape = "" if one.smape is None else f"{one.smape:.3g}"
        made.append(f"{one.feature:{width}}" + "".join(f"{getattr(one, name):>12,}" for name in counted) + f"{smape:>12}")
        if one.skewed:
            made.append(f"{'':{width}}  {one.first}: served {one.served}, computed again {one.again}")
    made.append(f"{report.compared:,} decisions compared, {report.skewed:,} values are not what they should be")
    for count, what in (
        (report.repeats, "rows of the record are repeats and were left out"),
        (report.without_event, "decisions of the record have no event among these"),
        (report.without_record, "events are decided on and have no record"),
    ):
        if count:
            made.append(f"{count:,} {what}")
    return made


def frame(pipeline: Pipeline, settings: JobSettings, events: pa.Table) -> tuple[pl.DataFrame, pa.Table | None]:
    """The pipeline's training frame of events, without a label: features, event_time, and event_id or POSITION; and the events
    that are decided on in the same order, where the pipeline has stored features."""
    service, clock, id = pipeline.service, pipeline.events.time, pipeline.events.id
    if {"_partition", "_offset"} <= set(events.column_names):
        places = pl.DataFrame(events.select(["_partition", "_offset"])).select(position("_partition", "_offset"))
        events, id = events.append_column(POSITION, places.to_series().to_arrow()), POSITION
    seen: list[pa.Table] = []

    def stored(decided: pa.Table) -> pa.Table:
        seen.append(decided)
        return historical(pipeline.repo(settings), service or "", decided, clock)

    made = training_frame(
        events,
        features=pipeline.features,
        decide_on=pipeline.decide_on,
        time=clock,
        ties=pipeline.events.ties,
        id=id,
        label=None,
        historical=stored if service else None,
    )
    whole = pl.DataFrame(made)
    return whole.rename({"event_id": POSITION}) if id == POSITION else whole, seen[0] if seen else None


def position(partition: str, offset: str) -> pl.Expr:
    """A position as one number."""
    return (pl.col(partition).cast(pl.Int64) * (1 << PARTITION_BITS) + pl.col(offset)).alias(POSITION)


def _asked(records: Records, served: pl.DataFrame, feature: str) -> Bools:
    """Which rows [n] are of a job that recorded a feature: what the job computes it does, and fields that its model takes."""
    having = np.array([any(one.name == feature for one in told.features) for told in records.by_file])
    return having[served[FILE].to_numpy()]


def _stored(
    records: Records,
    pipeline: Pipeline,
    settings: JobSettings,
    served: pl.DataFrame,
    again: pl.DataFrame,
    decided: pa.Table,
    tolerance: float,
) -> tuple[dict[str, Bools], dict[str, pl.Series]]:
    """For each stored feature where it was substituted, and, where any value differs, what the row that was held has."""
    substituted, own = dict[str, Bools](), dict[str, pl.Series]()
    clock = pipeline.events.time
    for view in records.told.views:
        given = served[f"{SOURCE}{view}"].str.starts_with("instead").fill_null(False).to_numpy()
        of_view = [one for one in records.told.features if one.view == view]
        substituted |= {one.name: given for one in of_view}
        held = served[f"{TIME}{view}"]
        differs = np.zeros(served.height, np.bool_)
        for one in of_view:
            differs |= ~close(numbers(served[one.column]), numbers(again[one.name]), tolerance)
        rows = np.flatnonzero(differs & ~given & held.is_not_null().to_numpy())
        if len(rows):
            some = decided.take(pa.array(rows))
            times = pa.array(held.gather(rows).to_physical().to_numpy()).cast(pa.timestamp("us", "UTC"))
            some = some.set_column(some.schema.get_field_index(clock), clock, times)
            values = historical(pipeline.repo(settings), pipeline.service or "", some, clock)
            for one in of_view:
                column = np.full(served.height, np.nan, np.float32)
                column[rows] = values[one.name].to_numpy(zero_copy_only=False)
                own[one.name] = pl.Series(column)
    return substituted, own


def events_of(pipeline: Pipeline, settings: JobSettings, named: str, start: datetime | None) -> pa.Table:
    """The events to compute the features from, as decoded columns: of a Parquet file or a folder of them; "topic": from the
    topic's start to its end; "history": what the pipeline's model is trained on, from `start` on. Raises EventsError."""
    columns = pipeline.columns
    if named == "topic":
        return from_topic(pipeline, settings)
    if named == "history":
        if pipeline.model.history is None:
            raise EventsError(f"--events history: pipeline {pipeline.name} has none: its Model needs history")
        events = pipeline.model.history()
    else:
        if not Path(named).exists():
            raise EventsError(f"--events {named}: expected a Parquet file that exists, topic or history")
        events = pq.read_table(named)
    if missing := [name for name in columns.names if name not in events.column_names]:
        wanted = f"expected the fields of {pipeline.events.schema.name}"
        raise EventsError(f"--events {named}: {wanted}, got no {', '.join(missing)}")
    made = {field.name: _typed(events[field.name].combine_chunks(), field.type, pipeline) for field in columns}
    made |= {name: events[name] for name in ("_partition", "_offset") if name in events.column_names}
    return between(pipeline.events.hashed(pa.table(made), settings), pipeline.events.time, start, None)


def _typed(column: pa.Array, wanted: pa.DataType, pipeline: Pipeline) -> pa.Array:
    """A column as a decoder has it: kinds are codes in the order of the schema, which orders events of one time."""
    if not pa.types.is_dictionary(wanted):
        return column.cast(wanted)
    texts = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kinds = pa.array(pipeline.events.schema.kinds, wanted.value_type)
    codes = pc.index_in(texts.cast(wanted.value_type), value_set=kinds).cast(wanted.index_type)
    return pa.DictionaryArray.from_arrays(codes, kinds)


def from_topic(pipeline: Pipeline, settings: JobSettings) -> pa.Table:
    """Everything in the topic that can be decoded, with its positions, partition after partition. Raises SourceError."""
    topic = pipeline.events
    source = KafkaSource(
        topic.topic, settings.brokers, settings.client, group=f"headrace-{pipeline.name}-skew", rows=50_000,
        clock_ns=time.time_ns, stop=threading.Event(), until_end=True,
    )  # fmt: skip
    decode = topic.decode(f"{pipeline.name}/skew", settings)
    rows = [pa.Table.from_batches([], pa.schema([*pipeline.columns, *PROVENANCE]))]
    for number in range(source.partitions):
        name = shard_name(number)
        partition = source.build_part("skew", name, None)
        at_end = False
        while not at_end:
            polled = partition.poll()
            if polled is None:
                time.sleep(0.001)
                continue
            at_end = polled.at_end
            if polled.rows:
                read = decode(as_one([(name, polled)])).rows
                named = read.set_column(read.schema.get_field_index("_offset"), "_offset", originals(read))
                rows.append(pa.Table.from_batches([named.select([*pipeline.columns.names, *PROVENANCE.names])]))
        partition.close()
    return pa.concat_tables(rows).select([*pipeline.columns.names, "_partition", "_offset"]).unify_dictionaries()
