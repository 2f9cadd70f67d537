"""The expression language agrees with SQL's three-valued logic written out by hand, and says where an expression is wrong."""

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.expressions import compile_expression, mask

COLUMNS = pa.schema(
    [
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("at", pa.timestamp("us", "UTC")),
        ("x", pa.float64()),
        ("small", pa.float32()),
        ("n", pa.int64()),
        ("p", pa.bool_()),
        ("q", pa.bool_()),
        ("name", pa.string()),
    ]
)
TIMES = [
    datetime(2013, 3, 10, 6, 59, tzinfo=UTC),
    datetime(2013, 3, 10, 7, 0, tzinfo=UTC),
    datetime(2013, 11, 3, 5, 30, tzinfo=UTC),
]
ROWS: list[dict[str, Any]] = [
    {"kind": "a", "at": TIMES[0], "x": 1.5, "small": 0.7, "n": 2, "p": True, "q": False, "name": "u"},
    {"kind": "b", "at": TIMES[1], "x": None, "small": None, "n": None, "p": None, "q": True, "name": None},
    {"kind": "c", "at": TIMES[2], "x": -4.0, "small": 0.1, "n": 0, "p": False, "q": None, "name": "v"},
    {"kind": None, "at": None, "x": float("nan"), "small": -1.0, "n": -7, "p": None, "q": None, "name": ""},
]
BATCH = pa.RecordBatch.from_pylist(ROWS, COLUMNS)


def values(text: str) -> list[Any]:
    return compile_expression(text, COLUMNS)(BATCH).to_pylist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind == 'b'", [False, True, False, None]),
        ("'b' != kind", [True, False, True, None]),
        ("kind in ('a', 'c')", [True, False, True, None]),
        ("kind not in ['a']", [False, True, True, None]),
        ("n in (0, 2)", [True, None, True, False]),
        ("name not in ('u',)", [False, None, True, True]),
        ("name == 'v'", [False, None, True, False]),
        ("x is None", [False, True, False, True]),
        ("x is not None and n is None", [False, False, False, False]),
        ("p and q", [False, None, False, None]),
        ("p or q", [True, True, None, None]),
        ("not p", [False, None, True, None]),
        ("-1 < n <= 2", [True, None, True, False]),
        ("n > 1.5", [True, None, False, False]),
        ("small >= 0.7", [True, None, False, False]),
        ("n + 2 * n - 1", [5, None, -1, -22]),
        ("n / 2", [1.0, None, 0.0, -3.5]),
        ("-n", [-2, None, 0, 7]),
        ("abs(n)", [2, None, 0, 7]),
        ("min(n, 1)", [1, None, 0, -7]),
        ("max(x, n)", [2.0, None, 0.0, -7.0]),
        ("coalesce(n, 9)", [2, 9, 0, -7]),
        ("coalesce(x, n)", [1.5, None, -4.0, pytest.approx(float("nan"), nan_ok=True)]),
        ("log1p(n * n)", [pytest.approx(np.log(5)), None, 0.0, pytest.approx(np.log(50))]),
        ("1 + 1", [2, 2, 2, 2]),
        ("  n == 2  ", [True, None, False, False]),
    ],
)
def test_a_column_is_what_the_definition_says(text: str, expected: list[Any]) -> None:
    assert values(text) == expected


def test_times_are_read_in_their_zone_across_both_clock_changes() -> None:
    local = [row["at"] and row["at"].astimezone(ZoneInfo("America/New_York")) for row in ROWS]
    assert values("hour(at, 'America/New_York')") == [t and t.hour for t in local]
    assert values("minute_of_day(at, 'America/New_York')") == [t and t.hour * 60 + t.minute for t in local]
    assert values("weekday(at, 'America/New_York')") == [t and t.weekday() for t in local]
    assert values("weekday(at, 'Asia/Tokyo')")[2] == 6


@given(st.lists(st.tuples(st.sampled_from([None, True, False]), st.sampled_from([None, True, False])), max_size=20))
def test_and_or_not_are_three_valued(rows: list[tuple[bool | None, bool | None]]) -> None:
    columns = pa.schema([("p", pa.bool_()), ("q", pa.bool_())])
    batch = pa.RecordBatch.from_pylist([{"p": p, "q": q} for p, q in rows], columns)
    expected = []
    for p, q in rows:
        either = True if p or q else (None if p is None or q is None else False)
        expected.append(None if either is None else not either)
    assert compile_expression("not (p or q)", columns)(batch).to_pylist() == expected
    assert compile_expression("not p and not q", columns)(batch).to_pylist() == expected


def test_a_mask_counts_null_as_false() -> None:
    assert mask(compile_expression("p or q", COLUMNS), BATCH).tolist() == [True, True, False, False]
    sliced = BATCH.slice(1, 2)
    assert mask(compile_expression("kind == 'c'", COLUMNS), sliced).tolist() == [False, True]
    with pytest.raises(ValueError, match="'n': expected a condition, got int64"):
        mask(compile_expression("n", COLUMNS), BATCH)


def test_batches_with_other_columns_around_and_no_rows_do() -> None:
    expression = compile_expression("x > 1 and kind == 'a'", COLUMNS)
    assert expression.names == {"x", "kind"}
    assert expression.type == pa.bool_()
    batch = BATCH.select(["kind", "x"])
    assert expression(batch).to_pylist() == [True, False, False, False]
    assert expression(batch.slice(0, 0)).to_pylist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n >", "'n >': invalid syntax at character 4"),
        ("n > 1 and nam == 'u'", r"no column nam \(did you mean name\?\) at character 11"),
        ("zzz", r"no column zzz \(expected one of kind, at, x, small, n, p, q, name\) at character 1"),
        (
            "sqrt(n)",
            r"no function sqrt \(expected one of log1p, abs, min, max, coalesce, kilometres, hour, minute_of_day, weekday\)",
        ),
        ("min(n)", "min takes 2 values, got 1 at character 1"),
        ("x > 1 and name > 2", "> does not take string and int64 at character 11"),
        ("kind == 3", "== does not take dictionary<values=string, indices=int8, ordered=0> and int64 at character 1"),
        ("p and n", "and does not take bool and int64"),
        ("not n", "not does not take int64"),
        ("name + 1", r"\+ does not take string and int64"),
        ("n in ('a', 'b')", "`in` expects values of type int64 at character 6"),
        ("n in x", "`in` takes a list of values"),
        ("n in (1, x)", "`in` takes values, not columns"),
        ("n == None", "None stands only after `is` or `is not` at character 6"),
        ("n is 3", "`is` takes None only"),
        ("hour(n, 'UTC')", "hour takes a time, got int64 at character 6"),
        ("hour(at, 'America/New_Yrok')", "hour: no time zone America/New_Yrok at character 10"),
        ("hour(at, n)", "hour takes a time zone"),
        ("99999999999999999999 > n", "99999999999999999999 does not fit 64 bits at character 1"),
        ("__import__('os').system('true')", "cannot use"),
        ("[n for n in x]", "cannot use"),
        ("n ** 2", r"cannot use 'n \*\* 2' here at character 1"),
        ("n if p else x", "cannot use"),
        ("name == 'ü' and nope > 1", "no column nope .* at character 17"),
    ],
)
def test_a_wrong_expression_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        compile_expression(text, COLUMNS)
    assert "\n" not in str(caught.value)
