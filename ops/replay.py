"""Replays a pipeline's history to its topic: python -m ops.replay flights --brokers HOST:PORT."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.schema import Field, Kind, Number, Schema, Text, Time
from ops.avro_messages import avro_schema, encode_avro, register
from ops.errors import PREFIX, USAGE, report
from ops.malformed import malformed
from ops.topics import require
from sinks.kafka import KafkaSink
from sinks.messages import DeliveryError, Messages
from streams.lookup import client_options

if TYPE_CHECKING:
    from streams.pipeline import Pipeline
    from streams.topic import Topic

PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 5,
    "partitioner": "murmur2_random",
    "delivery.timeout.ms": 120_000,
    "message.max.bytes": 16 * 1024 * 1024,
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 512 * 1024,
    "delivery.report.only.error": True,
}
SLICE = 5_000
TICK_SECONDS = 0.005
DAY_US = 86_400_000_000
TO_ESCAPE = r'["\\\x00-\x1f]'
ESCAPED = {"\\": "\\\\", '"': '\\"', **{chr(code): f"\\u{code:04x}" for code in range(32)}}


class ReplayError(RuntimeError):
    """Not everything was delivered."""


def encode(table: pa.Table, schema: Schema, keys: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of each row: the first of the columns `keys` that is not null, and a JSON object of the row's fields.

    Fields are in the schema's order; those of other kinds and optional ones that are null are left out. Times have six digits
    of fraction or none, numbers are the shortest text that reads back the same. With paths a message is nested as they say,
    and what is null in it is null.

    Raises ValueError, naming row and field, for a null where the schema wants a value, a number that is not finite, and a row
    without a key.
    """
    if not table.num_rows:
        return [], []
    frame = pl.DataFrame(table.select(list(schema.fields))).with_row_index("_row")
    key = pl.coalesce(pl.col(name).cast(pl.String) for name in keys)
    parts = frame.partition_by(schema.kind, maintain_order=True) if schema.kind else [frame]
    coded = [part.select("_row", _objects(part, schema).alias("value"), key.alias("key")) for part in parts]
    whole = pl.concat(coded).sort("_row")
    _refuse(whole, schema, " or ".join(keys), whole["key"].is_null(), "a key, got null")
    return whole["key"].cast(pl.Binary).to_list(), whole["value"].cast(pl.Binary).to_list()


def _objects(part: pl.DataFrame, schema: Schema) -> pl.Expr:
    """The JSON objects of rows of one kind.

    Members up to the first that every row has bring their comma behind them, those after it before them.
    """
    kind = part[schema.kind][0] if schema.kind else None
    fields = {name: field for name, field in schema.fields.items() if not field.on or kind in field.on}
    if any(field.path for field in fields.values()):
        return pl.concat_str(_nested(part, schema, [((field.path or name).split("."), name) for name, field in fields.items()]))
    texts = [pl.lit("{")]
    begun = False
    for name, field in fields.items():
        column = _column(part, schema, name)
        label = pl.lit(f"{',' if begun else ''}{json.dumps(name)}:")
        if not column.has_nulls():
            texts += [label, *_texts(column, field)]
            begun = True
        else:
            comma = [] if begun else [pl.lit(",")]
            texts.append(pl.concat_str([label, *_texts(column, field), *comma]).fill_null(""))
    whole = pl.concat_str(texts)
    return pl.concat_str([whole if begun else whole.str.strip_suffix(","), pl.lit("}")])


def _nested(part: pl.DataFrame, schema: Schema, places: Sequence[tuple[list[str], str]]) -> list[pl.Expr]:
    """An object with fields at places below it, each a list of names and the field's own; what is null is null in it."""
    texts, before = [pl.lit("{")], ""
    for member in dict.fromkeys(place[0] for place, _ in places):
        below = [(place[1:], name) for place, name in places if place[0] == member]
        texts.append(pl.lit(f"{before}{json.dumps(member)}:"))
        if below[0][0]:
            texts += _nested(part, schema, below)
        else:
            field = schema.fields[below[0][1]]
            texts.append(pl.concat_str(_texts(_column(part, schema, below[0][1]), field)).fill_null("null"))
        before = ","
    return [*texts, pl.lit("}")]


