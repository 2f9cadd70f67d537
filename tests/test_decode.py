"""The decoder's kernel reads what the full parser reads, to the bit, and a bad message costs only itself."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.schema import Integer, Kind, Number, Schema, Text, Time
from kernels.flat_json.columns import Reader
from kernels.flat_json.cpu import MOST_DIGITS, nearest
from kernels.flat_json.naive import Fault, parse
from streams.decode import PROVENANCE, Ahead, Decoded, json_decoder, kernel_fields
from streams.replays import ORIGINAL, naming_originals

Flight = Schema(
    "Flight",
    version=1,
    fields={
        "kind": Kind(("weather", "departed", "größer")),
        "at": Time(after="2012-12-31", before="2015-01-01"),
        "flight_id": Integer(low=0, on=("departed",)),
        "origin": Text(max_bytes=8),
        "tailnum": Text(on=("departed",), optional=True, max_bytes=40),
        "dep_delay": Number(low=-1_440, high=10_000, on=("departed",)),
        "temp": Number(low=-1e300, high=1e300, on=("weather",), optional=True),
        "seen": Time(on=("weather",), optional=True),
        "big": Integer(low=-(2**63), high=2**63 - 1, on=("größer",)),
        "wide": Number(low=-1e308, high=1e308, on=("größer",), optional=True),
    },
)
FIELDS = kernel_fields(Flight)
GOOD = b'{"kind":"departed","at":"2013-01-01T10:15:00Z","flight_id":7,"origin":"EWR","tailnum":"N14228","dep_delay":2.5}'
decode = json_decoder(Flight, step="flights/decode", topic="flight-events")


def raw(values: Sequence[bytes | None], first: int = 1742) -> pa.RecordBatch:
    n = len(values)
    return pa.record_batch(
        {
            "_key": pa.array([b"%d" % i for i in range(n)], pa.binary()),
            "_value": pa.array(values, pa.binary()),
            "_partition": pa.array([3] * n, pa.int32()),
            "_offset": pa.array(range(first, first + n), pa.int64()),
            "_appended_at": pa.array(range(n), pa.int64()),
            "_polled_at": pa.array(range(n), pa.int64()),
        }
    )


def test_a_time_far_ahead_of_the_clock_is_refused_and_a_clock_of_long_ago_is_none() -> None:
    event = Schema("Event", version=1, fields={"id": Integer(), "at": Time(path="when.at")})
    polled = int(np.datetime64("2026-03-01T12:00:00", "ns").astype(np.int64))
    times = ["2026-02-01T00:00:00Z", "2026-03-02T12:00:00Z", "2026-03-02T12:00:00.000001Z", "nonsense", "2199-01-01T00:00:00Z"]
    batch = raw([json.dumps({"id": k, "when": {"at": at}}).encode() for k, at in enumerate(times)])
    of_now = batch.set_column(5, "_polled_at", pa.array([polled] * 5))
    told = {"step": "decode", "topic": "t", "ahead": Ahead("at", 86_400_000_000)}
    for reading in (of_now, batch):
        found = json_decoder(event, **told)(reading)
        assert found.rows.column("id").to_pylist() == ([0, 1] if reading is of_now else [0, 1, 2, 4])
        assert found.rows.num_rows + found.dead.num_rows == 5
    dead = json_decoder(event, **told)(of_now).dead
    assert dead.column("code").to_pylist() == ["time_out_of_range", "wrong_type", "time_out_of_range"]
    assert dead.column("reason")[2].as_py() == (
        "decode: expected time up to 2026-03-02T12:00:00Z, got 2199-01-01T00:00:00Z at $.when.at (t/3@1746)"
    )
    assert json_decoder(event, **told)(raw([])).rows.num_rows == 0
    replays = of_now.append_column(ORIGINAL, pa.array([7, 1743, 1744, 1745, 1746]))
    found = naming_originals(json_decoder(event, **told))(replays)
    assert found.rows.column("id").to_pylist() == [0, 1]
    assert set(found.rows.column("_polled_at").to_pylist() + found.dead.column("_polled_at").to_pylist()) == {polled}


def with_(**fields: Any) -> bytes:
    return json.dumps(json.loads(GOOD) | fields).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in json.loads(GOOD).items() if key != name}).encode()


def bits(value: Any) -> Any:
    return np.float64(value).tobytes() if isinstance(value, float) else value


def columns_of(decoded: Decoded) -> list[list[Any]]:
    """The rows as the full parser gives them."""
    columns = []
    for field in FIELDS:
        column = decoded.rows.column(field.name)
        if field.type == "kind":
            column = column.indices
        elif field.type == "time":
            column = column.cast(pa.int64())
        columns.append([bits(value) for value in column.to_pylist()])
    return [list(row) for row in zip(*columns, strict=True)]


def check(messages: Sequence[bytes | None], skip: int = 0) -> Decoded:
    """Decodes messages[skip:] as a slice and holds the result against the full parser; returns it."""
    decoded = decode(raw(messages, first=0).slice(skip))
    decoded.rows.validate(full=True)
    decoded.dead.validate(full=True)
    found = [parse(message, FIELDS, 1_000_000) for message in messages]
    good = [i for i, row in enumerate(found) if i >= skip and not isinstance(row, Fault)]
    assert columns_of(decoded) == [[bits(value) for value in found[i]] for i in good]
    assert decoded.rows["_offset"].to_pylist() == good
    bad = [(i, row) for i, row in enumerate(found) if i >= skip and isinstance(row, Fault)]
    assert list(zip(decoded.dead["_offset"].to_pylist(), decoded.dead["code"].to_pylist(), strict=True)) == [
        (i, fault.code) for i, fault in bad
    ]
    return decoded


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (with_(dep_delay="n/a"), "wrong_type", 'expected float, got "n/a" at $.dep_delay'),
        (with_(dep_delay=True), "wrong_type", "expected float, got true at $.dep_delay"),
        (with_(flight_id=1.5), "wrong_type", "expected integer, got 1.5 at $.flight_id"),
        (with_(origin={"a": 1}), "wrong_type", "expected string, got an object of 1 fields at $.origin"),
        (with_(kind=4), "wrong_type", "expected kind, got 4 at $.kind"),
        (with_(at="soon"), "wrong_type", 'expected time as YYYY-MM-DDTHH:MM:SS[.ffffff]Z, got "soon" at $.at'),
        (with_(at="2013-02-29T00:00:00Z"), "wrong_type", None),
        (with_(at="2013-01-01T00:00:00+01:00"), "wrong_type", None),
        (without("origin"), "missing_field", "expected string, got nothing at $.origin"),
        (without("kind"), "missing_field", "expected kind, got nothing at $.kind"),
        (b"{}", "missing_field", "expected kind, got nothing at $.kind"),
        (with_(dep_delay=None), "null_value", "expected float, got null at $.dep_delay"),
        (with_(kind="diverted"), "unknown_kind", 'expected one of weather, departed, größer, got "diverted" at $.kind'),
        (with_(dep_delay=10_001), "out_of_range", "expected float in [-1440, 10000], got 10001 at $.dep_delay"),
        (
            GOOD.replace(b"2.5", b"1e400"),
            "out_of_range",
            "expected float in [-1440, 10000], got a number beyond float64 at $.dep_delay",
        ),
        (with_(flight_id=-1), "out_of_range", f"expected integer in [0, {2**53}], got -1 at $.flight_id"),
        (
            with_(flight_id=2**64),
            "out_of_range",
            "expected integer in [0, 9007199254740992], got 1.8446744073709552e+19 at $.flight_id",
        ),
        (with_(origin="x" * 9), "out_of_range", 'expected at most 8 bytes, got 9 bytes: "xxxxxxxxx" at $.origin'),
        (
            with_(at="2015-01-01T00:00:00Z"),
            "time_out_of_range",
            'expected time in [2012-12-31T00:00:00Z, 2015-01-01T00:00:00Z), got "2015-01-01T00:00:00Z" at $.at',
        ),
        (with_(at="2012-12-30T23:59:59.999999Z"), "time_out_of_range", None),
        (b"[1, 2]", "not_object", "expected object, got an array of 2 items at $"),
        (b'"text"', "not_object", 'expected object, got "text" at $'),
        (b"null", "not_object", "expected object, got null at $"),
        (b"1e999", "not_object", "expected object, got a number beyond float64 at $"),
        (b"", "not_json", "expected JSON, got the end at character 0"),
        (None, "not_json", "expected JSON, got no value at $"),
        (GOOD.replace(b"2.5", b"NaN"), "not_json", f'expected JSON, got "NaN}}" at character {GOOD.index(b"2.5")}'),
        (GOOD.replace(b"2.5", b"-Infinity"), "not_json", None),
        (GOOD + b"x", "not_json", f'expected JSON, got "x" at character {len(GOOD)}'),
        (GOOD[:-1], "not_json", f"expected JSON, got the end at character {len(GOOD) - 1}"),
        (GOOD.replace(b"EWR", b"\\ud800").replace(b"2.5", b"1e400"), "not_json", None),
        (b"\xef\xbb\xbf" + GOOD, "not_json", None),
        (b"[" * 100_000, "not_json", None),
        (b"1e400" + b"[" * 100_000, "not_json", None),
        (GOOD.replace(b"EWR", b"\xff"), "bad_utf8", "expected UTF-8, got byte 0xff at byte 71"),
        (GOOD.replace(b"EWR", b"\xed\xa0\x80"), "bad_utf8", "expected UTF-8, got byte 0xed at byte 71"),
        (GOOD + b" " * 1_000_000, "too_large", f"expected at most 1000000 bytes, got {1_000_000 + len(GOOD)} bytes at $"),
        (b"\xff" * 1_000_001, "too_large", "expected at most 1000000 bytes, got 1000001 bytes at $"),
    ],
)
def test_each_fault_has_its_code_and_reason(message: bytes | None, code: str, reason: str | None) -> None:
    decoded = decode(raw([message]))
    assert decoded.rows.num_rows == 0
    (letter,) = decoded.dead.to_pylist()
    assert letter["code"] == code
    assert letter["reason"].startswith("flights/decode: expected ")
    assert letter["reason"].endswith(" (flight-events/3@1742)")
    if reason is not None:
        assert letter["reason"] == f"flights/decode: {reason} (flight-events/3@1742)"


def test_a_dead_letter_holds_the_first_bytes_size_digest_and_position() -> None:
    large = bytes(range(256)) * 4_000
    decoded = decode(raw([GOOD, large, None]))
    letters = decoded.dead.to_pylist()
    assert letters[0] | {"reason": ""} == {
        "code": "too_large",
        "reason": "",
        "value": large[: 64 * 1024],
        "size": 1_024_000,
        "sha256": hashlib.sha256(large).hexdigest(),
        "closed": False,
        "_key": b"1",
        "_partition": 3,
        "_offset": 1743,
        "_appended_at": 1,
        "_polled_at": 1,
    }
    assert (letters[1]["value"], letters[1]["size"], letters[1]["_offset"]) == (None, 0, 1744)


def test_got_is_shortened() -> None:
    for message in (with_(dep_delay="y" * 5_000), with_(kind="\u0000" * 5_000), with_(origin="é" * 5_000), b"?" * 5_000):
        (reason,) = decode(raw([message])).dead["reason"].to_pylist()
        assert len(reason.split(", got ")[1].split(" at ")[0]) <= 80


def test_a_row_has_the_schema_s_columns_the_key_and_provenance() -> None:
    decoded = decode(raw([GOOD]))
    assert decoded.rows.schema == pa.schema([*Flight.arrow(), *PROVENANCE])
    (row,) = decoded.rows.to_pylist()
    assert row["at"].isoformat() == "2013-01-01T10:15:00+00:00"
    assert [row[name] for name in ("kind", "flight_id", "tailnum", "dep_delay", "temp")] == ["departed", 7, "N14228", 2.5, None]
    assert [row[name] for name in PROVENANCE.names] == [b"0", 3, 1742, 0, 0]


def test_a_bad_message_in_the_middle_costs_only_itself() -> None:
    decoded = check([GOOD, with_(flight_id=8, origin="naïve\n"), b"{", with_(flight_id=9), None, with_(flight_id=10)])
    assert decoded.rows["flight_id"].to_pylist() == [7, 8, 9, 10]
    assert decoded.rows["origin"].to_pylist() == ["EWR", "naïve\n", "EWR", "EWR"]
    assert decoded.dead["_offset"].to_pylist() == [2, 4]


def test_empty_and_all_bad_batches() -> None:
    empty = decode(raw([]))
    assert (empty.rows.num_rows, empty.dead.num_rows) == (0, 0)
    assert empty.rows.schema == decode(raw([GOOD])).rows.schema
    assert empty.dead.schema == decode(raw([b"x"])).dead.schema
    bad = decode(raw([b"x"] * 9 + [None]))
    assert (bad.rows.num_rows, bad.dead.num_rows) == (0, 10)
    assert decode(raw([GOOD]).slice(1)).rows.num_rows == 0
    assert decode(raw([None, None])).dead["code"].to_pylist() == ["not_json"] * 2


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (GOOD[:-1] + b',"dep_delay":4}', "dep_delay", 4.0),
        (GOOD[:-1] + b',"dep_delay":null,"dep_delay":4}', "dep_delay", 4.0),
        (GOOD[:-1] + b',"tailnum":null}', "tailnum", None),
        (GOOD.replace(b"dep_delay", b"dep\\u005fdelay"), "dep_delay", 2.5),
        (GOOD[:-1] + b',"temp":"not of this kind","big":{}}', "temp", None),
        (GOOD[:-1] + b',"temp":1.5}', "temp", None),
        (GOOD[:-1] + b',"more":{"a":[1,{}]},"x":1e400}', "dep_delay", 2.5),
        (with_(at="2013-01-01T10:15:00+00:00"), "at", 1_357_035_300_000_000),
        (with_(at="2013-01-01t10:15:00.1234567z"), "at", 1_357_035_300_123_456),
        (with_(dep_delay=-0.0), "dep_delay", -0.0),
        (GOOD.replace(b"2.5", b"-0"), "dep_delay", 0.0),
    ],
)
def test_what_is_odd_but_right(message: bytes, field: str, value: Any) -> None:
    column = check([GOOD, message, GOOD]).rows.column(field)
    found = (column.cast(pa.int64()) if field == "at" else column).to_pylist()[1]
    assert bits(found) == bits(value)


spaces = st.text(" \t\r\n", max_size=2)
numbers = st.one_of(
    st.floats(-1_440, 10_000).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-1_500, 10_500).map(str),
    st.decimals(-1_440, 10_000, places=3).map(str),
    st.from_regex(r"\A-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?\Z"),
)
wholes = st.one_of(st.integers(-(2**64), 2**65), st.integers(0, 9_999), st.sampled_from([2**63 - 1, 2**63, -(2**63)])).map(str)
texts = st.one_of(st.text("ABC019", max_size=9), st.text(max_size=12))
quoted = st.builds(lambda text, ascii_: json.dumps(text, ensure_ascii=ascii_), texts, st.booleans())
times = st.one_of(
    st.datetimes(),
    st.datetimes(min_value=datetime(2012, 12, 30), max_value=datetime(2015, 1, 2)),
).map(lambda when: f'"{when.isoformat()}Z"')


def null_or(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(strategy, strategy, strategy, st.just("null"))


VALUES = {
    "kind": st.sampled_from(['"weather"', '"departed"', '"größer"', '"departed"', '"other"']),
    "at": times,
    "flight_id": null_or(wholes),
    "origin": quoted,
    "tailnum": null_or(quoted),
    "dep_delay": null_or(numbers),
    "temp": null_or(numbers),
    "seen": null_or(times),
    "big": wholes,
    "wide": null_or(numbers),
}
extras = st.tuples(quoted, st.one_of(quoted, numbers, st.sampled_from(["true", "false", "null", "[]", '{"a":[1]}'])))


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Objects that are mostly valid: any order, fields missing or of other kinds, unknown ones, white space, escapes."""
    names = [name for name in VALUES if draw(st.integers(0, 12))]
    members = [(json.dumps(name), draw(VALUES[name])) for name in draw(st.permutations(names))]
    members += draw(st.lists(extras, max_size=2))
    body = ",".join(f"{draw(spaces)}{name}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}" for name, value in members)
    return f"{draw(spaces)}{{{body}}}{draw(spaces)}".encode("utf-8", "surrogatepass")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | objects(), max_size=6), st.integers(0, 2))
