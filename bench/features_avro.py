"""The part `avro` of `bench.features`: messages in Avro to the pipeline's columns, beside fastavro message by message.

The messages: card payments with records in records, a nullable one, an enum, a time, and an array and a map that no field asks
for. Half of each batch is of an older schema, which lacks a field.
"""

import argparse
import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from bench.figures import Figure, WrongError, figure, timed
from features.schema import Integer, Kind, Number, Schema, Text, Time
from kernels.avro.columns import Reader
from kernels.avro.writer import read_schema
from streams.decode import kernel_fields

GOAL = 0.2
MAX_BYTES = 1_000_000
POINT = {"type": "record", "name": "Point", "fields": [{"name": "lat", "type": "double"}, {"name": "lon", "type": "double"}]}
CARD = {"type": "record", "name": "Card", "fields": [{"name": "id", "type": "string"}, {"name": "home", "type": POINT}]}
MERCHANT = {
    "type": "record",
    "name": "Merchant",
    "fields": [{"name": "id", "type": "string"}, {"name": "category", "type": "string"}, {"name": "place", "type": "Point"}],
}
OLDER: dict[str, Any] = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["payment", "report"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "payment_id", "type": "long"},
        {"name": "card", "type": CARD},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "merchant", "type": ["null", MERCHANT]},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "more", "type": {"type": "map", "values": "string"}},
    ],
}
NEWER = OLDER | {"fields": [*OLDER["fields"], {"name": "channel", "type": "string"}]}
PAID = ("payment",)
PAYMENT = Schema(
    "Payment",
    1,
    {
        "kind": Kind(("payment", "report")),
        "at": Time(),
        "payment_id": Integer(low=0),
        "card": Text(path="card.id"),
        "home_lat": Number(low=-90, high=90, path="card.home.lat"),
        "home_lon": Number(low=-180, high=180, path="card.home.lon"),
        "merchant": Text(on=PAID, path="merchant.id"),
        "category": Text(on=PAID, path="merchant.category"),
        "lat": Number(low=-90, high=90, on=PAID, path="merchant.place.lat"),
        "lon": Number(low=-180, high=180, on=PAID, path="merchant.place.lon"),
        "amount": Number(low=0, on=PAID),
        "channel": Text(optional=True),
    },
)


def avro(options: argparse.Namespace) -> list[Figure]:
    """Nanoseconds a message, of the kernel and of fastavro, and what share of its time ours is."""
    schemas = [fastavro.parse_schema(json.loads(json.dumps(told))) for told in (OLDER, NEWER)]
    types = [read_schema(json.dumps(told)) for told in (OLDER, NEWER)]
    messages = messages_of(options.rows, schemas)
    column = pa.array(messages, pa.binary())
    reader = Reader(kernel_fields(PAYMENT), MAX_BYTES, lambda id: types[id])
    read = reader.read(column)
    if read.faults or not pa.RecordBatch.from_arrays(read.values, schema=PAYMENT.arrow()).equals(_theirs(messages, schemas)):
        raise WrongError("the kernel gives other columns than fastavro")
    ours, theirs = [], []
    for _ in range(options.turns):
        ours.append(min(timed(reader.read, column)[0] for _ in range(10)) / len(messages) * 1e9)
        theirs.append(timed(_theirs, messages, schemas)[0] / len(messages) * 1e9)
    what = f"{options.rows:,} messages of two schemas, 12 fields"
    share = [a / b for a, b in zip(ours, theirs, strict=True)]
    return [
        figure("avro", what, "ns a message", ours),
        figure("avro", "fastavro, each message, into the same columns", "ns a message", theirs),
        figure("avro", "share of fastavro's time", "", share, GOAL),
    ]


def messages_of(count: int, schemas: Sequence[Any]) -> list[bytes]:
    """So many payments in Avro, of two schemas in turn, whose ids are 0 and 1."""
    rng = np.random.default_rng(0)
    made = []
    for k in range(count):
        paid = bool(rng.random() < 0.9)
        place = {"lat": float(rng.uniform(-90, 90)), "lon": float(rng.uniform(-180, 180))}
        merchant = {"id": f"m-{rng.integers(10_000):07}", "category": "groceries", "place": place}
        event = {
            "kind": "payment" if paid else "report",
            "at": 1_700_000_000_000_000 + k,
            "payment_id": k,
            "card": {"id": f"c-{rng.integers(100_000):07}", "home": place},
            "tags": ["a", "b"],
            "merchant": merchant if paid else None,
            "amount": float(rng.integers(1, 10_000)) / 100 if paid else None,
            "more": {"terminal": "t-17"},
            "channel": "shop",
        }
        out = io.BytesIO()
        out.write(struct.pack(">bI", 0, k % 2))
        fastavro.schemaless_writer(out, schemas[k % 2], event)
        made.append(out.getvalue())
    return made


def _theirs(messages: Sequence[bytes], schemas: Sequence[Any]) -> pa.RecordBatch:
    """The columns, by fastavro: message by message, each field from where its path leads."""
    steps = [(name, (field.path or name).split("."), field.on) for name, field in PAYMENT.fields.items()]
    columns: dict[str, list[Any]] = {name: [] for name in PAYMENT.fields}
    for message in messages:
        event = fastavro.schemaless_reader(io.BytesIO(message[5:]), schemas[int.from_bytes(message[1:5])])
        kind = event["kind"]
        for name, path, on in steps:
            value: Any = event if not on or kind in on else None
            for step in path:
                value = value.get(step) if value is not None else None
            columns[name].append(value)
    codes = pa.array([PAYMENT.kinds.index(kind) for kind in columns["kind"]], pa.int8())
    arrays = [
        pa.DictionaryArray.from_arrays(codes, list(PAYMENT.kinds))
        if field.name == "kind"
        else pa.array(columns[field.name], field.type)
        for field in PAYMENT.arrow()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=PAYMENT.arrow())
