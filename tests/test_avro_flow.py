"""The real flow with a topic of Avro: fields by path, a field added in mid-stream, unknown ids, a registry that is down."""

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import fastavro
import pytest
from payments import CHAMPION, Payment, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from features.schema import Integer, Kind, Number, Schema, Text, Time
from ops.errors import explain
from ops.fake_registry import FakeRegistry, fake_registry
from sinks.memory import MemorySink
from streams.avro import Avro
from streams.pipeline import Pipeline
from streams.run import run
from streams.schema_registry import RegistryError
from streams.settings import JobSettings
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes | None]]
CARD = {"type": "record", "name": "Card", "fields": [{"name": "number", "type": "string"}]}
FIRST: dict[str, Any] = {
    "type": "record",
    "name": "Payment",
    "namespace": "shop",
    "fields": [
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["paid", "refund"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "payment", "type": "long"},
        {"name": "card", "type": ["null", CARD]},
        {"name": "shop", "type": {"type": "record", "name": "Shop", "fields": [{"name": "id", "type": "string"}]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}
SECOND = FIRST | {"fields": [{"name": "amount", "type": "float"}, *FIRST["fields"]]}
Nested = Schema(
    "Payment",
    version=3,
    fields={
        "kind": Kind(("refund", "paid")),
        "at": Time(after="2024-01-01", before="2025-01-01"),
        "payment": Integer(low=0),
        "card": Text(optional=True, max_bytes=20, path="card.number"),
        "shop": Text(max_bytes=20, path="shop.id"),
        "amount": Number(low=0, high=1e6, optional=True),
    },
)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with fake_registry() as made:
        yield made


def pipeline(registry: str = "") -> Pipeline:
    like = payments()
    return replace(like, events=replace(like.events, schema=Nested, format=Avro(registry)))


def coded(event: dict[str, Any], schema: dict[str, Any], id: int) -> bytes:
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, id))
    fastavro.schemaless_writer(out, schema, event)
    return out.getvalue()


def nested(value: bytes) -> dict[str, Any]:
    event = json.loads(value)
    card = {"number": event["card"]} if "card" in event else None
    return event | {"card": card, "shop": {"id": event["shop"]}, "tags": ["a", "b"]}


def avro(log: Any, first: int, second: int) -> Log:
    """The same events in Avro: the first half of the older schema, and after that of both by turns."""
    schemas = [(FIRST, first), (SECOND, second)]
    made: Log = []
    for k, (key, value) in enumerate(log):
        event = nested(value)
        event["at"] = datetime.fromisoformat(event["at"])
        made.append((key, coded(event, *schemas[int(k >= len(log) // 2 and k % 2)])))
    return made


def served(job: Pipeline, values: JobSettings, log: Any, sink: MemorySink | None = None) -> MemorySink:
    sink = sink or MemorySink()
    source = MemorySource([log], rows=50)
    run(job, values, registry=CollectorRegistry(), source=source, sink=sink, champion=CHAMPION)
    return sink


def test_decisions_are_those_of_the_same_events_in_json_also_when_a_field_is_added(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    events = stream(400)
    log = avro(events, registry.add(FIRST), registry.add(SECOND))
    old = [k < 200 or k % 2 == 0 for k in range(400)]
    without = [
        (key, json.dumps({name: v for name, v in json.loads(value).items() if name != "amount"}).encode() if gone else value)
        for (key, value), gone in zip(events, old, strict=True)
    ]
    optional = Schema("Payment", 3, {**Payment.fields, "amount": replace(Nested.fields["amount"], path="")})
    in_json = replace(payments(), events=replace(payments().events, schema=optional))
    wanted = decisions(served(in_json, settings(tmp_path), without))
    got = decisions(served(pipeline(registry.address), settings(tmp_path), log))
    assert len(got) > 200
    for id, decision in got.items():
        times = ("decided_at", "event_time")
        assert {k: v for k, v in decision.items() if k not in times} == {k: v for k, v in wanted[id].items() if k not in times}
    assert len(got) == len(wanted)
    assert registry.asked == ["/schemas/ids/1", "/schemas/ids/2"]


def test_an_unknown_id_goes_to_dead_letters(tmp_path: Path, registry: FakeRegistry) -> None:
    log = avro(stream(30), registry.add(FIRST), registry.add(SECOND))
    log.insert(10, (b"k", b"\x00\x00\x00\x00\x63rest"))
    sink = served(pipeline(), settings(tmp_path, schema_registry=registry.address), log)
    (letter,) = map(json.loads, sink.values("pay.dead"))
    assert letter["code"] == "unknown_schema"
    assert letter["reason"] == ("payments/decode: expected a schema that the registry has, got id 99 at byte 1 (pay/0@10)")


def test_a_registry_that_is_down_stops_the_job_with_one_line_and_loses_nothing(tmp_path: Path) -> None:
    with fake_registry() as registry:
        log = avro(stream(60), registry.add(FIRST), registry.add(SECOND))
        known = dict(registry.schemas)
    values = settings(tmp_path, schema_registry=registry.address.replace("://", "://me:sesame@"), recovery=True)
    sink = MemorySink()
    with pytest.raises(RegistryError) as raised:
        served(pipeline(), values, log, sink)
    line = explain(raised.value)
    assert line.startswith(f"no schema registry answers at {registry.address} (")
    assert line.endswith(": start it, or name it with HEADRACE_SCHEMA_REGISTRY")
    assert "sesame" not in line + repr(values)
    with fake_registry(int(registry.address.rpartition(":")[2])) as again:
        again.schemas = known
        served(pipeline(), values, log, sink)
        assert again.logins == ["Basic bWU6c2VzYW1l"] * 2
    assert len(decisions(sink)) == sum(json.loads(value)["kind"] == "paid" for _, value in stream(60))


def test_without_an_address_it_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="topic pay: expected the address of a schema registry for Avro, got none"):
        served(pipeline(), settings(tmp_path), [])


def test_nothing_is_compiled_once_the_job_is_ready(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    script = [sys.executable, str(Path(__file__).with_name("late_compiles_avro.py")), str(tmp_path)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ready\n"