def _column(part: pl.DataFrame, schema: Schema, name: str) -> pl.Series:
    column, field = part[name], schema.fields[name]
    if not field.optional:
        _refuse(part, schema, name, column.is_null(), f"{type(field).__name__}, got null")
    if isinstance(field, Number):
        _refuse(part, schema, name, ~column.is_finite(), "a finite number, got another")
    return column


def _texts(column: pl.Series, field: Field) -> list[pl.Expr]:
    """A column as JSON, in pieces to be joined; null where it is null."""
    quote = pl.lit('"')
    if isinstance(field, Kind):
        return [pl.lit(json.dumps(column[0]))]
    if isinstance(field, Time):
        return [quote, *_times(column), pl.lit('Z"')]
    if isinstance(field, Text):
        plain = not column.str.contains(TO_ESCAPE).any()
        return [quote, pl.lit(column) if plain else pl.lit(column).str.replace_many(ESCAPED), quote]
    return [pl.lit(column.cast(pl.String))]


def _times(column: pl.Series) -> list[pl.Expr]:
    """Days and times of day, each written once and looked up: a tenth of the time that formatting each row takes."""
    microseconds = column.cast(pl.Datetime("us", "UTC")).to_physical()
    days, of_day = microseconds // DAY_US, microseconds % DAY_US
    first, last = int(days.min() or 0), int(days.max() or 0)  # type: ignore[arg-type]
    dates = pl.int_range(first, last + 1, dtype=pl.Int32, eager=True).cast(pl.Date).dt.to_string("%Y-%m-%dT")
    clock = (pl.int_range(86_400, eager=True) * 1_000_000).cast(pl.Datetime("us")).dt.to_string("%H:%M:%S")
    texts = [pl.lit(dates.gather(days - first)), pl.lit(clock.gather(of_day // 1_000_000))]
    fraction = of_day % 1_000_000
    if (fraction > 0).any():
        digits = pl.lit(".") + pl.lit(fraction.cast(pl.String).str.zfill(6))
        texts.append(pl.when(pl.lit(fraction) > 0).then(digits).otherwise(pl.lit("")))
    return texts


def _refuse(frame: pl.DataFrame, schema: Schema, name: str, wrong: pl.Series, expected: str) -> None:
    if wrong.any():
        raise ValueError(f"{schema.name}: row {frame['_row'].filter(wrong)[0]}: {name}: expected {expected}")


def plant(
    keys: list[bytes], values: list[bytes], bad: Sequence[tuple[str, bytes]], times_us: npt.NDArray[np.int64]
) -> tuple[list[bytes], list[bytes], npt.NDArray[np.int64]]:
    """Spreads bad messages (code, value) evenly among the good ones, in place, each with the key and time of the good one
    before it. Raises ValueError if there is no good one."""
    if not values:
        raise ValueError("replay: expected messages to plant others among, got none")
    places = np.maximum(np.linspace(0, len(values), len(bad) + 2)[1:-1].astype(int), 1)
    for (_, value), place in reversed(list(zip(bad, places, strict=True))):
        keys.insert(place, keys[place - 1])
        values.insert(place, value)
    return keys, values, np.insert(times_us, places, times_us[places - 1])


def replay(
    config: Mapping[str, str],
    topic: str,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    times_us: npt.NDArray[np.int64],
    speed: float | None,
    progress: Callable[[int], None] = lambda sent: None,
) -> None:
    """Sends messages in order, paced by event time (`speed` seconds of it a second) or as fast as the broker takes them.

    config: librdkafka settings, "bootstrap.servers" among them; they win over `PRODUCER`. times_us: each message's event time,
    microseconds, never decreasing. progress is told how many were handed over. Returns when all are delivered. Raises
    ReplayError if any is not.
    """
    sink = KafkaSink(config["bootstrap.servers"], {**PRODUCER, **config})  # type: ignore[dict-item]
    started, at = time.monotonic(), 0
    try:
        while at < len(values):
            end = min(at + SLICE, len(values))
            if speed:
                passed = (time.monotonic() - started) * speed * 1e6
                end = min(end, int(np.searchsorted(times_us, times_us[0] + passed, side="right")))
                if end <= at:
                    ahead = (times_us[at] - times_us[0] - passed) / (speed * 1e6)
                    time.sleep(max(ahead, TICK_SECONDS))
                    continue
            sink.write(Messages(topic, list(keys[at:end]), list(values[at:end])))
            at = end
            progress(at)
        sink.flush()
    except DeliveryError as error:
        raise ReplayError(f"replay to {topic}: {error.count} messages or more not delivered: {error.reason}") from error
    finally:
        sink.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints one JSON line with what was sent."""
    parser = argparse.ArgumentParser(prog="python -m ops.replay", description=__doc__)
    parser.add_argument("pipeline", help="PATH.py:NAME, or flights")
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--config", action="append", default=[], metavar="KEY=VALUE", help="a further librdkafka setting")
    parser.add_argument("--start", type=_date, default=None, help="first day of event time, UTC")
    parser.add_argument("--end", type=_date, default=None, help="the day after the last")
    parser.add_argument(
        "--speed", type=float, default=None, help="seconds of event time a second; as fast as possible if not given"
    )
    parser.add_argument("--malformed", action="store_true", help="plant 100 malformed messages of ten kinds")
    parser.add_argument("--wait", action="store_true", help="begin when a line comes on standard input")
    options = parser.parse_args(arguments)
    from streams.pipeline import PipelineNotFoundError, load

    try:
        send(load(options.pipeline), options)
    except PipelineNotFoundError as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return USAGE
    except (LookupError, OSError, RuntimeError, ValueError) as error:
        return report(error)
    return 0


def send(pipeline: "Pipeline", options: argparse.Namespace) -> None:
    """Replays the pipeline's history as the options of the command line say. Raises what main reports."""
    events = pipeline.events
    if pipeline.model.history is None:
        raise ValueError(f"pipeline {pipeline.name} has no history to replay: its Model needs history")
    if options.malformed and events.format is not None:
        raise ValueError(f"pipeline {pipeline.name}: --malformed plants broken JSON, and its events are Avro")
    config = {"bootstrap.servers": options.brokers} | client_options(dict(pair.split("=", 1) for pair in options.config))
    require(options.brokers, [events.topic], config, options.pipeline)
    table = between(pipeline.model.history(), events.time, options.start, options.end)
    keys, values = _encoded(table, events)
    times = table[events.time].cast(pa.int64()).to_numpy()
    bad = malformed(events.schema, values[:1000]) if options.malformed else []
    keys, values, times = plant(keys, values, bad, times) if bad else (keys, values, times)
    if options.wait:
        print(json.dumps({"ready": len(values)}), flush=True)
        sys.stdin.readline()
    began = time.time()
    replay(config, events.topic, keys, values, times, options.speed)
    sent = {"sent": len(values), "malformed": len(bad), "bytes": sum(map(len, values))}
    print(json.dumps(sent | {"began": began, "seconds": round(time.time() - began, 3)}), flush=True)


def _encoded(table: pa.Table, events: "Topic") -> tuple[list[bytes], list[bytes]]:
    """Keys and values in the topic's format; in Avro by a schema that is added to the registry."""
    if events.format is None:
        return encode(table, events.schema, events.keys)
    from streams.settings import JobSettings

    settings = JobSettings()
    address = events.format.registry or settings.schema_registry.get_secret_value()
    if not address:
        raise ValueError(f"topic {events.topic}: expected a schema registry for Avro, got none: set HEADRACE_SCHEMA_REGISTRY")
    login = settings.schema_registry_login.get_secret_value()
    id = register(address, f"{events.topic}-value", avro_schema(events.schema), login)
    return encode_avro(table, events.schema, events.keys, id)


def between(table: pa.Table, time: str, start: datetime | None, end: datetime | None) -> pa.Table:
    """The rows whose time is in [start, end)."""
    if start is not None:
        table = table.filter(pc.greater_equal(table[time], pa.scalar(start, table[time].type)))
    if end is not None:
        table = table.filter(pc.less(table[time], pa.scalar(end, table[time].type)))
    return table


def _date(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


if __name__ == "__main__":
    sys.exit(main())
