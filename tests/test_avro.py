"""The kernel decodes what fastavro does and its definition says, and no bytes whatever lead it astray."""

import io
import json
import math
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.schema import Integer, Kind, Number, Schema, Text, Time, Vector
from kernels.avro.columns import Reader
from kernels.avro.naive import parse
from kernels.avro.writer import SchemaError, Type, read_schema
from kernels.flat_json.naive import Fault
from streams.avro import avro_decoder
from streams.decode import kernel_fields

POINT = {"type": "record", "name": "Point", "fields": [{"name": "lat", "type": "double"}, {"name": "lon", "type": "float"}]}
WRITER: dict[str, Any] = {
    "type": "record",
    "name": "Payment",
    "namespace": "a.b",
    "fields": [
        {"name": "tags", "type": {"type": "array", "items": ["null", "string", {"type": "map", "values": "bytes"}]}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["report", "other", "payment"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "seen", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "id", "type": "long"},
        {"name": "nothing", "type": {"type": "array", "items": "null"}},
        {"name": "card", "type": {"type": "record", "name": "Card", "fields": [
            {"name": "id", "type": "string"},
            {"name": "home", "type": ["null", POINT]},
            {"name": "brand", "type": {"type": "enum", "name": "Brand", "symbols": ["visa", "other"]}},
        ]}},
        {"name": "digest", "type": {"type": "fixed", "name": "Digest", "size": 3}},
        {"name": "ok", "type": "boolean"},
        {"name": "merchant", "type": ["null", "string", {"type": "record", "name": "Merchant", "fields": [
            {"name": "place", "type": "Point"}, {"name": "id", "type": "bytes"}, {"name": "more", "type": {"type": "map",
             "values": {"type": "array", "items": "Point"}}},
        ]}]},
        {"name": "amount", "type": ["int", "double", "null", "string"]},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "x", "type": {"type": "array", "items": "double"}},
    ],
}  # fmt: skip
PAID = ("payment",)
Payment = Schema(
    "Payment",
    1,
    {
        "kind": Kind(("payment", "report")),
        "at": Time(after="2012-12-31", before="2100-01-01"),
        "seen": Time(optional=True),
        "day": Time(on=PAID),
        "id": Integer(low=0, high=2**40),
        "code": Integer(path="id", low=-(2**63), high=2**63 - 1),
        "card": Text(path="card.id", max_bytes=12),
        "brand": Text(path="card.brand"),
        "lat": Number(path="card.home.lat", low=-90, high=90, on=PAID),
        "lon": Number(path="card.home.lon", optional=True),
        "digest": Text(max_bytes=3, optional=True, on=("report",)),
        "ok": Integer(),
        "merchant": Text(path="merchant.id", optional=True),
        "there": Number(path="merchant.place.lon", optional=True),
        "amount": Number(optional=True, low=-1e9),
        "price": Number(low=-1e12),
        "x": Vector(3, on=PAID),
        "new": Text(optional=True),
    },
)
FIELDS = kernel_fields(Payment)
RAW = fastavro.parse_schema(json.loads(json.dumps(WRITER).replace('"logicalType"', '"plain"')))
TYPE = read_schema(json.dumps(WRITER))
NUMBER = Schema("Number", 1, {"x": Number(optional=True), "t": Text(optional=True), "k": Integer(optional=True)})
EVENT: dict[str, Any] = {
    "tags": ["a", None, {"k": b"v"}],
    "kind": "payment",
    "at": 1_700_000_000_123,
    "seen": 1_700_000_000_123_456,
    "day": 19_000,
    "id": 7,
    "nothing": [None] * 3,
    "card": {"id": "c-1", "home": {"lat": 1.5, "lon": 0.25}, "brand": "visa"},
    "digest": b"abc",
    "ok": True,
    "merchant": {"place": {"lat": 3.0, "lon": 4.0}, "id": "mé".encode(), "more": {"a": [{"lat": 0.0, "lon": 0.0}]}},
    "amount": 2.5,
    "price": b"\x01\x02",
    "x": [1.0, 2.0, 0.1],
}


def find(id: int) -> Type | Fault:
    return TYPE if id == 7 else Fault("unknown_schema", "a schema that the registry has", f"id {id}", "byte 1")


