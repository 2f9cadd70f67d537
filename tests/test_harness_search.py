"""The search for the highest rate that holds a bound, and what a long run says of memory."""

from typing import Any

import numpy as np
import pytest

from bench.over_time import first_and_last, per_minute, verdict
from bench.slo import Bound, bound, highest


def system(knee: float, flaky: set[float] | None = None) -> Any:
    """Runs whose p99 is 5 ms up to a rate, and 20 ms for every tenth beyond; the rates of `flaky` fail once."""
    once = set(flaky or ())

    def measure(rate: float) -> dict[str, Any]:
        p99 = 5.0 if rate <= knee else 20.0 * rate / knee
        if rate in once:
            once.discard(rate)
            p99 = 16.0
        return {"valid": True, "rate": rate, "latency_ms": {"p99": p99}, "lag": {"growth_per_s": 0.0}}

    return measure


@pytest.mark.parametrize("knee", [1_000, 1_900, 13_370, 101_000])
def test_the_highest_rate_is_found_to_a_tenth(knee: float) -> None:
    found = highest(system(knee), Bound("p99", 15), 1_000)
    assert knee / 1.11 <= found["rate"] <= knee
    assert knee < found["failed_at"] <= found["rate"] * 1.11
    assert len(found["tried"]) < 25


def test_a_rate_that_fails_once_is_tried_again() -> None:
    assert highest(system(13_370, {4_000.0}), Bound("p99", 15), 1_000)["rate"] > 12_000


def test_the_search_ends_where_nothing_holds_and_where_all_does() -> None:
    assert highest(system(10), Bound("p99", 15), 1_000)["rate"] is None
    top = highest(system(1e9), Bound("p99", 15), 1_000)
    assert (top["rate"], top["failed_at"]) == (200_000, None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"latency_ms": {"p99": 15.1}}, "p99 15.1 ms"),
        ({"lag": {"growth_per_s": 11.0}}, "what waits grows by 11 answers a second"),
        ({"valid": False, "why_not": "1 lost"}, "1 lost"),
    ],
)
def test_a_bound_is_broken_by_latency_by_a_growing_queue_and_by_a_wrong_run(change: dict[str, Any], why: str) -> None:
    run = {"valid": True, "rate": 1_000.0, "latency_ms": {"p99": 15.0}, "lag": {"growth_per_s": 9.0}}
    assert Bound("p99", 15).broken(run | change) == why


def test_bounds_are_read() -> None:
    assert bound("p99=15ms") == Bound("p99", 15)
    assert bound("p50=0.5s") == Bound("p50", 500)
    for text in ("p99", "p98=3ms", "p99=15", "p99=ms"):
        with pytest.raises(ValueError, match="--slo"):
            bound(text)


def test_a_long_run_compares_its_first_hour_with_its_last() -> None:
    steady = [[float(at), 500.0 + at % 7] for at in range(0, 14_400, 60)]
    grown = [[float(at), 500.0 + at / 60] for at in range(0, 14_400, 60)]
    assert first_and_last(steady, 14_400)["ratio"] == pytest.approx(1, abs=0.01)
    found = first_and_last(grown, 14_400)
    assert found["part_s"] == 3600
    assert (found["first"], found["last"]) == (530, 709.5)
    short = first_and_last([[0.0, 1.0], [30.0, 2.0], [60.0, 3.0]], 60)
    assert (short["first"], short["last"], short["ratio"]) == (1, 3, 3)
    said = verdict({"memory_mb": found, "p99_ms": short})
    assert "530.0 MB in the first 60 minutes, 709.5 MB in the last: GROWN" in said


def test_latency_is_kept_for_each_minute() -> None:
    intended = np.arange(0, 180, 0.1) * 1e9
    took = np.where(intended < 120e9, 5e6, 9e6)
    assert per_minute(intended.astype(np.int64) + 7, took.astype(np.int64), 7) == [[0, 5, 5], [60, 5, 5], [120, 9, 9]]
