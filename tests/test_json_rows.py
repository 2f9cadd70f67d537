"""The kernel that writes rows of JSON is what joining strings says."""

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from kernels.json_rows import naive
from kernels.json_rows.cpu import YEAR_1, YEAR_10000, Part, Words, Writer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KINDS = st.lists(st.sampled_from(["constant", "plain", "quoted", "integer", "time", "word"]), max_size=8)


def part(kind: str, value: object) -> tuple[Part, object]:
    """A part, and its column."""
    match kind:
        case "constant":
            return str(value), None
        case "plain" | "quoted":
            return (kind,), pa.array(["x", *value], pa.string()).slice(1)  # type: ignore[misc]
        case "integer" | "time":
            return (kind,), pa.array(value, pa.int64()).to_numpy()
    texts, codes = value  # type: ignore[misc]
    return Words(texts), pa.array(codes, pa.int8()).to_numpy()


@given(st.data(), KINDS, st.integers(0, 9))
def test_rows_are_exact(data: st.DataObject, kinds: list[str], n: int) -> None:
    def column(of: st.SearchStrategy[object]) -> list[object]:
        return data.draw(st.lists(of, min_size=n, max_size=n))

    drawn: list[tuple[str, object]] = []
    for kind in kinds:
        if kind == "constant":
            drawn.append((kind, data.draw(TEXT)))
        elif kind in ("plain", "quoted"):
            drawn.append((kind, column(TEXT)))
        elif kind == "integer":
            drawn.append((kind, column(st.integers(-(2**63), 2**63 - 1))))
        elif kind == "time":
            drawn.append((kind, column(st.integers(YEAR_1, YEAR_10000 - 1))))
        else:
            texts = data.draw(st.lists(TEXT, min_size=1, max_size=4))
            drawn.append((kind, (texts, column(st.integers(0, len(texts) - 1)))))
    expected = naive.rows(drawn, n)
    parts, columns = zip(*(part(*one) for one in drawn), strict=True) if drawn else ((), ())
    writer = Writer(parts)
    given_columns = [column for column in columns if column is not None]
    assert writer.rows(given_columns, n) == expected
    assert writer.texts(given_columns, n).to_pylist() == [row.decode() for row in expected]


@example([52213752.0, 30000001024.0, 2.0**24 + 2, 8.5899346e9])
@given(st.lists(st.floats(width=32) | st.floats(0, 1, width=32) | st.integers(-99999, 99999).map(float), max_size=20))
def test_floats_are_the_shortest_that_read_back_the_same(values: list[float]) -> None:
    column = np.array(values, np.float32)
    for row, value in zip(Writer([("float",)]).rows([column], len(column)), column.tolist(), strict=True):
        assert naive.same_float(row.decode(), value), (row, value)


def test_words_may_grow() -> None:
    words = Words(["a"])
    writer = Writer([words, "!"])
    assert writer.rows([pa.array([0]).to_numpy()], 1) == [b"a!"]
    words.texts.append("longer")
    assert writer.rows([pa.array([1, 0]).to_numpy()], 2) == [b"longer!", b"a!"]
