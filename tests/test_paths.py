"""Fields by path in JSON: what lies deeper in a message is a column like any other, and what is wrong is named by its path."""

import json
from typing import Any

import pyarrow as pa
import pytest

from features.schema import Kind, Number, Schema, Text
from kernels.flat_json.columns import Reader
from ops.replay import encode
from streams.decode import kernel_fields

FIELDS = kernel_fields(
    Schema(
        "Payment",
        1,
        {
            "kind": Kind(("paid", "report"), path="head.kind"),
            "card": Text(path="card.id"),
            "lat": Number(path="card.home.lat", low=-90, high=90, on=("paid",)),
            "shop": Text(path="shop.id", optional=True),
        },
    )
)
GOOD: dict[str, Any] = {"head": {"kind": "paid"}, "card": {"id": "c", "home": {"lat": 1.5}}, "shop": None}


def read(event: dict[str, Any]) -> Any:
    columns = Reader(FIELDS, 1_000_000).read(pa.array([json.dumps(event).encode()], pa.binary()))
    return columns.faults[0] if columns.faults else [column[0].as_py() for column in columns.values]


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({}, ["paid", "c", 1.5, None]),
        ({"shop": {"id": "s", "more": [1]}}, ["paid", "c", 1.5, "s"]),
        ({"shop": {}}, ["paid", "c", 1.5, None]),
        ({"head": {"kind": "report"}, "card": {"id": "c", "home": 7}}, ["report", "c", None, None]),
    ],
)
def test_values_come_from_where_the_path_leads(change: dict[str, Any], row: list[Any]) -> None:
    assert read(GOOD | change) == row


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"card": {"id": "c", "home": None}}, ("null_value", "float", "null", "$.card.home.lat")),
        ({"card": {"id": "c", "home": {}}}, ("missing_field", "float", "nothing", "$.card.home.lat")),
        ({"card": {"id": "c"}}, ("missing_field", "float", "nothing", "$.card.home.lat")),
        ({"card": {"id": "c", "home": {"lat": 91}}}, ("out_of_range", "float in [-90, 90]", "91", "$.card.home.lat")),
        ({"card": 5}, ("wrong_type", "an object with a field id", "5", "$.card.id")),
        ({"head": {"kind": "lost"}}, ("unknown_kind", "one of paid, report", '"lost"', "$.head.kind")),
    ],
)
def test_faults_are_named_by_path(change: dict[str, Any], fault: tuple[str, ...]) -> None:
    assert tuple(read(GOOD | change)) == fault


def test_a_field_of_another_name_on_the_first_level_is_read_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.flat_json.columns.parse", None)
    reader = Reader(kernel_fields(Schema("A", 1, {"mine": Number(path="theirs")})), 100)
    assert reader.read(pa.array([b'{"theirs":2.5,"mine":1}'], pa.binary())).values[0].to_pylist() == [2.5]


def test_a_replay_writes_what_is_read_back_by_path() -> None:
    schema = Schema(
        "Payment",
        1,
        {
            "kind": Kind(("paid", "report"), path="head.kind"),
            "card": Text(path="card.id"),
            "lat": Number(path="card.home.lat", on=("paid",)),
            "shop": Text(path="shop.id", optional=True),
            "amount": Number(),
        },
    )
    rows = [
        {"kind": "paid", "card": 'c"1', "lat": 48.2, "shop": None, "amount": 1.5},
        {"kind": "report", "card": "c2", "lat": None, "shop": "s", "amount": 2.0},
    ]
    _, values = encode(pa.Table.from_pylist(rows, schema.arrow()), schema, ["card"])
    assert json.loads(values[0]) == {
        "head": {"kind": "paid"},
        "card": {"id": 'c"1', "home": {"lat": 48.2}},
        "shop": {"id": None},
        "amount": 1.5,
    }
    read = Reader(kernel_fields(schema), 1_000_000).read(pa.array(values, pa.binary()))
    assert not read.faults
    assert [[column[k].as_py() for column in read.values] for k in range(2)] == [list(row.values()) for row in rows]
