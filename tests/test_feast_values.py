"""Feast's stored bytes are read as its own messages read them, as the naive twin does, whole or in pieces."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.views import load_feast
from kernels.feast_values import cpu, naive

load_feast()
from feast.protos.feast.types.Value_pb2 import FloatList, Value  # noqa: E402 - after load_feast, as CONTRIBUTING says
from google.protobuf.timestamp_pb2 import Timestamp  # noqa: E402

int32, int64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    st.just(Value()),
    st.just(Value(null_val=0)),
    st.builds(lambda v: Value(float_val=v), st.floats(width=32)),
    st.builds(lambda v: Value(double_val=v), st.floats()),
    st.builds(lambda v: Value(int32_val=v), int32),
    st.builds(lambda v: Value(int64_val=v), int64),
    st.builds(lambda v: Value(bool_val=v), st.booleans()),
)
times = st.integers(-(10**14), 4 * 10**15)


def own(value: Any) -> float:
    kind = value.WhichOneof("val")
    return math.nan if kind in (None, "null_val") else float(getattr(value, kind))


def stamp(microseconds: int) -> bytes:
    seconds, rest = divmod(microseconds, 1_000_000)
    message: bytes = Timestamp(seconds=seconds, nanos=rest * 1000).SerializeToString()
    return message


@given(values)
def test_a_number_is_what_feast_says(value: Any) -> None:
    np.testing.assert_equal(naive.number(value.SerializeToString()), own(value))


def reply(cells: list[bytes | None]) -> bytes:
    return b"*%d\r\n" % len(cells) + b"".join(b"$-1\r\n" if c is None else b"$%d\r\n%b\r\n" % (len(c), c) for c in cells)


@given(st.lists(st.tuples(st.lists(st.none() | values, min_size=3, max_size=3), st.none() | times), max_size=5), st.data())
def test_answers_of_redis_are_read_as_the_naive_twin_whole_or_in_pieces(rows: Any, data: Any) -> None:
    messages = [[None if cell is None else cell.SerializeToString() for cell in cells] for cells, _ in rows]
    stamps = [None if time is None else stamp(time) for _, time in rows]
    text = b"".join(reply([*cells, time]) for cells, time in zip(messages, stamps, strict=True))
    buffer = np.frombuffer(text, np.uint8)
    found, when = np.full((3, len(rows)), 7, np.float32), np.full(len(rows), 7, np.int64)
    at = row = 0
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    for end in [*cuts, len(text)]:
        at, row, state = cpu.replies(buffer, at, end, row, found, when)
        assert state == (cpu.READ if row == len(rows) else cpu.MORE)
    assert (at, row) == (len(text), len(rows))
    for k, (cells, time) in enumerate(zip(messages, stamps, strict=True)):
        expected = [naive.number(cell or b"") for cell in cells]
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found[:, k], np.array(expected).astype(np.float32))
        at_time = naive.microseconds(time or b"")
        assert when[k] == (cpu.NONE if at_time == 0 and all(map(math.isnan, expected)) else at_time)


@pytest.mark.parametrize(
    "text", [b"-ERR no\r\n", reply([b"x"] * 3), reply([b"\x0a\x01x", b"", b""]), b"*3\r\n:7\r\n", reply([b"5\x00", b"", b""])]
)
def test_what_is_no_such_answer_is_said(text: bytes) -> None:
    found, when = np.zeros((2, 1), np.float32), np.zeros(1, np.int64)
    at, row, state = cpu.replies(np.frombuffer(text, np.uint8), 0, len(text), 0, found, when)
    assert (at, row, state) == (0, 0, cpu.WRONG)


words = st.builds(lambda v: Value(string_val=v), st.text(max_size=40)) | st.builds(
    lambda v: Value(float_list_val=FloatList(val=v)), st.lists(st.floats(width=32), max_size=9)
)
cells = st.dictionaries(st.sampled_from(["a", "ab", "c", "5"]), values)
rows_of_sqlite = st.lists(
    st.tuples(cells, st.none() | words, st.sampled_from([b"7", b"-3", b"2024-01-10 00:00:00"])), max_size=5
)


def read_cells(texts: list[bytes], names: list[bytes], row: int = 0) -> tuple[int, Any, Any]:
    found, stamps = np.full((len(names), row + len(texts)), np.nan, np.float32), np.empty((len(texts), 2), np.int64)
    name_ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    data, spelt = np.frombuffer(b"\x1c".join(texts), np.uint8), np.frombuffer(b"".join(names), np.uint8)
    return cpu.cells(data, spelt, name_ends, row, found, stamps), found, stamps


@given(rows_of_sqlite, st.integers(0, 3))
def test_texts_of_sqlite_are_read_as_the_naive_twin(rows: Any, first: int) -> None:
    """Between them are features that nobody asked for, whose values are no numbers and hold any byte; some entities are not
    there."""
    texts, names = [], [b"ab", b"c", b"a", b"5"]
    for row, other, when in rows:
        held = {"other": other, **row} if other else row
        joined = b"\x1e".join(name.encode() + b"\x1f" + cell.SerializeToString() for name, cell in held.items())
        texts.append(joined + b"\x1d" + when if row else b"")
    wrong, found, stamps = read_cells(texts, names, first)
    assert wrong == -1
    assert np.isnan(found[:, :first]).all()
    for i, (row, _, when) in enumerate(rows):
        expected = [
            naive.number(row[name.decode()].SerializeToString()) if name.decode() in row else math.nan for name in names
        ]
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found[:, first + i], np.array(expected).astype(np.float32))
        begins, ends = stamps[i].tolist()
        assert (b"\x1c".join(texts)[begins:ends] if begins >= 0 else b"") == (when if row else b"")


@pytest.mark.parametrize(
    "text",
    [
        b"a\x1f\x0a\x01x\x1d7",
        b"a\x1f5\x00\x1d7",
        b"a",
        b"b\x1f\x0a\x7fx\x1d7",
        b"a\x1f5\x00\x00\x00\x00",
        b"b\x1f\x0f\x1d7",
    ],
)
def test_a_text_that_is_none_is_said(text: bytes) -> None:
    good = b"a\x1f5\x00\x00\x80?\x1d7"
    wrong, found, _ = read_cells([good, text, good], [b"a"])
    assert wrong == len(good) + 1
    assert found[0, 0] == 1
