"""What is written as Avro is what fastavro reads by the same schema, and what the topic's own decoder makes columns of."""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from payments import payments
from test_replay import consumed

from features.schema import Integer, Kind, Number, Schema, Text, Time, Vector
from ops.avro_messages import avro_schema, encode_avro, register, varints
from ops.broker import Broker
from ops.fake_registry import fake_registry
from ops.replay import send
from ops.topics import create
from streams.avro import Avro
from streams.decode import Decoded
from streams.pipeline import Pipeline
from streams.settings import JobSettings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PAID = ("paid",)
Mixed = Schema(
    "Mixed",
    1,
    {
        "kind": Kind(("paid", "refund")),
        "how": Text(on=PAID, path="card.how"),
        "at": Time(),
        "id": Integer(low=-(2**62), high=2**62),
        "card": Text(path="card.id.text", optional=True),
        "amount": Number(low=-1e300, high=1e300, on=PAID, path="paid.amount"),
        "times": Integer(optional=True, path="card.id.times"),
    },
)
ROW = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["paid", "refund"]),
        "how": st.text(max_size=20),
        "at": st.integers(0, 9_000_000_000_000_000),
        "id": st.integers(-(2**62), 2**62),
        "card": st.none() | st.text(max_size=300),
        "amount": st.floats(-1e300, 1e300),
        "times": st.none() | st.integers(-(2**50), 2**50),
    }
)


def table(rows: list[dict[str, Any]], schema: Schema = Mixed) -> pa.Table:
    columns = {}
    for name, field in schema.fields.items():
        values = pa.array([row[name] for row in rows], pa.string() if isinstance(field, Kind) else None)
        columns[name] = values.cast(pa.int64()).cast(field.arrow) if isinstance(field, Time) else values.cast(field.arrow)
    return pa.table(columns)


def decode(job: Pipeline, values: Sequence[bytes]) -> Decoded:
    n, zero = len(values), pa.array(np.zeros(len(values), np.int64))
    columns = [pa.nulls(n, pa.binary()), pa.array(values, pa.binary()), pa.array(np.zeros(n, np.int32)), pa.array(np.arange(n))]
    names = ["_key", "_value", "_partition", "_offset", "_appended_at", "_polled_at"]
    return job.events.decode("p/decode", JobSettings())(pa.RecordBatch.from_arrays([*columns, zero, zero], names))


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_fastavro_reads_what_was_written(rows: list[dict[str, Any]]) -> None:
    parsed = fastavro.parse_schema(avro_schema(Mixed))
    keys, values = encode_avro(table(rows), Mixed, ["card", "id"], 77)
    for row, key, value in zip(rows, keys, values, strict=True):
        assert value[:5] == b"\0\0\0\0\x4d"
        body = io.BytesIO(value[5:])
        got: Any = fastavro.schemaless_reader(body, parsed, None)
        assert not body.read()
        paid = row["kind"] == "paid"
        assert got["kind"] == row["kind"]
        assert got["card"] == {"how": row["how"] if paid else None, "id": {"text": row["card"], "times": row["times"]}}
        assert got["paid"] == {"amount": row["amount"] if paid else None}
        assert got["id"] == row["id"]
        assert (got["at"] - EPOCH) // timedelta(microseconds=1) == row["at"]
        assert key == (str(row["id"]) if row["card"] is None else row["card"]).encode()


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_numbers_of_variable_length(numbers: list[int]) -> None:
    for number, value in zip(numbers, varints(np.array(numbers, np.int64)).to_pylist(), strict=True):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, "long", number)
        assert value == out.getvalue()


def test_what_cannot_be_written_is_named() -> None:
    row = {"kind": "paid", "how": "x", "at": 1, "id": 2, "card": None, "amount": 1.5, "times": None}
    for wrong, said in [
        ({"how": None}, "Mixed: row 1: how: expected Text, got null"),
        ({"amount": float("inf")}, "Mixed: row 1: amount: expected a finite number"),
        ({"id": None}, "Mixed: row 1: id: expected Integer, got null"),
    ]:
        with pytest.raises(ValueError, match=said):
            encode_avro(table([row, row | wrong]), Mixed, ["card", "id"], 1)
    with pytest.raises(ValueError, match="Mixed: row 0: card: expected a key, got null"):
        encode_avro(table([row]), Mixed, ["card"], 1)
    assert len(encode_avro(table([row, row | {"kind": "refund", "how": None, "amount": None}]), Mixed, ["id"], 1)[1]) == 2
    with pytest.raises(ValueError, match="x: expected a field that can be written as Avro, got a Vector"):
        avro_schema(Schema("V", 1, {"x": Vector(3)}))
    with pytest.raises(ValueError, match="got 'a-b'"):
        avro_schema(Schema("V", 1, {"a-b": Text()}))
    assert avro_schema(Schema("V", 1, {"k": Kind(("on time", "late"))}))["fields"][0]["type"] == "string"


def test_a_schema_is_added_once_and_a_registry_that_refuses_is_named() -> None:
    with fake_registry() as registry:
        first = register(registry.address, "pay-value", avro_schema(Mixed), "me:secret")
        assert register(registry.address, "pay-value", avro_schema(Mixed)) == first
        assert register(registry.address, "pay-value", avro_schema(payments().events.schema)) != first
        assert registry.asked[0] == "/subjects/pay-value/versions"
        assert registry.logins[:2] == ["Basic bWU6c2VjcmV0", None]
        registry.failing = 403
        with pytest.raises(RuntimeError, match=f"{registry.address} refuses subject pay-value: 403"):
            register(registry.address, "pay-value", avro_schema(Mixed))
    with pytest.raises(RuntimeError, match="expected an id for subject pay-value, got"):
        register(registry.address, "pay-value", avro_schema(Mixed))


def test_a_replayed_history_is_read_back_by_the_topics_decoder(embedded_broker: Broker, name: Callable[[str], str]) -> None:
    rows = [
        {"kind": "paid", "at": 1_704_200_000_000_000 + k, "payment": k, "card": f"c{k % 7}", "shop": "s", "amount": k / 3}
        for k in range(500)
    ]
    topic = name("pay")
    like = payments()
    with fake_registry() as registry:
        events = replace(like.events, topic=topic, format=Avro(registry.address))
        sent = table(rows, events.schema)
        job = replace(like, events=events, model=replace(like.model, history=lambda: sent))
        create(embedded_broker.address, [topic], 1, {})
        options = argparse.Namespace(
            brokers=embedded_broker.address,
            config=[],
            pipeline="x",
            start=None,
            end=None,
            malformed=False,
            wait=False,
            speed=None,
        )
        send(job, options)
        assert registry.asked == [f"/subjects/{topic}-value/versions"]
        keys, values = zip(*consumed(embedded_broker.address, topic, len(rows)), strict=True)
        decoded = decode(job, values)
        assert decoded.dead.num_rows == 0
        assert pa.Table.from_batches([decoded.rows]).select(sent.column_names).to_pylist() == sent.to_pylist()
        assert list(keys) == [row["card"].encode() for row in rows]
        with pytest.raises(ValueError, match="--malformed plants broken JSON"):
            send(job, argparse.Namespace(**{**vars(options), "malformed": True}))
