"""Replays a pipeline's history to its topic: python -m ops.replay flights --brokers HOST:PORT."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Producer

from features.schema import Integer, Kind, Schema, Time

PRODUCER = {
    "acks": "all",
    "enable.idempotence": True,
    "linger.ms": 5,
    "partitioner": "murmur2_random",
    "message.max.bytes": 16 * 1024 * 1024,
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 512 * 1024,
    "delivery.report.only.error": True,
}
SLICE = 5_000


class ReplayError(RuntimeError):
    """Not everything was delivered."""


def encode(table: pa.Table, schema: Schema, keys: Sequence[str]) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of each row: the first of the columns `keys` that is not null, and a JSON object of the row's fields.

    A field is written where the row's kind has it, and not where it is null.
    """
    frame = pl.DataFrame(table.select(list(schema.fields)))
    parts = []
    for name, field in schema.fields.items():
        column = pl.col(name)
        if isinstance(field, Time):
            whole = column.dt.microsecond() == 0
            text = (
                pl.when(whole)
                .then(column.dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
                .otherwise(column.dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
            )
            text = pl.lit('"') + text + pl.lit('"')
        elif isinstance(field, Integer):
            text = column.cast(pl.String)
        elif isinstance(field, Kind):
            text = pl.lit('"') + column.cast(pl.String) + pl.lit('"')
        elif frame.schema[name] == pl.String:
            text = _json_string(column)
        else:
            text = column.cast(pl.String)
        present = column.is_not_null()
        if field.on and schema.kind:
            present &= pl.col(schema.kind).cast(pl.String).is_in(list(field.on))
        parts.append(pl.when(present).then(pl.lit(f'"{name}":') + text))
    values = frame.select(pl.lit("{") + pl.concat_str(parts, separator=",", ignore_nulls=True) + pl.lit("}")).to_series()
    key = frame.select(pl.coalesce(pl.col(name).cast(pl.String) for name in keys)).to_series()
    as_bytes = [series.cast(pl.Binary).to_arrow().cast(pa.binary()).to_pylist() for series in (key, values)]
    return as_bytes[0], as_bytes[1]


def _json_string(column: pl.Expr) -> pl.Expr:
    escaped = column.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
    return pl.lit('"') + escaped + pl.lit('"')


def plant(
    keys: list[bytes], values: list[bytes], bad: Sequence[tuple[str, bytes]], times_us: npt.NDArray[np.int64]
) -> tuple[list[bytes], list[bytes], npt.NDArray[np.int64]]:
    """Spreads bad messages evenly among the good ones, each with the key and time of the good one before it."""
    places = np.linspace(0, len(values), len(bad) + 2)[1:-1].astype(int)
    for (_, value), place in sorted(zip(bad, places, strict=True), key=lambda item: -item[1]):
        keys.insert(place, keys[place - 1])
        values.insert(place, value)
    return keys, values, np.insert(times_us, places, times_us[places - 1])


def replay(
    config: dict[str, str],
    topic: str,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    times_us: npt.NDArray[np.int64],
    speed: float | None,
    progress: Callable[[int], None] = lambda sent: None,
) -> None:
    """Sends messages in order, paced by event time (`speed` seconds of it a second) or as fast as the broker takes them.

    Returns when all are delivered. Raises ReplayError if any is not.
    """
    failed: list[str] = []

    def report(error: KafkaError | None, message: object) -> None:
        if error is not None:
            failed.append(error.str())

    producer = Producer({**PRODUCER, **config})
    started, first = time.monotonic(), int(times_us[0]) if len(times_us) else 0
    at = 0
    while at < len(values):
        end = min(at + SLICE, len(values))
        if speed:
            due = first + (time.monotonic() - started) * speed * 1e6
            end = min(end, int(np.searchsorted(times_us, due, side="right")))
            if end <= at:
                producer.poll(0.005)
                continue
        messages = [{"key": key, "value": value} for key, value in zip(keys[at:end], values[at:end], strict=True)]
        sent = producer.produce_batch(topic, messages, on_delivery=report)
        while sent < len(messages) and not failed:
            producer.poll(0.05)
            messages = [message for message in messages if "_error" in message]
            for message in messages:
                del message["_error"]
            sent = producer.produce_batch(topic, messages, on_delivery=report)
        producer.poll(0)
        if failed:
            break
        at = end
        progress(at)
    left = producer.flush(120)
    if failed or left:
        raise ReplayError(f"replay to {topic}: {len(failed)} messages refused, {left} not confirmed: {failed[:1]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; prints one JSON line with what was sent."""
    parser = argparse.ArgumentParser(prog="python -m ops.replay", description=__doc__)
    parser.add_argument("pipeline", help="PATH.py:NAME, or flights")
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--start", type=_date, default=None, help="first day of event time, UTC")
    parser.add_argument("--end", type=_date, default=None, help="the day after the last")
    parser.add_argument(
        "--speed", type=float, default=None, help="seconds of event time a second; as fast as possible if not given"
    )
    parser.add_argument("--malformed", action="store_true", help="plant 100 malformed messages of ten kinds")
    parser.add_argument("--wait", action="store_true", help="begin when a line comes on standard input")
    options = parser.parse_args(arguments)
    from streams.pipeline import load

    pipeline = load(options.pipeline)
    if pipeline.model.history is None:
        print(f"pipeline {pipeline.name} has no history to replay", file=sys.stderr)
        return 2
    table = between(pipeline.model.history(), pipeline.events.time, options.start, options.end)
    keys, values = encode(table, pipeline.events.schema, [pipeline.events.key, *pipeline.events.other_keys])
    times = table[pipeline.events.time].cast(pa.int64()).to_numpy()
    if options.malformed:
        from ops.malformed import malformed

        keys, values, times = plant(keys, values, malformed(pipeline.events.schema, values[:1000]), times)
    if options.wait:
        print(json.dumps({"ready": len(values)}), flush=True)
        sys.stdin.readline()
    began = time.time()
    try:
        replay({"bootstrap.servers": options.brokers}, pipeline.events.topic, keys, values, times, options.speed)
    except ReplayError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"sent": len(values), "began": began, "seconds": round(time.time() - began, 3)}), flush=True)
    return 0


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
