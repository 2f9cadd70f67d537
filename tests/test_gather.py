"""Rows of tables are those that the naive twin gives: of their own table, and the first one for what no table knows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu_checks import FIRST, gather_inputs
from kernels.gather import cpu, naive

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def gathered(matrix: np.ndarray, first: int, tables: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """What the kernel gives."""
    out = np.full((len(matrix), len(starts) - 1, tables.shape[1]), np.nan, np.float32)
    cpu.gather(matrix, first, tables, starts, out)
    return out


@pytest.mark.parametrize("rows", [0, 1, 7, 97, 1023])
@pytest.mark.parametrize("width", [1, 3, 8])
def test_the_kernel_is_its_naive_twin(rows: int, width: int) -> None:
    matrix, tables, starts = gather_inputs(rows, width)
    expected = np.empty((rows, 3, width), np.float32)
    naive.gather(matrix, FIRST, tables, starts, expected)
    np.testing.assert_array_equal(gathered(matrix, FIRST, tables, starts), expected)


@given(st.lists(st.floats(width=32) | st.integers(-2, 9).map(float), max_size=20), SIZES)
def test_a_row_is_always_one_of_its_own_table(codes: list[float], sizes: list[int]) -> None:
    starts = np.cumsum([0, *sizes])
    tables = np.repeat(np.arange(len(sizes)), sizes).astype(np.float32)[:, None]
    matrix = np.repeat(np.array(codes, np.float32)[:, None], len(sizes), 1)
    out = gathered(matrix, 0, tables, starts)[:, :, 0]
    assert np.array_equal(out, np.broadcast_to(np.arange(len(sizes)), out.shape))


@given(SIZES)
def test_codes_in_order_give_the_table_itself(sizes: list[int]) -> None:
    starts = np.cumsum([0, *sizes])
    tables = np.random.default_rng(0).normal(size=(starts[-1], 3)).astype(np.float32)
    matrix = np.repeat(np.arange(9, dtype=np.float32)[:, None], len(sizes), 1)
    out = gathered(matrix, 0, tables, starts)
    for t, size in enumerate(sizes):
        assert np.array_equal(out[:size, t], tables[starts[t] : starts[t + 1]])


def test_the_first_row_is_that_of_the_unknown() -> None:
    codes = np.array([[np.nan], [np.inf], [-np.inf], [-1], [-0.5], [-1e30], [1e30], [4], [3], [2.9], [0]], np.float32)
    tables = np.arange(6, dtype=np.float32)[:, None]
    assert gathered(codes, 0, tables, np.array([1, 5]))[:, 0, 0].tolist() == [1] * 8 + [4, 3, 1]
