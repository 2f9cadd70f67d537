"""Replays a pipeline's history to its topic: python -m ops.replay flights --brokers HOST:PORT."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.schema import Field, Kind, Schema, Text, Time
from ops.errors import PREFIX, USAGE, report
from ops.malformed import malformed
from ops.topics import require
from sinks.kafka import KafkaSink
from sinks.messages import DeliveryError, Messages

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
    of fraction or none, numbers are the shortest text that reads back the same.

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
    """The JSON objects of rows of one kind."""
    kind = part[schema.kind][0] if schema.kind else None
    if schema.kind:
        _refuse(part, schema, schema.kind, part[schema.kind].is_null(), "Kind, got null")
    texts: list[pl.Expr] = []
    comma = ""
    for name, field in schema.fields.items():
        if field.on and kind not in field.on:
            continue
        column = part[name]
        if not column.has_nulls():
            texts += [pl.lit(f"{comma}{json.dumps(name)}:"), *_texts(part, name, schema, field)]
            comma = ","
        elif field.optional:
            member = pl.concat_str(pl.lit(f",{json.dumps(name)}:"), *_texts(part, name, schema, field))
            texts.append(member.fill_null("") if comma else member.str.slice(1).fill_null(""))
            if not comma:
                raise ValueError(f"{schema.name}: {name}: expected a first field without nulls")
        else:
            _refuse(part, schema, name, column.is_null(), f"{type(field).__name__}, got null")
    return pl.concat_str([pl.lit("{"), *texts, pl.lit("}")])
