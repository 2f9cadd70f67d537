"""The hash and the table are what their naive twins say, on odd sizes, nulls and slices."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.hashing import cpu, naive
from kernels.table import cpu as table
from kernels.table import naive as naive_table


@given(st.lists(st.none() | st.text(max_size=40)), st.integers(0, 3))
def test_strings_hash_as_the_naive_twin(values: list[str | None], skip: int) -> None:
    column = pa.array(values, pa.string())[skip:]
    expected = [naive.hash_bytes(None if v is None else v.encode()) for v in values[skip:]]
    assert cpu.hash_column(column).tolist() == expected


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_integers_hash_as_the_naive_twin(values: list[int | None]) -> None:
    assert cpu.hash_column(pa.array(values, pa.int64())).tolist() == [naive.hash_integer(v) for v in values]


@given(st.lists(st.tuples(st.none() | st.text(max_size=9), st.none() | st.integers(-5, 5)), min_size=1))
def test_columns_combine_as_the_naive_twin(rows: list[tuple[str | None, int | None]]) -> None:
    columns = [pa.array([r[0] for r in rows], pa.string()), pa.array([r[1] for r in rows], pa.int64())]
    expected = [naive.combine([naive.hash_bytes(None if a is None else a.encode()), naive.hash_integer(b)]) for a, b in rows]
    assert cpu.hash_columns(columns).tolist() == expected


def test_the_hash_never_changes() -> None:
    """Shards are cut by it: another value would orphan the state of every job."""
    assert naive.hash_bytes(b"N14228") == 0xC0CB28EFA2205F9F
    assert naive.hash_integer(-1) == 0xED0F9663AAF3AF91


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="strings or integers, got double"):
        cpu.hash_column(pa.array([1.5]))


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 16, 32, 48]), max_size=40), max_size=5))
def test_the_table_is_a_dict(batches: list[list[int]]) -> None:
    keys, slots = table.new_table()
    twin: dict[int, int] = {}
    used = 0
    for batch in batches:
        hashes = np.array(batch, np.uint64)
        out = np.full(len(batch), -7, np.int32)
        table.find(keys, slots, hashes, out)
        assert out.tolist() == naive_table.find(twin, batch)
        keys, slots = table.grow(keys, slots, used + len(batch))
        used = table.insert(keys, slots, hashes, out, used)
        assert out.tolist() == naive_table.insert(twin, batch)
        assert used == len(twin)
