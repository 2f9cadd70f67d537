"""What a network takes is what the naive twin says and PyTorch's own preparation gives; a plan that cannot be is refused."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.gpu_checks import COLUMNS, assemble_inputs, assert_assembled
from kernels.assemble import cpu, naive
from kernels.assemble.cpu import BUCKET, MISSING, NUMBER, ONE_HOT, Column, check, plan
from models.network import Prepare


def assembled(columns: Sequence[Column], matrix: np.ndarray, hashes: np.ndarray | None = None) -> np.ndarray:
    """What the kernel gives for a plan that passes the check."""
    hashes = np.empty((0, len(matrix)), np.uint64) if hashes is None else hashes
    made = plan(columns)
    check(made, matrix.shape[1], len(hashes))
    out = np.full((len(matrix), len(columns)), np.nan, np.float32)
    cpu.assemble(matrix, hashes, *made, out)
    return out


@pytest.mark.parametrize("rows", [0, 1, 7, 97, 1023])
def test_the_kernel_is_its_naive_twin(rows: int) -> None:
    matrix, hashes, made = assemble_inputs(rows)
    expected = np.empty((rows, len(COLUMNS)), np.float32)
    naive.assemble(matrix, hashes, *made, expected)
    assert not np.isnan(expected).any()
    assert_assembled(assembled(COLUMNS, matrix, hashes), expected)


def test_numbers_are_prepared_as_pytorch_does() -> None:
    random = np.random.default_rng(5)
    skewed = random.lognormal(1, 1, (2, 1023))
    numbers = np.stack([random.normal(3, 2, 1023), skewed[0], -skewed[1], np.full(1023, 4.0)], 1).astype(np.float32)
    numbers[random.random(numbers.shape) < 0.1] = np.nan
    prepare = Prepare.of(numbers)
    assert prepare.skewed.tolist() == [0, 1, 1, 0]
    numbers[:8] = np.array([[-np.inf], [np.inf], [0.0], [-0.0], [-1e30], [1e30], [np.nan], [1e-30]], np.float32)
    with torch.no_grad():
        expected = prepare(torch.from_numpy(numbers)).numpy()
    learned = (prepare.median, prepare.low, prepare.high, prepare.skewed, prepare.mean, prepare.scale)
    values = torch.stack(learned, 1).tolist()
    columns = [Column(NUMBER, k, 0, tuple(each)) for k, each in enumerate(values)]
    out = assembled([*columns, *(Column(MISSING, k) for k in range(4))], numbers)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.floats(width=32), max_size=20), st.booleans())
def test_a_number_is_never_beyond_what_its_bounds_become(values: list[float], log: bool) -> None:
    matrix = np.array([-3, *values, 5], np.float32).reshape(-1, 1)
    out = assembled([Column(NUMBER, 0, 0, (0.5, -3, 5, log, 1, 2))], matrix)[:, 0]
    assert (out >= out[0] - 1e-6).all()
    assert (out <= out[-1] + 1e-6).all()


@given(st.lists(st.none() | st.integers(-1, 6), max_size=20), st.integers(1, 5))
def test_a_known_code_is_1_in_exactly_one_column_and_others_in_none(codes: list[int | None], size: int) -> None:
    matrix = np.array([np.nan if code is None else code for code in codes], np.float32).reshape(-1, 1)
    out = assembled([Column(ONE_HOT, 0, code) for code in range(size)], matrix)
    known = np.array([code is not None and 0 <= code < size for code in codes], np.bool_)
    assert np.array_equal(out.sum(1), known)
    assert np.array_equal(out[known].argmax(1), matrix[known, 0])


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=20), st.integers(2, 2**24) | st.just(2))
def test_a_bucket_is_one_of_those_there_are_and_the_first_that_of_null(values: list[int], buckets: int) -> None:
    hashes = np.array([values], np.uint64)
    out = assembled([Column(BUCKET, 0, buckets)], np.empty((len(values), 0), np.float32), hashes)[:, 0]
    assert np.array_equal(out == 0, hashes[0] == 0)
    assert ((out >= 0) & (out < buckets) & (out == np.trunc(out))).all()


def test_a_plan_of_nothing_gives_no_columns() -> None:
    assert assembled([], np.zeros((3, 2), np.float32)).shape == (3, 0)


@pytest.mark.parametrize(
    ("column", "error"),
    [
        (Column(4, 0), "a kind from 0 to 3, got 4"),
        (Column(-1, 0), "a kind from 0 to 3, got -1"),
        (Column(NUMBER, 4), "a source among the columns of the matrix, of 4, got 4"),
        (Column(MISSING, -1), "a source among the columns of the matrix, of 4, got -1"),
        (Column(ONE_HOT, 5, 1), "a source among the columns of the matrix, of 4, got 5"),
        (Column(BUCKET, 3, 10), "a source among the rows of hashes, of 3, got 3"),
        (Column(BUCKET, 0, 1), "2 to 16777216 buckets, got 1"),
        (Column(BUCKET, 0, 2**24 + 1), "2 to 16777216 buckets, got 16777217"),
        (Column(ONE_HOT, 0, 2**24), "a code from 0 to 16777215, got 16777216"),
        (Column(ONE_HOT, 0, -1), "a code from 0 to 16777215, got -1"),
        (Column(NUMBER, 0, 0, (0, 0, 1, 0, 0, 0)), r"a scale other than 0, got \[0.0, 0.0, 1.0, 0.0, 0.0, 0.0\]"),
        (Column(NUMBER, 0, 0, (np.nan, 0, 1, 0, 0, 1)), r"values without NaN and .*, got \[nan, 0.0"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(column: Column, error: str) -> None:
    with pytest.raises(ValueError, match=rf"^assemble: column 11: expected .*{error}"):
        check(plan([*COLUMNS, column]), 4, 3)
