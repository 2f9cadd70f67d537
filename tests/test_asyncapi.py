"""docs/asyncapi.yaml describes the messages that are really written, and the events that are really read."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from jsonschema import Draft7Validator
from test_messages import UTC_US, batch_of, dead_batch, row

from features.schema import Integer, Kind, Number, Text, Time
from sinks.messages import encode_dead, encode_decisions, encode_drift

PATH = Path(__file__).parent.parent / "docs" / "asyncapi.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(PATH.read_text())
OURS = ("Decision", "DeadLetter", "DriftReport")
CLOSED = copy.deepcopy(DOCUMENT["components"])  # readers pass over fields that they do not know; here there are none such
for ours in OURS:
    CLOSED["schemas"][ours]["additionalProperties"] = False


def errors(schema: str, message: Any) -> list[str]:
    validator = Draft7Validator({"$ref": f"#/components/schemas/{schema}", "components": CLOSED})
    return [error.message for error in validator.iter_errors(message)]


def written(schema: str) -> list[Any]:
    """Messages as the encoders write them, with whatever may be missing missing in some."""
    if schema == "Decision":
        rows = [row(k, score=None if k % 4 == 0 else (k % 9) / 9, delay=None if k % 3 else 0.5) for k in range(12)]
        batch = batch_of(rows, delay=pa.float64())
        values = encode_decisions(batch, "t").values + encode_decisions(batch, "t", ("delay",)).values
    elif schema == "DeadLetter":
        values = encode_dead(
            dead_batch([b"x", None, b"y" * 70_000], 65_536, [None, b"\xff", b"k"]), "d", "flight-events"
        ).values
    else:
        columns = {
            "pipeline": pa.array(["flights"] * 2),
            "window_start": pa.array([0, 0]).cast(UTC_US),
            "window_end": pa.array([86_400_000_000] * 2).cast(UTC_US),
            "feature": pa.array(["temp_last_by_origin", None]),
            "statistic": pa.array(["psi", "rows"]),
            "value": pa.array([float("nan"), 3.0]),
            "threshold": pa.array([0.25, 100.0]),
            "alarmed": pa.array([False, False]),
            "rows": pa.array([900, 3]),
        }
        values = encode_drift(pa.RecordBatch.from_pydict(columns), "t").values
    return [json.loads(value) for value in values]


@pytest.mark.parametrize("schema", OURS)
def test_what_is_written_is_as_described_and_has_every_field(schema: str) -> None:
    messages = written(schema)
    for message in messages:
        assert errors(schema, message) == []
    described = DOCUMENT["components"]["schemas"][schema]
    assert set().union(*messages) == set(described["properties"])
    assert set(described["properties"]) - set(described["required"]) == ({"features"} if schema == "Decision" else set())


@pytest.mark.parametrize("schema", OURS)
def test_a_field_too_many_or_too_few_is_refused(schema: str) -> None:
    message = written(schema)[0]
    assert errors(schema, message | {"extra": 1})
    for name in DOCUMENT["components"]["schemas"][schema]["required"]:
        assert errors(schema, {key: value for key, value in message.items() if key != name})


WRONG = [
    ("Decision", "decision", "perhaps"),
    ("Decision", "decision_id", "other/flight-events/0/1"),
    ("Decision", "score", "0.5"),
    ("Decision", "score", 1.5),
    ("Decision", "reasons", []),
    ("Decision", "flags", ["missing"]),
    ("Decision", "flags", ["fallback", "fallback"]),
    ("Decision", "event_time", "2013-10-01 09:00:00.000000Z"),
    ("Decision", "decided_at", "2013-10-01T09:00:00.000000+00:00"),
    ("Decision", "model_version", 0),
    ("Decision", "schema_version", 2),
    ("DeadLetter", "code", "bad"),
    ("DeadLetter", "offset", -1),
    ("DeadLetter", "value_base64", "{}"),
    ("DeadLetter", "sha256", "ABC"),
    ("DeadLetter", "truncated", None),
    ("DriftReport", "statistic", "z"),
    ("DriftReport", "alarmed", 1),
    ("DriftReport", "value", "0.1"),
]


@pytest.mark.parametrize(("schema", "name", "value"), WRONG)
def test_a_wrong_value_is_refused(schema: str, name: str, value: Any) -> None:
    assert errors(schema, written(schema)[1] | {name: value})


@pytest.mark.parametrize("name", sorted(DOCUMENT["components"]["messages"]))
def test_the_examples_are_as_described(name: str) -> None:
    message = DOCUMENT["components"]["messages"][name]
    assert message["payload"]["$ref"] == f"#/components/schemas/{name}"
    for example in message["examples"]:
        assert errors(name, example["payload"]) == []


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 20
    for reference in found:
        node = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert DOCUMENT["asyncapi"] == "3.0.0"


def test_topics_and_events_are_the_pipelines() -> None:
    """Fields, kinds, bounds and what is required agree with the schema that events are decoded by."""
    from streams.flights import flights

    assert set(DOCUMENT["channels"]) == set(flights.topics())
    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == set(flights.topics())
    schema = flights.events.schema
    for kind in schema.kinds:
        described = copy.deepcopy(DOCUMENT["components"]["schemas"][kind.capitalize()])
        fields = {
            name: field for name, field in schema.fields.items() if isinstance(field, Kind) or not field.on or kind in field.on
        }
        assert set(described["properties"]) == set(fields)
        assert set(described["required"]) == {name for name, field in fields.items() if not field.optional}
        for name, field in fields.items():
            told = described["properties"][name]
            if "$ref" in told:
                told = DOCUMENT["components"]["schemas"][told["$ref"].rsplit("/", 1)[1]]
            match field:
                case Number() | Integer():
                    assert (told["minimum"], told["maximum"]) == (field.low, field.high)
                case Text():
                    assert told["maxLength"] == field.max_bytes
                case Time():
                    assert told["format"] == "date-time"
                case Kind():
                    assert told == {"const": kind}
            if not isinstance(field, Kind | Time):
                assert ("null" in told["type"]) == field.optional
    decision = DOCUMENT["components"]["schemas"]["Decision"]["properties"]
    assert set(decision["decision"]["enum"]) == set(flights.policy.decisions)
    assert decision["schema_version"]["const"] == schema.version