def coded(event: Any, schema: Any = RAW, id: int = 7) -> bytes:
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, id))
    fastavro.schemaless_writer(out, schema, event)
    return out.getvalue()


GOOD = coded(EVENT)


def bits(value: Any) -> Any:
    if isinstance(value, list):
        return np.array(value, np.float32).tobytes()
    return np.float64(value).tobytes() if isinstance(value, float) else value


def check(messages: Sequence[bytes | None], fields: Any = FIELDS, find: Any = find, skip: int = 0) -> Any:
    """Decodes messages[skip:] as a slice and holds the result against the definition; returns it."""
    read = Reader(fields, 100_000, find).read(pa.array(messages, pa.binary()).slice(skip))
    columns = []
    for field, column in zip(fields, read.values, strict=True):
        column.validate(full=True)
        column = column.indices if field.type == "kind" else column.cast(pa.int64()) if field.type == "time" else column
        columns.append([bits(value) for value in column.to_pylist()])
    for i, message in enumerate(messages[skip:]):
        wanted = parse(message, fields, 100_000, find)
        if isinstance(wanted, Fault):
            assert read.faults[i] == wanted
        else:
            assert i not in read.faults
            assert [column[i] for column in columns] == [bits(value) for value in wanted]
    return read


def refuse_to_parse(*_: object) -> None:
    raise AssertionError("the definition was asked")


def test_what_is_right_is_read_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    report = EVENT | {"kind": "report", "card": {"id": "", "home": None, "brand": "other"}, "amount": None}
    messages = [GOOD, coded(report | {"merchant": None}), coded(report | {"price": b"\xff", "amount": 3})]
    check(messages)
    monkeypatch.setattr("kernels.avro.columns.parse", refuse_to_parse)
    read = Reader(FIELDS, 100_000, find).read(pa.array(messages, pa.binary()))
    rows = [{field.name: column[i].as_py() for field, column in zip(FIELDS, read.values, strict=True)} for i in range(3)]
    assert rows[0] == {
        "kind": "payment", "at": datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC),
        "seen": datetime(2023, 11, 14, 22, 13, 20, 123_456, UTC), "day": datetime(2022, 1, 8, tzinfo=UTC), "id": 7, "code": 7,
        "card": "c-1", "brand": "visa", "lat": 1.5, "lon": 0.25, "digest": None, "ok": 1, "merchant": "mé", "there": 4.0,
        "amount": 2.5, "price": 2.58, "x": [1.0, 2.0, float(np.float32(0.1))], "new": None,
    }  # fmt: skip
    assert (rows[1]["digest"], rows[1]["x"], rows[1]["lat"], rows[1]["merchant"]) == ("abc", None, None, None)
    assert (rows[2]["price"], rows[2]["amount"], rows[2]["day"]) == (-0.01, 3.0, None)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"id": -1}, ("out_of_range", "integer in [0, 1099511627776]", "-1", "$.id")),
        ({"at": 0}, ("time_out_of_range", None, "1970-01-01T00:00:00Z", "$.at")),
        ({"at": 2**62}, ("time_out_of_range", None, str(2**62), "$.at")),
        ({"kind": "other"}, ("unknown_kind", "one of payment, report", '"other"', "$.kind")),
        ({"card": {"id": "x" * 13, "home": None, "brand": "visa"}}, ("out_of_range", "at most 12 bytes", None, "$.card.id")),
        ({"card": {"id": "x", "home": None, "brand": "visa"}}, ("null_value", "float", "null", "$.card.home.lat")),
        ({"merchant": "text"}, ("wrong_type", "an object with a field id", None, "$.merchant.id")),
        ({"amount": "1"}, ("wrong_type", "float", '"1"', "$.amount")),
        ({"amount": math.nan}, ("out_of_range", None, "NaN", "$.amount")),
        ({"amount": -math.inf}, ("out_of_range", None, "a number beyond float64", "$.amount")),
        ({"x": [1.0, 2.0]}, ("wrong_type", "3 numbers", "2 numbers", "$.x")),
        ({"x": [1.0, 2.0, 1e300]}, ("out_of_range", None, "1e+300", "$.x[2]")),
        ({"merchant": EVENT["merchant"] | {"id": b"\xff"}}, ("bad_utf8", "UTF-8", "byte 0xff", "$.merchant.id")),
    ],
)
def test_each_fault_has_its_code_and_reason(change: dict[str, Any], fault: tuple[str | None, ...]) -> None:
    read = check([GOOD, coded(EVENT | change)])
    (found,) = read.faults.values()
    assert all(wanted in (None, got) for wanted, got in zip(fault, found, strict=True)), found


