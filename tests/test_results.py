"""The result file: what is refused, and that medians, ranges and ratios are those of the valid runs, turn by turn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import features, floor, latency, latency_run, spoiled, throughput

from bench.results import ResultError, check, read, spread, summarise
from bench.show import command_of


@pytest.mark.parametrize("made", [latency, throughput, floor, features])
def test_a_whole_file_is_read_as_it_was_written(made: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(made()))
    assert read(path) == made()


def _without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda held: held.pop(name)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda held: held.update(format=2), "format: expected 1, got 2"),
        (_without("format"), "format: expected 1, got none"),
        (_without("commit"), "commit: expected a value, got nothing"),
        (lambda held: held.update(kind="speed"), "kind: expected 'latency', 'throughput', 'floor' or 'features', got 'speed'"),
        (lambda held: held["runs"][1]["latency_ms"].update(p99="fast"), "runs[1].latency_ms.p99: expected"),
        (
            lambda held: held["runs"][1]["latency_ms"].update(p99=float("nan")),
            "runs[1].latency_ms.p99: expected a finite number, got nan",
        ),
        (
            lambda held: held["runs"][2].update(latency_ms=None),
            "runs[2].latency_ms: expected the figures of a valid run, got nothing",
        ),
        (
            lambda held: held["runs"][0].update(valid=False, why_not="lost 3"),
            "runs[0]: expected no figures in a run that is not valid (lost 3)",
        ),
        (
            lambda held: held["runs"].append(held["runs"][0]),
            "expected one run a system, turn and rate, got a second of ('headrace', 0, 1000",
        ),
        (_without("runs"), "runs: expected a list of runs, got nothing"),
    ],
)
def test_an_error_names_file_field_expected_and_got(spoil: Callable[[dict[str, Any]], object], said: str) -> None:
    held = latency()
    spoil(held)
    with pytest.raises(ResultError) as caught:
        check(held, "some.json")
    assert str(caught.value).startswith("some.json: ")
    assert said in str(caught.value)


def test_an_invalid_run_must_say_why() -> None:
    held = latency()
    held["runs"][0] = spoiled(held["runs"][0], "")
    with pytest.raises(ResultError, match=r"runs\[0\]: expected why_not"):
        check(held)


def test_a_file_that_is_no_json_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ResultError, match=r"a\.json: expected JSON"):
        read(tmp_path / "a.json")
    with pytest.raises(ResultError, match=r"b\.json: expected a result file, got No such file"):
        read(tmp_path / "b.json")


def test_median_and_range() -> None:
    assert spread([3, 1, 2, 10]) == {"median": 2.5, "min": 1, "max": 10, "n": 4}


def _run(system: str, turn: int, p50: float, rate: float = 1000) -> Any:
    run = latency_run(system, turn, rate, 1.0, seed=1)
    run["latency_ms"]["p50"] = p50
    return run


def test_ratios_are_of_the_same_turn() -> None:
    runs = [
        _run("headrace", 0, 4),
        _run("quix", 0, 2),
        _run("headrace", 1, 30),
        _run("quix", 1, 10),
        _run("headrace", 2, 5),
        _run("quix", 2, 1),
    ]
    found = summarise(runs)
    assert found["systems"]["headrace"]["p50"] == {"median": 5, "min": 4, "max": 30, "n": 3}
    assert found["ratios"]["quix"]["p50"] == {"median": 3, "min": 2, "max": 5, "n": 3}
    assert list(found["ratios"]) == ["quix"]


def test_an_invalid_run_counts_nowhere_and_takes_its_turn_out_of_the_ratio() -> None:
    runs = [_run("headrace", 0, 4), _run("quix", 0, 2), _run("headrace", 1, 30), _run("quix", 1, 1)]
    runs[3] = spoiled(runs[3], "lost 3", lost=3)
    found = summarise(runs)
    assert found["systems"]["quix"]["p50"]["n"] == 1
    assert found["systems"]["headrace"]["p50"]["n"] == 2
    assert found["ratios"]["quix"]["p50"] == {"median": 2, "min": 2, "max": 2, "n": 1}


def test_rates_are_kept_apart() -> None:
    runs = [_run("headrace", 0, 4), _run("relay", 0, 2), _run("headrace", 0, 9, 200_000), _run("relay", 0, 3, 200_000)]
    found = summarise(runs)
    assert found["systems"]["headrace"]["p50@1000"]["median"] == 4
    assert found["ratios"]["relay"]["p50@200000"]["median"] == 3
    assert "p50" not in found["systems"]["headrace"]


def test_a_command_names_no_folder_of_a_machine() -> None:
    words = ["/home/somebody/headrace/bench/swap.py", "--json", "/tmp/a/swap.json", "--log=/tmp/job.log", "--peer", "x=a/b"]
    assert command_of(words) == ["bench/swap.py", "--json", "swap.json", "--log=job.log", "--peer", "x=a/b"]
    assert command_of(["bench/swap.py", "--json", "results/swap.json"]) == ["bench/swap.py", "--json", "results/swap.json"]
