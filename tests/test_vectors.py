"""Vectors of numbers in messages: the kernel reads what the definition reads, to the bit, and what is wrong is named."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_decode import raw

from features.schema import Integer, Kind, Number, Schema, Text, Vector
from kernels.flat_json.naive import Fault, parse
from kernels.float_list.cpu import lists
from kernels.float_list.naive import number, parts, rounded
from streams.decode import Decoded, json_decoder, kernel_fields

HIGHEST = 3.4028235e38
RANGE = f"expected float in [{-HIGHEST}, {HIGHEST}]"
Point = Schema(
    "Point",
    version=1,
    fields={
        "kind": Kind(("point", "word")),
        "id": Integer(),
        "x": Vector(3, on=("point",)),
        "text": Vector(2, text=True, on=("point",), optional=True, low=-10, high=10),
        "word": Text(on=("word",)),
        "y": Number(optional=True),
    },
)
FIELDS = kernel_fields(Point)
GOOD = b'{"kind":"point","id":7,"x":[0.25,-1.5e1,3],"text":"0.1,0.2,","y":2.5}'
decode = json_decoder(Point, step="points/decode", topic="points")


def as_it_is(value: Any) -> Any:
    if isinstance(value, list):
        return [np.float32(item).tobytes() for item in value]
    return np.float64(value).tobytes() if isinstance(value, float) else value


def check(messages: Sequence[bytes | None], skip: int = 0) -> Decoded:
    """Decodes messages[skip:] as a slice and holds the result against the definition; returns it."""
    decoded = decode(raw(messages, first=0).slice(skip))
    decoded.rows.validate(full=True)
    found = [parse(message, FIELDS, 1_000_000) for message in messages]
    good = [i for i, row in enumerate(found) if i >= skip and not isinstance(row, Fault)]
    columns = [
        [as_it_is(value) for value in (column.indices if name == "kind" else column).to_pylist()]
        for name, column in ((field.name, decoded.rows.column(field.name)) for field in FIELDS)
    ]
    assert [list(row) for row in zip(*columns, strict=True)] == [[as_it_is(value) for value in found[i]] for i in good]
    assert decoded.rows["_offset"].to_pylist() == good
    bad = [(i, row.code) for i, row in enumerate(found) if i >= skip and isinstance(row, Fault)]
    assert list(zip(decoded.dead["_offset"].to_pylist(), decoded.dead["code"].to_pylist(), strict=True)) == bad
    return decoded


def with_x(text: str) -> bytes:
    return GOOD.replace(b"[0.25,-1.5e1,3]", text.encode())


def with_text(text: str) -> bytes:
    return GOOD.replace(b'"0.1,0.2,"', text.encode())


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (with_x("[1,2]"), "wrong_type", "expected 3 numbers, got 2 numbers at $.x"),
        (with_x("[1,2,3,4]"), "wrong_type", "expected 3 numbers, got 4 numbers at $.x"),
        (with_x("[1]"), "wrong_type", "expected 3 numbers, got 1 number at $.x"),
        (with_x("[]"), "wrong_type", "expected 3 numbers, got 0 numbers at $.x"),
        (with_x('[1,"2",3]'), "wrong_type", 'expected float, got "2" at $.x[1]'),
        (with_x('[1,2,"]"]'), "wrong_type", 'expected float, got "]" at $.x[2]'),
        (with_x("[1,2,null]"), "wrong_type", "expected float, got null at $.x[2]"),
        (with_x("[true,2,3]"), "wrong_type", "expected float, got true at $.x[0]"),
        (with_x("[1,[2],3]"), "wrong_type", "expected float, got an array of 1 items at $.x[1]"),
        (with_x("[1,1e39,3]"), "out_of_range", f"{RANGE}, got 1e+39 at $.x[1]"),
        (with_x("[1,1e400,3]"), "out_of_range", f"{RANGE}, got a number beyond float64 at $.x[1]"),
        (with_x('"1,2,3"'), "wrong_type", 'expected 3 numbers, got "1,2,3" at $.x'),
        (with_x("1"), "wrong_type", "expected 3 numbers, got 1 at $.x"),
        (with_x("null"), "null_value", "expected 3 numbers, got null at $.x"),
        (GOOD.replace(b'"x"', b'"z"'), "missing_field", "expected 3 numbers, got nothing at $.x"),
        (with_x("[1,2,NaN]"), "not_json", None),
        (with_x("[1,2,3,]"), "not_json", None),
        (with_x("[1,02,3]"), "not_json", None),
        (with_x("[1,.2,3]"), "not_json", None),
        (with_x("[1 2,3]"), "not_json", None),
        (with_x("[1,2,3"), "not_json", None),
        (with_text('"1"'), "wrong_type", "expected 2 numbers, got 1 number at $.text"),
        (with_text('"1,2,,"'), "wrong_type", "expected 2 numbers, got 3 numbers at $.text"),
        (with_text('""'), "wrong_type", "expected 2 numbers, got 0 numbers at $.text"),
        (with_text('"1,"'), "wrong_type", "expected 2 numbers, got 1 number at $.text"),
        (with_text('"1,nan"'), "wrong_type", 'expected float, got "nan" at $.text[1]'),
        (with_text('"1_0,2"'), "wrong_type", 'expected float, got "1_0" at $.text[0]'),
        (with_text('"1,\\"2"'), "wrong_type", 'expected float, got "\\"2" at $.text[1]'),
        (with_text('"1,10.5"'), "out_of_range", 'expected float in [-10, 10], got "10.5" at $.text[1]'),
        (with_text("[1,2]"), "wrong_type", "expected 2 numbers as text, between commas, got an array of 2 items at $.text"),
        (with_text('"1,2'), "not_json", None),
    ],
)  # fmt: skip
def test_each_fault_of_a_vector_has_its_code_and_place(message: bytes, code: str, reason: str | None) -> None:
    decoded = check([GOOD, message, GOOD])
    (letter,) = decoded.dead.to_pylist()
    assert letter["code"] == code
    if reason is not None:
        assert letter["reason"] == f"points/decode: {reason} (points/3@1)"


@pytest.mark.parametrize(
    "message",
    [
        with_x("[ 1 ,\n2,\t3 ]"),
        with_x("[1,2,0.1234567890123456789012]"),
        with_x("[1,2,123456789012345678901234567890]"),
        with_x("[-0,-0.0,0e-99]"),
        with_x("[1e-60,2E+5,3e38]"),
        with_x("[1e-46,1.1754942e-38,1e-45]"),
        with_text('" 1 , 2 , "'),
        with_text('"1,\\u0032"'),
        with_text('"-0,-0.0"'),
        with_text("null"),
        GOOD.replace(b'"x":', b'"x":[9,9,9],"x":'),
        GOOD.replace(b'"text":"0.1,0.2,",', b""),
        b'{"kind":"word","id":1,"word":"w","x":[1,2,3]}',
        b'{"kind":"word","id":1,"word":"w","x":"of another kind","text":5}',
    ],
)
def test_what_is_odd_but_right(message: bytes) -> None:
    assert check([message, GOOD, message]).dead.num_rows == 0


def test_float32_is_that_of_the_float64_even_where_rounding_twice_shows() -> None:
    tie = "1.00000005960464477540"  # just above half-way between 1 and the next float32, and its float64 is half-way
    values = check([with_x(f"[{tie},0.1,16777217]")]).rows["x"].to_pylist()[0]
    assert values == [float(np.float32(float(tie))), float(np.float32(0.1)), 16777216.0]


def test_what_is_plain_never_meets_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    plain = []
    for k in range(200):
        x = rng.normal(size=3) * 10.0 ** rng.integers(-12, 12, 3)
        one = [repr(float(value)) for value in x] if k % 3 else [str(np.float32(value)) for value in x]
        plain.append(with_x(f"[{', '.join(one) if k % 2 else ','.join(one)}]"))
        plain.append(with_text(json.dumps("".join(f"{value:.{k % 16 + 1}f}," for value in rng.random(2)))))
    expected = check(plain).rows

    def refuse(*_: object) -> None:
        raise AssertionError("the definition was asked")

    monkeypatch.setattr("kernels.flat_json.columns.parse", refuse)
    assert decode(raw(plain, first=0)).rows.equals(expected)


digits = st.from_regex(r"\A-?(0|[1-9][0-9]{0,21})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?\Z")
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda value: str(np.float32(value))),
    st.decimals(-11, 11, places=4).map(str),
    st.integers(-20, 20).map(str),
    digits,
)
odd = ["null", "", "1.", ".5", "+1", "01", "- 1", "1e", '"1"', "NaN", "[1]", "1 2", "x"]
items = st.one_of(*[numbers] * 12, st.sampled_from(odd))
spaces = st.sampled_from(["", "", "", " ", "\t", "\n\r ", "\x00"])


@st.composite
def points(draw: st.DrawFn) -> bytes:
    """Messages that are mostly right."""

    def between(most: int) -> str:
        size = draw(st.sampled_from([most] * 9 + [0, most - 1, most + 1]))
        return ",".join(draw(spaces) + draw(items) + draw(spaces) for _ in range(size))

    x = f"[{between(3)}{draw(st.sampled_from(['', '', '', ',']))}]"
    text = f'"{between(2)}{draw(st.sampled_from(["", ",", " , ", ",,"]))}"'
    members = [
        f'"kind":"{draw(st.sampled_from(["point", "point", "point", "word"]))}"',
        f'"id":{draw(st.integers(0, 9))}',
        f'"x":{draw(spaces)}{x}',
        f'"text":{draw(st.sampled_from([text, text, "null"]))}',
        '"word":"w]"',
    ]
    tail = draw(st.sampled_from(["", "", "", ' ,"more":[{"x":"]"}]', "}"]))
    return f"{{{','.join(draw(st.permutations(members)))}{tail}}}".encode()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | points(), max_size=6), st.integers(0, 2))
@example([GOOD[:k] + b"}" for k in range(len(GOOD))], 1)
@example([GOOD[:k] for k in range(len(GOOD))], 0)
@example([with_x('["'), with_x('["]'), with_text('"]'), with_text('"'), with_text('"}')], 0)
def test_the_kernel_reads_what_the_definition_reads(messages: list[bytes | None], skip: int) -> None:
    check(messages, skip)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(numbers, max_size=5), min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 12), st.booleans())
@example([["0.12345678"], ["0.1234567"], ["0.123456789"], ["1.12345678"]], 1, 0, True)
@example([["-0.5", "12345678.12345678"]], 2, 0, False)
def test_lists_of_any_size_anywhere_in_the_bytes(rows: list[list[str]], width: int, after: int, text: bool) -> None:
    """The kernel by itself, with its output poisoned first and few bytes or none after the last list's end."""
    data = bytearray()
    starts, lengths = [], []
    for row in rows:
        starts.append(len(data))
        data += ",".join(row).encode()
        lengths.append(len(data) - starts[-1])
        data += b'"'
    data += b"}" * after
    present = np.array([len(row) > 0 or not text for row in rows])
    out = np.full((len(rows), width), np.nan, np.float32)
    rare = np.zeros(len(rows), np.bool_)
    view = np.frombuffer(bytes(data), np.uint8)
    lists(view, np.array(starts, np.int32), np.array(lengths, np.int32), present, text, -HIGHEST, HIGHEST, out, rare)
    for k, row in enumerate(rows):
        if not present[k]:
            assert not rare[k]
            assert not out[k].any()
            continue
        values = [number(part) for part in parts(",".join(row))]
        assert None not in values
        expected = rounded([value for value in values if value is not None], -HIGHEST, HIGHEST)
        if isinstance(expected, int) or len(expected) != width:
            assert rare[k]
        elif not rare[k]:
            assert out[k].tobytes() == np.array(expected, np.float32).tobytes()


