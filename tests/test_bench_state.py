"""bench.state measures a store from which all comes back, and gives no figures where it does not."""

import json
from pathlib import Path

import pytest

from bench import state


def test_sizes_and_times_are_told(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert state.main(["--entities", "500", "--json", str(file)]) == 0
    figures = {one["what"].split(":")[0]: one["median"] for one in json.loads(file.read_text())["figures"]}
    assert 0 < figures["what counts of a store"] < figures["its files"]
    assert figures["headrace state"] > 0


def test_payments_that_are_lost_give_no_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pay = state.payments

    def more(entities: int, events: int) -> object:
        cards, log = pay(entities, events)
        return cards, log[:-1]

    monkeypatch.setattr(state, "payments", more)
    assert state.main(["--entities", "500"]) == 1
    assert "1 of them are not as they paid: no figures" in capsys.readouterr().err
