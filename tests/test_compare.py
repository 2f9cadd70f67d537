"""Comparing two result files: the same is no difference, slower is found, what cannot be compared is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_results import features, floor, latency, spoiled, throughput

from bench.compare import main


@pytest.fixture
def files(tmp_path: Path) -> Callable[[dict[str, Any], dict[str, Any]], list[str]]:
    def write(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
        (tmp_path / "a.json").write_text(json.dumps(a))
        (tmp_path / "b.json").write_text(json.dumps(b))
        return [str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json", str(tmp_path / "out.json")]

    return write


Files = Callable[[dict[str, Any], dict[str, Any]], list[str]]


@pytest.mark.parametrize("made", [latency, throughput, floor, features])
def test_a_file_against_itself_shows_no_difference(made: Callable[[], dict[str, Any]], files: Files, capsys: Any) -> None:
    assert main(files(made(), made())) == 0
    shown = capsys.readouterr().out
    assert "no difference seen" in shown
    assert "worse" not in shown
    assert "better" not in shown


@pytest.mark.parametrize("made", [latency, throughput])
def test_a_third_slower_with_ranges_apart_is_worse(made: Callable[..., dict[str, Any]], files: Files, tmp_path: Path) -> None:
    assert main(files(made(), made(slower=1.33))) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    judged = {(line["system"], line["metric"]) for line in found["lines"] if line["worse"]}
    assert judged <= {("headrace", line["metric"]) for line in found["lines"]}
    assert ("headrace", "p50" if made is latency else "messages_per_s") in judged
    assert found["worse"] is True


def test_a_feature_that_costs_more_is_worse(files: Files, capsys: Any) -> None:
    assert main(files(features(), features(slower=1.33))) == 1
    shown = capsys.readouterr().out
    assert "SQLite [µs a row]" in shown
    assert "worse by 1.33x" in shown
    assert main(files(features(slower=1.33), features())) == 0


def test_faster_is_not_worse_and_slower_within_the_factor_is_said_but_passes(files: Files, capsys: Any) -> None:
    assert main(files(throughput(slower=1.33), throughput())) == 0
    assert "better by 1.33x" in capsys.readouterr().out
    assert main([*files(throughput(), throughput(slower=1.33)), "--worse", "1.5"]) == 0
    assert "worse by 1.33x" in capsys.readouterr().out


def test_slower_with_ranges_that_overlap_is_no_difference(files: Files, capsys: Any) -> None:
    a, b = latency(), latency(slower=1.5)
    b["runs"].append(dict(a["runs"][0], turn=9))
    assert main(files(a, b)) == 0
    shown = capsys.readouterr().out
    assert next(line for line in shown.splitlines() if line.startswith("headrace") and " p50 " in line).endswith(
        "no difference seen"
    )


def test_other_settings_are_named_and_refused(files: Files, capsys: Any) -> None:
    a, b = throughput(), throughput()
    b["settings"] = {**b["settings"], "acks": "1", "linger_ms": 5, "turns": 7}
    b["workload"] = {**b["workload"], "messages": 5}
    assert main(files(a, b)) == 2
    said = capsys.readouterr().err
    assert 'settings.acks: "all" and "1"' in said
    assert "settings.linger_ms: 1 and 5" in said
    assert "workload.messages: 120000 and 5" in said
    assert "turns" not in said
    assert main([*files(a, b), "--anyway"]) == 0


def test_another_machine_is_noted(files: Files, capsys: Any) -> None:
    b = latency()
    b["machine"] = {**b["machine"], "cores": 64}
    assert main(files(latency(), b)) == 0
    assert "note: machine.cores: 2 and 64" in capsys.readouterr().out


def test_a_system_that_no_longer_has_a_valid_run_is_worse(files: Files, capsys: Any) -> None:
    b = latency()
    b["runs"] = [spoiled(run, "lost 3", lost=3) if run["system"] == "headrace" else run for run in b["runs"]]
    assert main(files(latency(), b)) == 1
    assert "headrace at 1,000/s: valid in A, no valid run in B: lost 3" in capsys.readouterr().out


def test_an_unreadable_file_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path / "none.json"), str(tmp_path / "none.json")]) == 2
    assert "none.json: expected a result file" in capsys.readouterr().err