@settings(max_examples=500, deadline=None)
@given(
    st.integers(1, 9), st.lists(st.floats(0, 9.99), min_size=1, max_size=12), st.booleans(), st.booleans(),
    st.none() | st.tuples(st.integers(0, 200), st.sampled_from(b'0:/,.-e \x00\xff')), st.integers(0, 9),
)  # fmt: skip
def test_lists_of_numbers_written_alike(
    digits: int, numbers: list[float], comma: bool, text: bool, other: tuple[int, int] | None, after: int
) -> None:
    """Such as 0.25,0.50: one byte of them is another, anywhere."""
    written = bytearray(",".join(f"{value:.{digits}f}" for value in numbers).encode() + b"," * comma)
    if other:
        written[other[0] % len(written)] = other[1]
    width = len(numbers)
    data = np.frombuffer(bytes(written) + b'"' + b"}" * after, np.uint8)
    out, rare = np.full((1, width), np.nan, np.float32), np.zeros(1, np.bool_)
    size = np.array([len(written)], np.int32)
    lists(data, np.zeros(1, np.int32), size, np.ones(1, np.bool_), text, 0.0, 7.5, out, rare)
    shown = written.decode("latin-1")
    found = [number(part) for part in (parts(shown) if text else [part.strip(" ") for part in shown.split(",")])]
    expected = rounded([value for value in found if value is not None], 0.0, 7.5)
    if None in found or isinstance(expected, int) or len(expected) != width:
        assert rare[0]
    elif not rare[0]:
        assert out[0].tobytes() == np.array(expected, np.float32).tobytes()
    if other is None and (text or not comma) and max(numbers) <= 7.4:
        assert not rare[0]


