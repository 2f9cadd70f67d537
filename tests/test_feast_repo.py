"""The Feast repo: made by one call, done once, and plain enough for Feast's own command line."""

import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from features.views import load_feast
from models.flights_history import REPO, write_sources
from ops import feast_repo
from ops.feast_repo import LOG, MADE, STAMP, prepare

END, UNTIL = datetime(2013, 10, 1, 4, tzinfo=UTC), "2013-10-01T04:00:00Z"
FEATURES = ["late_share", "mean_arr_delay", "flights"]


def definitions(to: Path) -> Path:
    """A copy of the repo without what was made of it."""
    return Path(shutil.copytree(REPO, to, ignore=shutil.ignore_patterns("data", "__pycache__")))


def feast(repo: Path, *words: str, cwd: Path) -> list[str]:
    command = [sys.executable, "-m", "feast.cli.cli", "-c", str(repo), *words]
    done = subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    repo = definitions(tmp_path_factory.mktemp("feast") / "repo")
    told: list[str] = []
    prepare(repo, told.append, write_sources, UNTIL)
    return repo, told


def test_there_must_be_a_repo(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no Feast repo at .*: expected a file feature_store.yaml there"):
        prepare(tmp_path, print, write_sources, UNTIL)


def test_the_repo_holds_definitions_only() -> None:
    assert [path.name for path in REPO.glob("*.py")] == ["definitions.py"]


@pytest.mark.slow
def test_everything_is_made_and_told(prepared: tuple[Path, list[str]]) -> None:
    repo, told = prepared
    assert all((repo / "data" / name).stat().st_size for name in (*MADE, STAMP, LOG))
    assert told[0] == "stored features: route 2,522 rows, carrier 192 rows, plane 45,094 rows"
    assert "feature view route_history" in (repo / "data" / LOG).read_text()


@pytest.mark.slow
def test_what_is_done_is_not_done_again(prepared: tuple[Path, list[str]]) -> None:
    repo, _ = prepared
    before = {path.name: path.stat().st_mtime_ns for path in (repo / "data").iterdir()}
    told: list[str] = []
    began = time.monotonic()
    prepare(repo, told.append, write_sources, UNTIL)
    assert time.monotonic() - began < 1
    assert told == []
    assert {path.name: path.stat().st_mtime_ns for path in (repo / "data").iterdir()} == before


@pytest.mark.slow
def test_feasts_own_command_line_works_from_anywhere(prepared: tuple[Path, list[str]], tmp_path: Path) -> None:
    repo, _ = prepared
    lines = feast(repo, "feature-views", "list", cwd=tmp_path)
    assert sorted(line.split()[0] for line in lines[1:]) == ["carrier_history", "plane_history", "route_history"]


@pytest.mark.slow
def test_before_it_is_prepared_the_command_line_lists_nothing(tmp_path: Path) -> None:
    lines = feast(definitions(tmp_path / "repo"), "feature-views", "list", cwd=tmp_path)
    assert [line.split()[0] for line in lines] == ["NAME"]


@pytest.mark.slow
def test_online_is_what_was_known_at_the_end_of_september(prepared: tuple[Path, list[str]]) -> None:
    FeatureStore = load_feast().FeatureStore
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    repo, _ = prepared
    store = FeatureStore(repo_path=str(repo))
    views = {"route": ["dest", "origin"], "carrier": ["carrier"], "plane": ["tailnum"]}
    for name, join_keys in views.items():
        source = pl.read_parquet(repo / "data" / f"{name}.parquet").filter(pl.col("event_timestamp") == END)
        expected = source.sample(min(source.height, 50), seed=7)
        keys = [
            EntityKey(join_keys=join_keys, entity_values=[Value(string_val=word) for word in row])
            for row in expected.select(join_keys).rows()
        ]
        view = store.get_feature_view(f"{name}_history")
        got = store._get_provider().online_store.online_read(store.config, view, keys, FEATURES)
        assert [when for when, _ in got] == [END] * expected.height
        assert [tuple(values[f].float_val for f in FEATURES) for _, values in got if values] == expected.select(FEATURES).rows()
        assert view.ttl >= datetime(2014, 1, 2, tzinfo=UTC) - END


@pytest.mark.slow
def test_what_feast_says_when_it_fails_is_said(tmp_path: Path) -> None:
    repo = definitions(tmp_path / "repo")
    (repo / "definitions.py").write_text("raise ValueError('a view too many')\n")
    with pytest.raises(
        RuntimeError, match=r"feast failed on .* with exit status 1: ValueError: a view too many \(more in .*feast.log\)"
    ):
        prepare(repo, lambda doing: None, write_sources, UNTIL)
    assert not (repo / "data" / STAMP).exists()


def test_other_definitions_other_times_or_a_lost_store_are_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a Feast that only says that it was asked."""
    repo = definitions(tmp_path / "repo")
    asked: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(command[-2:]))
        for name in MADE:
            assert not (repo / "data" / name).exists()
            (repo / "data" / name).write_text("made")
        return subprocess.CompletedProcess(command, 0, stdout="")

    def sources(folder: Path) -> dict[str, int]:
        assert folder.is_dir()
        return {}

    monkeypatch.setattr(feast_repo.subprocess, "run", run)
    prepare(repo, print, sources, UNTIL)
    prepare(repo, print, sources, UNTIL)
    assert len(asked) == 1
    with (repo / "definitions.py").open("a") as file:
        file.write("\n")
    prepare(repo, print, sources, UNTIL)
    prepare(repo, print, sources, UNTIL)
    assert len(asked) == 2
    (repo / "data" / MADE[1]).unlink()
    prepare(repo, print, sources, UNTIL)
    assert len(asked) == 3
    prepare(repo, print, sources, "2013-11-01T04:00:00Z")
    assert asked[-1] == "2000-01-01T00:00:00Z 2013-11-01T04:00:00Z"