def test_the_kernel_reads_what_the_full_parser_reads(messages: list[bytes | None], skip: int) -> None:
    check(messages, skip)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    message = bytearray(draw(st.sampled_from([GOOD, GOOD.replace(b"EWR", "Łódź".encode())])))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(message) - 1))
        piece = draw(
            st.binary(max_size=3) | st.sampled_from([b'"', b"}", b"{", b",", b":", b"\\", b"null", b"1e9", b" ", b"]"])
        )
        message[at : at + draw(st.integers(0, 3))] = piece
        message = message or bytearray(b" ")
    return bytes(message)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=60) | mutated(), min_size=1, max_size=6), st.integers(0, 2))
@example([b"}", b"{", b"{}", b'"', b" ", b"{ }\n", b'{"', b'{"}', b'{"kind"}', b'{"kind":}', b'{"kind":nul}', b'{"a":tru}'], 0)
@example([GOOD[:k] + b"}" for k in range(len(GOOD))], 1)
@example([GOOD[:k] for k in range(len(GOOD))], 0)
def test_no_bytes_break_it(messages: list[bytes | None], skip: int) -> None:
    check(messages, skip)


@pytest.mark.parametrize(
    "message",
    [
        GOOD,
        GOOD.replace(b",", b" ,\n\t").replace(b":", b" : ", 1) + b"\r\n",
        json.dumps(dict(reversed(json.loads(GOOD).items()))).encode(),
        GOOD.replace(b"EWR", "Łódź".encode()).replace(b"2.5", b"0.13436424411240122"),
        GOOD.replace(b'"N14228"', b"null")[:-1] + b',"temp":null,"big":null,"new":true,"other":"x","third":-1.5E3}',
        GOOD.replace(b"00Z", b"00.000001Z").replace(b"2.5", b"-1.25e+1"),
        b'{"kind":"weather","at":"2014-12-31T23:59:59Z","origin":""}',
    ],
)
def test_what_is_plain_never_meets_the_full_parser(message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = columns_of(check([message] * 3))

    def refuse(*_: object) -> None:
        raise AssertionError("the full parser was asked")

    monkeypatch.setattr("kernels.flat_json.columns.parse", refuse)
    assert columns_of(decode(raw([message] * 3))) == expected


def test_null_messages_with_bytes_beneath_are_null() -> None:
    batch = raw([GOOD, GOOD])
    _, offsets, data = batch["_value"].buffers()
    values = pa.Array.from_buffers(pa.binary(), 2, [pa.py_buffer(b"\x02"), offsets, data])
    decoded = decode(batch.set_column(1, "_value", values))
    assert (decoded.rows["_offset"].to_pylist(), decoded.dead["_offset"].to_pylist()) == ([1743], [1742])


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10**MOST_DIGITS - 1), st.integers(-45, 45))
@example(2**53 + 1, 0)
@example(9007199254740993, -1)
@example(10**19 - 1, 22)
@example(2**64 - 1025, -27)
def test_decimals_round_to_the_nearest(w: int, q: int) -> None:
    found = nearest(np.uint64(w), q)
    assert math.isnan(found) or found == float(f"{w}e{q}")