def test_decimals_are_rarely_left_to_the_definition() -> None:
    rng = np.random.default_rng(2)
    texts = [b",".join(repr(float(value)).encode() for value in row) for row in rng.random((200, 50))]
    data = b'"'.join([*texts, b""])
    ends = np.cumsum([len(text) + 1 for text in texts])
    starts = np.concatenate([[0], ends[:-1]])
    out, rare = np.full((200, 50), np.nan, np.float32), np.zeros(200, np.bool_)
    sizes = (ends - 1 - starts).astype(np.int32)
    lists(np.frombuffer(data, np.uint8), starts.astype(np.int32), sizes, np.ones(200, np.bool_), False, 0.0, 1.0, out, rare)
    assert not rare.any()
    assert out.tolist() == [[float(np.float32(float(value))) for value in text.split(b",")] for text in texts]


def test_empty_batches_and_a_vector_without_rows() -> None:
    empty = decode(raw([]))
    assert (empty.rows.num_rows, empty.rows.schema.field("x").type) == (0, pa.list_(pa.float32(), 3))
    assert decode(raw([b"x", None])).rows["x"].to_pylist() == []
    with pytest.raises(ValueError, match="expected a width of at least 1, got 0"):
        Vector(0)


def test_a_vector_as_wide_as_a_message_is_long() -> None:
    wide = Schema("Wide", 1, {"id": Integer(), "x": Vector(20_000)})
    values = np.random.default_rng(1).normal(size=20_000).round(6)
    message = json.dumps({"id": 1, "x": values.tolist()}).encode()
    decoded = json_decoder(wide)(raw([message] * 2 + [b"{}"]))
    assert decoded.rows["x"].to_pylist()[1] == values.astype(np.float32).tolist()
    assert decoded.dead.num_rows == 1
