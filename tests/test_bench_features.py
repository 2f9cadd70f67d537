"""`python -m bench.features` prints what it measured, and nothing where the results are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.features import PARTS, main
from features.state import State

SMALL = ["--entities", "400", "--events", "4000", "--turns", "2", "--rows", "256"]


def test_every_part_has_figures_beside_what_one_would_take_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "features.json"
    parts = ["windows", "snapshot", "backfill", "avro"]
    assert main(["--part", *parts, *SMALL, "--json", str(file)]) == 0
    held = json.loads(file.read_text())
    assert (held["format"], held["kind"], held["settings"]["entities"]) == (1, "features", 400)
    assert {figure["part"] for figure in held["figures"]} == set(parts)
    for figure in held["figures"]:
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
    told = [figure["what"] for figure in held["figures"]]
    for wanted in ("naive twin", "polars", "pandas", "taken", "resumed", "whole at once"):
        assert any(wanted in what for what in told), wanted
    assert "goal 150" in capsys.readouterr().out
    assert set(parts) <= set(PARTS)


@pytest.mark.parametrize("part", ["windows", "backfill"])
def test_wrong_results_give_no_figures(part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    update = State.update

    def off_by_one(self: State, *given: object) -> np.ndarray:
        out = update(self, *given)  # type: ignore[arg-type]
        out[0] += 1
        return out

    monkeypatch.setattr(State, "update", off_by_one)
    assert main(["--part", part, *SMALL]) == 1
    told = capsys.readouterr()
    assert "no figures" in told.err
    assert told.out == ""
