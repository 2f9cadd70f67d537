"""The drift statistics are their formulas, their doctests' numbers hold, and small windows are no infinities."""

import doctest
import math

import numpy as np
import pytest

import kernels.drift_statistics
from kernels.drift_statistics import kolmogorov_smirnov, missing_difference, psi


def test_the_numbers_in_the_docstrings_hold() -> None:
    failed, tried = doctest.testmod(kernels.drift_statistics)
    assert (failed, tried >= 9) == (0, True)


def test_psi_is_the_sum_over_bins_with_half_a_row_added_to_each() -> None:
    reference, window = np.array([60, 40, 0, 0, 7]), np.array([5, 4, 1, 0, 3])
    q = [60.5 / 101.5, 40.5 / 101.5, 0.5 / 101.5]
    p = [5.5 / 11.5, 4.5 / 11.5, 1.5 / 11.5]
    expected = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(psi(reference, window)) == pytest.approx(expected, rel=1e-12)


def test_ks_is_the_largest_gap_of_the_distribution_functions() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=5000), random.normal(0.5, size=700)
    edges = np.quantile(a, np.arange(1, 50) / 50)
    counts = [np.append(np.bincount(np.searchsorted(edges, values), minlength=50), 9) for values in (a, b)]
    gaps = [abs(float((a <= edge).mean() - (b <= edge).mean())) for edge in edges]
    assert float(kolmogorov_smirnov(*counts)) == pytest.approx(max(gaps), abs=1e-12)


def test_missing_values_move_nothing_but_the_missing_rate() -> None:
    reference, window = np.array([50, 50, 0]), np.array([5, 5, 30])
    assert float(psi(reference, window)) == pytest.approx(0.0, abs=1e-12)
    assert float(kolmogorov_smirnov(reference, window)) == 0.0
    assert float(missing_difference(reference, window)) == 0.75


@pytest.mark.parametrize("window", [[0, 0, 0], [0, 0, 4], [1, 0, 0]])
@pytest.mark.parametrize("reference", [[0, 0, 0], [0, 0, 9], [0, 10, 0]])
def test_empty_windows_and_bins_give_finite_numbers(reference: list[int], window: list[int]) -> None:
    for statistic in (psi, kolmogorov_smirnov, missing_difference):
        assert 0 <= float(statistic(np.array(reference), np.array(window))) < np.inf


def test_statistics_of_many_windows_and_features_at_once_are_those_of_each() -> None:
    random = np.random.default_rng(2)
    reference, windows = random.integers(0, 50, (4, 7)), random.integers(0, 9, (5, 4, 7))
    for statistic in (psi, kolmogorov_smirnov, missing_difference):
        together = statistic(reference, windows)
        assert together.shape == (5, 4)
        for w in range(5):
            for f in range(4):
                assert together[w, f] == pytest.approx(float(statistic(reference[f], windows[w, f])), rel=1e-12)
