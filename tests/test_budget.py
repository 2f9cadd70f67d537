"""How long batches take is learned by their size, and what is likely to be late is known before it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.budget import FIRST_ROWS, FORGET_SECONDS, Budget, Lately, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_before_anything_is_known_a_round_is_small() -> None:
    assert Lately().of(1000) == 0.0
    assert Pace(Budget(0.001)).rows() == FIRST_ROWS


def test_what_was_seen_counts_by_size_and_all_but_the_longest_are_expected() -> None:
    lately = Lately()
    for k in range(64):
        lately.note(100, 0.010 if k % 32 else 9.0)
        lately.note(1000, 0.020)
    assert lately.of(100) == lately.of(127) == lately.of(64) == 0.010
    assert lately.of(128) == pytest.approx(0.020), "between two that are known"


def test_of_one_size_the_next_is_expected_in_proportion_of_two_by_their_slope() -> None:
    lately = Lately()
    lately.note(512, 0.006)
    assert lately.of(1024) == 0.012
    lately.note(256, 0.005)
    assert lately.of(1024) == pytest.approx(0.008), "a fixed part of 4 ms, and as much for 512 rows as 2 ms"
    assert lately.of(16) == 0.005, "fewer take no longer"


@given(st.lists(st.tuples(st.integers(1, 2**20), st.floats(0, 10)), max_size=200), st.floats(0, 20))
def test_the_most_that_fit_fit(seen: list[tuple[int, float]], seconds: float) -> None:
    lately = Lately()
    for rows, took in seen:
        lately.note(rows, took)
    most = lately.most(seconds)
    assert most == 1 or lately.of(most) <= seconds
    assert most == 2**23 or lately.of(2 * most) > seconds


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    clock = Clock()
    lately = Lately(clock=clock)
    lately.note(1024, 5.0)
    for _ in range(12):
        lately.note(64, 0.001)
        clock.now += 1.0
    assert clock.now - 100 > FORGET_SECONDS
    assert lately.of(1024) == pytest.approx(0.016)
    lately.note(1024, 7.0)
    assert lately.of(1024) == 7.0, "what is forgotten is not counted again"


def test_a_round_takes_what_is_decided_in_time_and_late_is_said_before_it_is() -> None:
    pace = Pace(Budget(10))
    for rows, took in ((256, 0.004), (512, 0.0065), (1024, 0.012)):
        for _ in range(8):
            pace.took(
                rows,
                rows // 2,
                10**9,
                10**9 + round(1e9 * took) - 2 * 10**6,
                10**9 + round(1e9 * took) - 10**6,
                10**9 + round(1e9 * took),
            )
    assert pace.rows() == 512
    now = 10**15
    polled = now - np.array([1, 7, 8, 9, 10]) * 10**6 - 10**5
    assert pace.late("score", polled, now)[:5].tolist() == [False, False, True, True, True]
    assert pace.late("decide", polled, now).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(("values", "message"), [((0.0, "mark"), "above 0, got 0"), ((5, "drop"), "mark or shed, got drop")])
def test_what_cannot_be_a_budget_is_refused(values: tuple[float, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(*values)  # type: ignore[arg-type]
