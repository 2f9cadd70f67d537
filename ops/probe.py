"""Latency of a job at a steady rate: the last events sent again as new ones, on a schedule fixed in advance."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import pyarrow as pa
from confluent_kafka import Producer

from ops.replay import encode
from ops.watch import Watcher
from streams.pipeline import Pipeline

NEW_IDS = 1_000_000_000
WARM_UP_SECONDS = 1.0


def as_new(events: pa.Table, pipeline: Pipeline) -> pa.Table:
    """The events as if they came again later: other ids, and times moved on by whole days until all are after the last."""
    time_name, id_name = pipeline.events.time, pipeline.events.id
    frame = pl.DataFrame(events)
    times = frame[time_name].dt.timestamp("us")
    days = int((times[-1] - times[0]) // 86_400_000_000) + 1
    moved = frame.with_columns(pl.col(time_name) + pl.duration(days=days), pl.col(id_name) + NEW_IDS)
    return moved.to_arrow().select(events.schema.names).cast(events.schema)


def probe(
    brokers: str, config: Mapping[str, Any], pipeline: Pipeline, events: pa.Table, rate: float, watcher: Watcher, topic: str
) -> npt.NDArray[np.float64]:
    """Sends the events at `rate` a second and returns the milliseconds from each intended send time to the moment the watcher
    held its decision, without those sent in the first second. Raises TimeoutError for decisions that never come."""
    keys, values = encode(events, pipeline.events.schema, pipeline.events.keys)
    ids = events[pipeline.events.id].to_pylist()
    producer = Producer(
        {"bootstrap.servers": brokers, "linger.ms": 2, "partitioner": "murmur2_random", "acks": "all", **config}
    )
    before = watcher.count(topic)
    start = time.time() + 0.2
    send_at = start + np.arange(len(values)) / rate
    _send(producer, pipeline.events.topic, keys, values, send_at)
    decided = [k for k, event in enumerate(_decided(events, pipeline)) if event]
    deadline = time.monotonic() + 20
    while watcher.count(topic) < before + len(decided):
        if time.monotonic() > deadline:
            raise TimeoutError(f"latency probe: expected {len(decided)} decisions, got {watcher.count(topic) - before}")
        time.sleep(0.05)
    intended = {ids[k]: send_at[k] for k in decided}
    came = watcher.when(topic, before)
    answers = [orjson.loads(value)["event_id"] for value in watcher.values[topic][before:]]
    latency = [(at - intended[answer]) * 1e3 for answer, at in zip(answers, came, strict=True)]
    late_enough = [intended[answer] >= start + WARM_UP_SECONDS for answer in answers]
    return np.array(latency)[np.array(late_enough)]


def _decided(events: pa.Table, pipeline: Pipeline) -> list[bool]:
    from features.expressions import compile_expression, mask

    batch = events.combine_chunks().to_batches()[0]
    return mask(compile_expression(pipeline.decide_on, batch.schema), batch).tolist()


def _send(
    producer: Producer, topic: str, keys: Sequence[bytes], values: Sequence[bytes], send_at: npt.NDArray[np.float64]
) -> None:
    sent = 0
    while sent < len(values):
        due = int(np.searchsorted(send_at, time.time(), side="right"))
        for k in range(sent, due):
            producer.produce(topic, values[k], keys[k])
        sent = max(sent, due)
        producer.poll(0)
        time.sleep(0.0005)
    left = producer.flush(20)
    if left:
        raise TimeoutError(f"latency probe: {left} events were not delivered")