@pytest.mark.parametrize("literal", ["18446744073709551616", "1.8446744073709551616", "-36893488147419103232", "1" + "0" * 39])
def test_digits_that_wrap_around_64_bits_are_left_to_the_full_parser(literal: str) -> None:
    message = b'{"kind":"weather","at":"2013-01-01T00:00:00Z","origin":"EWR","temp":%s}' % literal.encode()
    assert check([message]).rows["temp"].to_pylist() == [float(literal)]


def test_decimals_are_uncertain_only_at_ties() -> None:
    rng = np.random.default_rng(3)
    found = [
        nearest(w, int(q))
        for w, q in zip(rng.integers(2**53, 2**63, 5_000, np.uint64), rng.integers(-40, 0, 5_000), strict=True)
    ]
    assert not np.isnan(found).any()
    assert math.isnan(nearest(np.uint64(2**53 + 1), 0))


def test_a_schema_of_more_than_64_fields_and_one_without_kind() -> None:
    wide = Schema("Wide", 1, {f"x{k}": Number(optional=k % 2 == 1) for k in range(150)})
    reader = Reader(kernel_fields(wide), 1_000_000)
    messages = [{f"x{k}": k + n / 3 for k in range(150) if k % 2 == 0 or n % 3} for n in range(9)]
    read = reader.read(pa.array([orjson.dumps(message) for message in messages], pa.binary()))
    assert not read.faults
    for k, column in enumerate(read.values):
        assert column.to_pylist() == [message.get(f"x{k}") for message in messages]


