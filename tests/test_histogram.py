"""The histogram kernel is what searchsorted says: odd sizes, ties with edges, infinities, missing values, any cut."""

import numpy as np
import pytest

from kernels.histogram import cpu, naive

POISON = -(2**40)


def data(rows: int, features: int, inner: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    edges = np.sort(random.integers(-4, 5, (features, inner)), axis=1).astype(np.float32)
    for feature in range(features):
        edges[feature, inner - random.integers(0, inner + 1) :] = np.inf
    matrix = random.integers(-6, 7, (rows, features)).astype(np.float32) + random.choice([0, 0.5], (rows, features))
    odd = random.random((rows, features))
    matrix = np.where(odd < 0.1, np.nan, np.where(odd < 0.15, np.inf, np.where(odd < 0.2, -np.inf, matrix)))
    return matrix.astype(np.float32), edges


@pytest.mark.parametrize("rows", [0, 1, 7, 1023, 4097])
@pytest.mark.parametrize(("features", "inner"), [(1, 1), (3, 19), (23, 6)])
def test_counts_are_those_of_searchsorted(rows: int, features: int, inner: int) -> None:
    matrix, edges = data(rows, features, inner, seed=rows + inner)
    expected = np.zeros((features, inner + 2), np.int64)
    naive.histogram(matrix.astype(np.float64), edges.astype(np.float64), expected)
    counts = np.full_like(expected, POISON)
    cpu.histogram(matrix, edges, counts)
    assert np.array_equal(counts - POISON, expected)
    assert (counts - POISON).sum(1).tolist() == [rows] * features


def test_a_value_on_an_edge_is_below_it_and_infinity_in_the_last_bin_in_use() -> None:
    edges = np.array([[1, 2, np.inf]], np.float32)
    counts = np.zeros((1, 5), np.int64)
    cpu.histogram(np.array([[-np.inf], [1], [1.5], [2], [np.inf], [np.nan]], np.float32), edges, counts)
    assert counts.tolist() == [[2, 2, 1, 0, 1]]


def test_parts_add_up_to_the_whole() -> None:
    matrix, edges = data(1001, 5, 9, seed=3)
    whole, parts = np.zeros((5, 11), np.int64), np.zeros((5, 11), np.int64)
    cpu.histogram(matrix, edges, whole)
    for start in range(0, 1001, 97):
        cpu.histogram(matrix[start : start + 97], edges, parts)
    assert np.array_equal(parts, whole)
