"""bench.budget times polls and hand-overs by itself, finds what is lost, and says it in figures."""

import json
from pathlib import Path

import pytest

from bench import budget
from bench.figures import WrongError


@pytest.mark.slow
def test_overload_and_half_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "slow", lambda home, seconds: [])
    file = tmp_path / "out.json"
    assert budget.main(["--messages", "40000", "--turns", "1", "--milliseconds", "60000", "--json", str(file)]) == 0
    figures = {one["what"]: one for one in json.loads(file.read_text())["figures"]}
    assert all(one["median"] == 0 for what, one in figures.items() if "flagged late" in what)
    assert all(0 < one["median"] < 60_000 for what, one in figures.items() if "p99" in what)
    assert sum("a second" in what for what in figures) == 3


def test_a_call_for_each_partition_takes_as_long_as_there_are_of_them(tmp_path: Path) -> None:
    """Two at a time: the load's p99 is that of two calls or more, and of all together less than that of each."""
    made = budget.pipeline("slow")
    source = budget.Due(400, 8, 200.0)
    apart = budget.job(tmp_path / "apart", made, budget.Apart(source), source, by_poll=False)
    together = budget.job(tmp_path / "together", made, budget.Slow(), budget.Due(400, 8, 200.0), by_poll=False)
    assert 1e3 * budget.SLOW_SECONDS < together.p99_ms < apart.p99_ms
    assert apart.p99_ms > 3e3 * budget.SLOW_SECONDS


def test_a_lost_or_doubled_decision_gives_no_figures(tmp_path: Path) -> None:
    source, sink = budget.Due(80, 8, 0.0), budget.Handed()
    with pytest.raises(WrongError, match="expected 80 decisions, got 0"):
        budget.seen(source, sink, by_poll=True)


def test_the_highest_load_is_the_last_that_holds() -> None:
    assert budget.highest(lambda rate: rate) == 100.0
    assert budget.highest(lambda rate: 1.0, most=300.0) == 200.0
    with pytest.raises(WrongError, match="expected 25 messages a second"):
        budget.highest(lambda rate: 101.0)
