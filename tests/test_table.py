"""The README's numbers: written from result files, true to them, and not changed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_results import features, floor, latency, spoiled, throughput

from bench.results import check, read
from bench.table import BEGIN, END, main, markdown

ROOT = Path(__file__).parent.parent
COMMITTED = sorted((ROOT / "bench" / "results").glob("*.json"))


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# x\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return path


def _write(path: Path, held: dict[str, Any]) -> str:
    path.write_text(json.dumps(held))
    return str(path)


def test_the_committed_readme_is_what_its_result_files_say() -> None:
    if not COMMITTED:
        pytest.skip("no result files in bench/results yet")
    assert main([*map(str, COMMITTED), "--readme", str(ROOT / "README.md"), "--check"]) == 0


def test_check_fails_before_writing_and_after_an_edit_by_hand(readme: Path, tmp_path: Path) -> None:
    result = _write(tmp_path / "a.json", throughput())
    arguments = [result, "--readme", str(readme)]
    assert main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()
    assert main(arguments) == 0
    written = readme.read_text()
    assert written.startswith(f"# x\n\n{BEGIN}\n**Throughput.**")
    assert written.endswith(f"{END}\n\nafter\n")
    assert main([*arguments, "--check"]) == 0
    readme.write_text(written.replace("193,800", "293,800"))
    assert main([*arguments, "--check"]) == 1


def test_rows_have_median_range_ratio_and_command() -> None:
    table = markdown([check(latency(rates=(1000, 10_000))), check(throughput()), check(floor())])
    lines = table.splitlines()
    assert (
        "| flights: headrace | 193,800 messages/s (190,000 to 197,600)"
        " | `python -m bench.throughput --workload flights --json throughput.json` |" in lines
    )
    quix = next(line for line in lines if line.startswith("| flights: quix"))
    assert "17,340 messages/s (17,000 to 17,680); headrace / quix: 11.2" in quix
    assert "| flights: efficiency | 0.87: the parts alone take 5.20 µs an event, the whole 6.00 µs |" in table
    assert any(line.startswith("| flights, 10,000 messages/s: relay | p50 ") for line in lines)
    assert "acks all, idempotence on, linger_ms 1" in table
    assert "median and range of 3 turns" in table


def test_features_have_a_row_a_figure_with_its_goal() -> None:
    lines = markdown([check(features()), check(floor())]).splitlines()
    assert lines[-7].startswith("**Features.** On Xeon with 2 cores, commit 0123456789; median and range of 5 turns.")
    assert lines[-3:] == [
        "| cold: SQLite | 14 µs a row (12.5 to 15); at most 20 is the goal |"
        " `python -m bench.features --workload flights --json features.json` |",
        "| cold: Feast's SDK | 150 µs a row (140 to 1,600) | the same |",
        "| cold: share | 0.1 (once) | the same |",
    ]


def test_a_ratio_whose_range_holds_1_is_no_difference() -> None:
    held = throughput(("headrace", "bare"))
    for run, speed in zip(held["runs"], (100.0, 90.0, 100.0, 105.0, 100.0, 99.0), strict=True):
        run["throughput"]["messages_per_s"] = speed
    assert "headrace / bare: no difference seen, 1.01" in markdown([check(held)])


def test_only_systems_of_the_file_are_named_and_those_without_a_valid_run_have_no_figure() -> None:
    held = throughput(("headrace", "quix"))
    held["runs"] = [spoiled(run, "doubled 4", doubled=4) if run["system"] == "quix" else run for run in held["runs"]]
    table = markdown([check(held)])
    assert "| flights: quix | no valid run: doubled 4 |" in table
    assert "flink" not in table
    assert "11." not in table


def test_settings_that_are_not_the_same_stand_in_the_rows() -> None:
    other = latency()
    other["settings"] = {**other["settings"], "partitions": 8}
    table = markdown([check(latency()), check(other)])
    assert "| flights, partitions 1, 1,000 messages/s: headrace |" in table
    assert "| flights, partitions 8, 1,000 messages/s: headrace |" in table
    assert "partitions" not in table.splitlines()[0]


def test_a_readme_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"{END} {BEGIN}")
    assert main([_write(tmp_path / "a.json", throughput()), "--readme", str(path)]) == 2
    assert "README.md: expected <!-- numbers: begin -->" in capsys.readouterr().err


def test_what_is_read_is_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    _write(path, throughput())
    assert markdown([read(path)]) == markdown([check(throughput())])
