"""The real flow with a budget of time: what is late is flagged, or not scored; what waits for its turn is not polled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from payments import Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from sinks.memory import MemorySink
from streams.budget import FIRST_ROWS, Budget
from streams.job import Champion
from streams.run import run
from streams.source import MemorySource


class Slow(Arithmetic):
    """Takes so long for a call and for each row of it, by a clock of its own, and knows of how many rows each was."""

    def __init__(self, a_call: float, a_row: float = 0.0) -> None:
        self.a_call, self.a_row = a_call, a_row
        self.calls: list[int] = []
        self.now = 1_800_000_000 * 10**9

    def clock_ns(self) -> int:
        return self.now

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        self.now += round(1e9 * (self.a_call + len(matrix) * self.a_row))
        self.calls.append(len(matrix))
        return super().infer(matrix)


def run_once(
    home: Path, engine: Slow, budget: Budget, messages: int = 3000, partitions: int = 1, rows: int = 1000
) -> tuple[Any, ...]:
    sink, registry, log = MemorySink(), CollectorRegistry(), stream(messages)
    source = MemorySource([log[k::partitions] for k in range(partitions)], rows=rows, clock_ns=engine.clock_ns)
    parts = {"source": source, "sink": sink, "champion": Champion(1, engine, None), "clock_ns": engine.clock_ns}
    run(replace(payments(), budget=budget), settings(home), registry=registry, **parts)
    found = decisions(sink)
    assert len(found) == sum(b'"paid"' in value for _, value in log)
    return list(found.values()), registry


def test_in_time_nothing_is_flagged_and_the_time_is_shown(tmp_path: Path) -> None:
    engine = Slow(0.003)
    found, registry = run_once(tmp_path, engine, Budget(60_000, "shed"))
    assert not any("late" in each["flags"] or each["score"] is None for each in found)
    assert sum(engine.calls) > len(found), "a rehearsal's rows were never polled: they are not late"
    for hop in ("broker", "flow"):
        labels = {"pipeline": "payments", "hop": hop}
        assert registry.get_sample_value("headrace_hop_seconds_count", labels) == len(found)
        assert registry.get_sample_value("headrace_hop_seconds_bucket", labels | {"le": "60.0"}) == len(found)
        taken = registry.get_sample_value("headrace_hop_seconds_sum", labels)
        assert taken is not None
        assert taken == pytest.approx(0.003 * len(found)) if hop == "flow" else taken >= 0


def test_late_ones_are_decided_and_flagged(tmp_path: Path) -> None:
    found, registry = run_once(tmp_path, Slow(0.02), Budget(10))
    assert all("late" in each["flags"] and each["score"] is not None for each in found)
    flags = registry.get_sample_value("headrace_flags_total", {"pipeline": "payments", "flag": "late"})
    assert flags == len(found)


def test_late_ones_are_shed_without_a_score_and_some_are_scored_to_see(tmp_path: Path) -> None:
    engine = Slow(0.02)
    found, _ = run_once(tmp_path, engine, Budget(10, "shed"), 20_000, rows=250)
    shed = [each for each in found if each["score"] is None]
    assert 0 < len(shed) < len(found)
    assert all({"late", "fallback"} <= set(each["flags"]) and each["reasons"] == ["no_score"] for each in shed)
    assert all(each["flags"].count("late") <= 1 for each in found)
    late = [each for each in found if "late" in each["flags"]]
    assert len(late) > len(shed), "those that were scored were late, too"


@pytest.mark.parametrize("partitions", [1, 4])
def test_rounds_become_as_large_as_fits_the_budget(tmp_path: Path, partitions: int) -> None:
    """A millisecond a call, 50 us a row that is decided on, which are seven in ten: 0.7 of 20 ms are 370 rows."""
    engine = Slow(0.001, 50e-6)
    found, _ = run_once(tmp_path, engine, Budget(20), 20_000, partitions)
    assert 0.7 * 200 < np.median(engine.calls[5:]) < 0.7 * 400
    assert not any("late" in each["flags"] for each in found)
    roomy = Slow(0.001, 5e-6)
    run_once(tmp_path / "roomy", roomy, Budget(500), 20_000, partitions)
    assert max(roomy.calls) > 2 * FIRST_ROWS


def test_a_budget_that_sheds_needs_what_decides_without_a_score() -> None:
    with pytest.raises(ValueError, match="a policy that decides what its budget sheds"):
        replace(payments(), policy=None, budget=Budget(5, "shed"))