def test_every_cut_is_refused_with_its_place_and_more_bytes_too() -> None:
    read = check([*(GOOD[:k] for k in range(len(GOOD))), GOOD + b"\0", None, GOOD])
    assert len(read.faults) == len(GOOD) + 2
    assert {fault.code for fault in read.faults.values()} == {"not_avro"}
    assert read.faults[len(GOOD)] == Fault("not_avro", "the end", "1 bytes more", f"byte {len(GOOD)}")
    assert read.faults[len(GOOD) - 1].path == f"byte {len(GOOD) - 1}"


def test_size_head_and_schema_are_looked_at_first() -> None:
    other = GOOD[:4] + b"\x08" + GOOD[5:]
    read = check([b"\0" * 100_001, b"\x01" + GOOD[1:], other, b"", b"{}"])
    assert [fault.code for fault in read.faults.values()] == ["too_large", "not_avro", "unknown_schema", "not_avro", "not_avro"]
    assert read.faults[1].got == "byte 0x01"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    message = bytearray(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(5, len(message) - 1))
        if draw(st.booleans()):
            message[at] ^= 1 << draw(st.integers(0, 7))
        else:
            message[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=10) | st.just(b"\xff" * 9 + b"\x01"))
        message = message if len(message) > 5 else bytearray(GOOD)
    return bytes(message[: draw(st.integers(5, len(message)))] if draw(st.integers(0, 3)) == 0 else message)


garbage = st.binary(max_size=80).map(lambda body: GOOD[:5] + body)


@settings(max_examples=150)
@given(
    st.lists(st.none() | st.just(GOOD) | mutated() | garbage | st.binary(max_size=8), min_size=1, max_size=6), st.integers(0, 2)
)
def test_no_bytes_break_it(messages: list[bytes | None], skip: int) -> None:
    check(messages, skip=skip)


# schemas of any shape, and values of them

LEAVES: list[Any] = [
    "null", "boolean", "int", "long", "float", "double", "bytes", "string", {"type": "fixed", "name": "F", "size": 2},
    {"type": "fixed", "name": "E", "size": 0}, {"type": "enum", "name": "S", "symbols": ["a", "b"]},
    {"type": "long", "logicalType": "timestamp-nanos"}, {"type": "long", "logicalType": "timestamp-micros"},
]  # fmt: skip
NAMES = st.lists(st.sampled_from(["x", "t", "k", "y", "z"]), min_size=1, max_size=4, unique=True)


def shapes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    records = st.builds(lambda names, types: (names, types), NAMES, st.lists(inner, min_size=4, max_size=4))
    return st.one_of(
        records.map(lambda made: {"type": "record", "fields": [{"name": n, "type": t} for n, t in zip(*made, strict=False)]}),
        inner.map(lambda item: {"type": "array", "items": item}),
        inner.map(lambda item: {"type": "map", "values": item}),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda all_: [each for each in all_ if not isinstance(each, list)] or ["null"]
        ),
    )


def named(told: Any, count: list[int]) -> Any:
    """The schema with a name of its own for each type that needs one, and no type twice in a union."""
    if isinstance(told, list):
        branches: dict[Any, Any] = {}
        for each in told:
            made = named(each, count)
            key = made if isinstance(made, str) else made["type"] if "name" not in made else made["name"]
            branches.setdefault(key, made)
        return list(branches.values())
    if not isinstance(told, dict):
        return told
    made = {key: named(value, count) if key in ("items", "values") else value for key, value in told.items()}
    if told["type"] in ("record", "fixed", "enum"):
        count[0] += 1
        made["name"] = f"N{count[0]}"
    if "fields" in told:
        made["fields"] = [{"name": each["name"], "type": named(each["type"], count)} for each in told["fields"]]
    return made