def test_a_kind_of_its_own_and_a_schema_without_numbers() -> None:
    words = Schema("Words", 1, {"kind": Kind(("a",)), "word": Text(on=("a",))})
    decoded = json_decoder(words)(raw([b'{"kind":"a","word":"x"}', b'{"word":"\\u0079","kind":"a"}']))
    assert decoded.rows.select(["kind", "word"]).to_pylist() == [{"kind": "a", "word": "x"}, {"kind": "a", "word": "y"}]


@pytest.mark.slow
def test_it_is_faster_than_orjson_and_polars() -> None:
    """Prints the nanoseconds per event beside both (pytest -s); half their speed would be a mistake somewhere."""
    rng = np.random.default_rng(1)
    events = [
        {
            "kind": "departed",
            "at": f"2013-{k % 12 + 1:02}-{k % 28 + 1:02}T10:{k % 60:02}:00Z",
            "flight_id": k,
            "flight": int(rng.integers(1, 5_000)),
            "origin": ("EWR", "JFK", "LGA")[k % 3],
            "tailnum": f"N{rng.integers(10_000, 99_999)}",
            "carrier": "UA",
            "dest": "IAH",
            "distance": float(rng.integers(80, 5_000)),
        }
        for k in range(4096)
    ]
    board = Schema(
        "Board",
        1,
        {
            "kind": Kind(("departed",)),
            "at": Time(),
            "flight_id": Integer(),
            "flight": Integer(),
            "origin": Text(),
            "tailnum": Text(),
            "carrier": Text(),
            "dest": Text(),
            "distance": Number(),
        },
    )
    decode = json_decoder(board)
    messages = [orjson.dumps(event) for event in events]
    batch, lines = raw(messages), b"\n".join(messages)
    schema = {name: pl.Series([value]).dtype for name, value in events[0].items()}
    found = decode(batch).rows.select(list(events[0])).to_pylist()
    assert found == [event | {"at": datetime.fromisoformat(str(event["at"]))} for event in events]
    ours = nanoseconds(lambda: decode(batch), 4096)
    peers = {
        "orjson": nanoseconds(lambda: [orjson.loads(message) for message in messages], 4096),
        "polars": nanoseconds(lambda: pl.read_ndjson(lines, schema=schema), 4096),
    }
    few = nanoseconds(lambda: decode(batch.slice(7, 3)), 1) / 1_000
    ratios = ", ".join(f"{name} {took:.0f} ns ({took / ours:.1f} x)" for name, took in peers.items())
    print(f"\n{len(lines) / 4096:.0f} bytes an event: ours {ours:.0f} ns, {ratios}; a batch of 3: {few:.0f} us")
    assert ours < min(peers.values())


def nanoseconds(work: Any, events: int) -> float:
    best = math.inf
    for _ in range(20):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best / events * 1e9
