"""bench.snapshots measures a job that came back with the state that it had, and says so in figures."""

import json
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench import snapshots
from sinks.memory import MemorySink
from streams.shards import Shards

SMALL = ["--entities", "500", "--rate", "2000", "--seconds", "3", "--epoch", "0.02"]


def test_pauses_and_bytes_are_told(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    assert snapshots.main([*SMALL, "--json", str(file)]) == 0
    figures = {one["what"].split(":")[0].split(" of ")[0]: one for one in json.loads(file.read_text())["figures"]}
    assert 0 < figures["pause, p50"]["median"] <= figures["pause, p99"]["median"] <= figures["pause, longest"]["median"]
    assert 0 < figures["written in an epoch"]["median"] < 1
    assert figures["pause, p99"]["goal"] == snapshots.GOAL_MS


def test_a_job_that_forgot_gives_no_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = snapshots.job

    def forgetful(home: Path, epoch: float, source: snapshots.Paced) -> MemorySink:
        started_again = (home / "recovery").exists()
        return whole(home / "elsewhere" if started_again else home, epoch, source)

    monkeypatch.setattr(snapshots, "job", forgetful)
    assert snapshots.main(SMALL) == 1
    assert "no figures" in capsys.readouterr().err


def test_its_job_takes_pages_of_the_state_between_two_rounds_and_few_in_the_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, taken = Shards._take_page, list[str]()

    def take(state: Shards, page: int, shards: Iterable[int]) -> None:
        names = [frame.name for frame in traceback.extract_stack()]
        taken.append(next(name for name in ("snapshot", "on_batch", "next_batch") if name in names))
        whole(state, page, shards)

    monkeypatch.setattr(Shards, "_take_page", take)
    _, log = snapshots.payments(4096, 2000)
    snapshots.job(tmp_path, 0.05, snapshots.Paced(log, 4096, 2000.0))
    assert "on_batch" not in taken
    ahead = [at for at, name in enumerate(taken) if name == "next_batch"]
    assert len(ahead) > 8
    assert taken[ahead[0] : ahead[-1]].count("snapshot") < len(ahead) / 2, "but for the last, of all pages"