def values(told: Any) -> st.SearchStrategy[Any]:
    """Values of a schema as fastavro takes them: of a union (name of the branch, value)."""
    if isinstance(told, list):
        return st.one_of([values(each).map(lambda v, each=each: (_name(each), v)) for each in told])
    kind = told if isinstance(told, str) else told["type"]
    match kind:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "int":
            return st.integers(-(2**31), 2**31 - 1)
        case "long":
            return st.integers(-(2**63), 2**63 - 1) | st.integers(-100, 10**16)
        case "float":
            return st.floats(width=32)
        case "double":
            return st.floats()
        case "bytes":
            return st.binary(max_size=5)
        case "string":
            return st.text(max_size=5)
        case "fixed":
            return st.binary(min_size=told["size"], max_size=told["size"])
        case "enum":
            return st.sampled_from(told["symbols"])
        case "array":
            return st.lists(values(told["items"]), max_size=3)
        case "map":
            return st.dictionaries(st.text(max_size=2), values(told["values"]), max_size=2)
    return st.fixed_dictionaries({each["name"]: values(each["type"]) for each in told["fields"]})


def _name(told: Any) -> str:
    return told if isinstance(told, str) else told.get("name", told["type"])


@st.composite
def written(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    inner = draw(st.recursive(st.sampled_from(LEAVES), shapes, max_leaves=8))
    fields = [{"name": name, "type": draw(st.sampled_from(LEAVES))} for name in draw(NAMES) if name != "y"]
    schema = named({"type": "record", "fields": [*fields, {"name": "y", "type": inner}]}, [0])
    return schema, draw(st.lists(values(schema), min_size=1, max_size=4))


DEEP = kernel_fields(
    Schema(
        "Deep",
        1,
        {
            "x": Number(optional=True, low=-1e300, high=1e300),
            "t": Text(optional=True),
            "k": Integer(optional=True, low=-(2**63), high=2**63 - 1),
            "yx": Number(optional=True, path="y.x"),
            "yt": Text(optional=True, path="y.t"),
            "yk": Time(optional=True, path="y.k"),
            "yyx": Integer(optional=True, path="y.y.x"),
            "yyt": Text(optional=True, path="y.y.t"),
            "yyk": Vector(2, optional=True, path="y.y.k"),
        },
    )
)


@settings(max_examples=120)
@given(written(), st.data())
def test_on_any_schema_the_kernel_reads_what_its_definition_and_fastavro_do(made: tuple[Any, list[Any]], data: Any) -> None:
    schema, events = made
    plain = fastavro.parse_schema(json.loads(json.dumps(schema).replace('"logicalType"', '"plain"')))
    writer = read_schema(json.dumps(schema))
    messages = [coded(event, plain) for event in events]
    cut = data.draw(st.integers(5, len(messages[0])))
    read = check([*messages, messages[0][:cut], messages[0] + b"\1"], DEEP, lambda id: writer)
    for i, message in enumerate(messages):
        theirs = fastavro.schemaless_reader(io.BytesIO(message[5:]), plain)
        if i in read.faults:
            assert read.faults[i].code not in ("not_avro", "not_object", "bad_schema")
            continue
        for place, name in enumerate(("x", "t", "k")):
            ours, value = read.values[place][i].as_py(), theirs.get(name)
            value = value.decode() if isinstance(value, bytes) else value
            assert ours == value


def test_a_record_that_holds_itself_and_one_that_is_too_much_are_left_to_the_definition() -> None:
    tree = {
        "type": "record",
        "name": "Tree",
        "fields": [{"name": "x", "type": "double"}, {"name": "in", "type": ["null", "Tree"]}],
    }
    messages = [
        coded({"x": 1.0, "in": {"x": 2.0, "in": None}}, fastavro.parse_schema(tree)),
        GOOD[:5] + (b"\0" * 8 + b"\2") * 500,
    ]
    schema = read_schema(json.dumps(tree))
    read = check(messages, kernel_fields(NUMBER), lambda id: schema)
    assert read.values[0][0].as_py() == 1.0
    assert read.faults[1].expected == "at most 200 types in each other"
    many: Any = "int"
    for k in range(18):
        name = {
            "type": "record",
            "name": f"R{k}",
            "fields": [{"name": "a", "type": many}, {"name": "b", "type": f"R{k - 1}" if k else "int"}],
        }
        many = name
    text = json.dumps(
        {"type": "record", "name": "Top", "fields": [{"name": "x", "type": "float"}, {"name": "many", "type": many}]}
    )
    wide = read_schema(text)
    message = GOOD[:5] + struct.pack("<f", 0.5) + b"\2" * 2**18
    read = Reader(kernel_fields(NUMBER), 10**6, lambda id: wide).read(pa.array([message], pa.binary()))
    assert (read.values[0].to_pylist(), read.faults) == ([0.5], {})


def test_a_writer_may_say_blocks_with_their_size() -> None:
    lists = {"skipped": "long", "x": "float"}
    fields_of = [{"name": name, "type": {"type": "array", "items": item}} for name, item in lists.items()]
    writer = {"type": "record", "name": "R", "fields": fields_of}
    schema = read_schema(json.dumps(writer))
    fields = kernel_fields(Schema("R", 1, {"x": Vector(2)}))
    item = struct.pack("<f", 1.5)
    good = GOOD[:5] + b"\x03\x04\xfe\xfe\x02\x02\x00" + b"\x01\x08" + item + b"\x02" + item + b"\x00"
    huge = GOOD[:5] + b"\x03" + b"\xff" * 9 + b"\x01"
    least = GOOD[:5] + b"\x00" + b"\xff" * 9 + b"\x01" + b"\x08" + item
    read = check([good, huge, least, good[:9]], fields, lambda id: schema)
    assert read.values[0][0].as_py() == [1.5, 1.5]
    assert set(read.faults) == {1, 2, 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON"),
        ('"Unknown"', "defined before"),
        ('{"type": "record", "name": "R"}', "expected fields"),
        ('{"type": "fixed", "name": "F", "size": -1}', "expected a size"),
        ('{"type": "enum", "name": "F", "symbols": ["a", "a"]}', "none twice"),
        ('[["null"], "int"]', "a union"),
        ("[]", "a union"),
        ("[" * 5000 + "]" * 5000, "expected"),
        ("7", "expected a type"),
        ('{"type": "array"}', "expected items"),
    ],
)
def test_what_is_no_schema_is_said(text: str, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        read_schema(text)


def test_names_are_found_in_their_namespace() -> None:
    inner = {"type": "record", "name": "In", "fields": [{"name": "k", "type": "int"}]}
    told = {"type": "record", "name": "a.b.Out", "fields": [{"name": "one", "type": inner}, {"name": "two", "type": "a.b.In"},
            {"name": "three", "type": ["null", "In"]}]}  # fmt: skip
    made = read_schema(json.dumps(told))
    assert made.parts[0] is made.parts[1] is made.parts[2].parts[1]


def test_the_message_itself_is_kept_where_it_is_asked_for() -> None:
    names = {"_key": pa.binary(), "_value": pa.binary(), "_partition": pa.int32(), "_offset": pa.int64()}
    given_columns = [[b"k"] * 2, [GOOD, b"x"], [3] * 2, [5, 6]]
    columns = [pa.array(column, kind) for column, kind in zip(given_columns, names.values(), strict=True)]
    zero = pa.array([0, 0], pa.int64())
    raw = pa.RecordBatch.from_arrays([*columns, zero, zero], [*names, "_appended_at", "_polled_at"])
    decoded = avro_decoder(Payment, find, step="p/decode", topic="t", whole=True)(raw)
    assert decoded.rows["_value"].to_pylist() == [GOOD]
    assert decoded.dead["reason"].to_pylist() == [
        "p/decode: expected a zero byte and a schema id, got byte 0x78 at byte 0 (t/3@6)"
    ]


@pytest.mark.parametrize(
    ("type", "value", "got"),
    [
        ({"type": "long", "logicalType": "timestamp-millis"}, 1_700_000_000_000, "2023-11-14T22:13:20Z"),
        ({"type": "long", "logicalType": "timestamp-millis"}, 2**62, str(2**62)),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, Decimal("12.50"), "12.5"),
    ],
    ids=["time", "no time", "decimal"],
)
def test_a_path_through_a_time_or_a_decimal_is_refused(type: dict[str, Any], value: Any, got: str) -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": type}]}
    out = io.BytesIO(b"\0\0\0\0\1")
    out.seek(5)
    fastavro.schemaless_writer(out, schema, {"a": value})
    writer = read_schema(json.dumps(schema))
    fields = kernel_fields(Schema("R", 1, {"b": Number(path="a.b")}))
    fault = parse(out.getvalue(), fields, 1_000, lambda id: writer)
    assert fault == Fault("wrong_type", "an object with a field b", got, "$.a.b")
