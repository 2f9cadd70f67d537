"""Anybody's own: a project in another folder, with its own Feast repo and a model trained elsewhere; nothing here changes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from payments import NAMES, payments, settings

from features.events import read_events
from features.schema import Integer, Kind, Number, Schema, Text, Time
from features.spec import Fields, Stored
from ops.backfill import backfill
from ops.cli import run_command
from ops.project import CHECKOUT, TEMPLATE, CannotInitError, make
from ops.train import CannotTrainError
from ops.trial import CannotTryError, trial
from streams.pipeline import Model

NOT_OURS = {".git", ".headrace", ".hypothesis", ".venv", "__pycache__"}

DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

holder = Entity(name="holder", join_keys=["card"], value_type=ValueType.STRING)
risk = FeatureView(
    name="risk", entities=[holder], ttl=timedelta(days=90),
    schema=[Field(name="card", dtype=String), Field(name="years", dtype=Int64), Field(name="usual", dtype=Float64)],
    source=FileSource(name="risk", path="data/risk.parquet", timestamp_field="known_at"),
)
risk_v2 = FeatureService(name="risk_v2", features=[risk])
"""


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, but for caches."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if not set(parts) & NOT_OURS and not any(part.endswith("_cache") for part in parts) and path.is_file():
            found[path.relative_to(folder).as_posix()] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def headrace(folder: Path, *arguments: str, module: str = "ops") -> str:
    """A command in a folder, as its user calls it; what it prints."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_project_is_made_whole_under_its_own_name_and_never_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shop-2"
    files = make(folder)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == sorted(files)
    assert [path.name for path in folder.parent.iterdir()] == ["shop-2"]
    text = "".join((folder / file).read_text() for file in files)
    assert "my-fraud" not in text
    assert "my_fraud" not in text
    assert "shop-2-events" in text
    assert "project: shop_2" in text
    assert str(CHECKOUT) in text
    before = state(folder)
    with pytest.raises(CannotInitError, match="nothing is overwritten"):
        make(folder)
    assert state(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CannotInitError, match="nothing is overwritten"):
        make(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty") == files


def test_the_pipelines_page_is_short() -> None:
    assert len((TEMPLATE / "pipeline.py").read_text().splitlines()) < 60


def test_a_file_with_one_pipeline_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "one_pipeline.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom payments import payments\na = payments()\n"
    )
    from streams.pipeline import PipelineNotFoundError, load

    assert load(str(file)).name == "payments"
    file.write_text(file.read_text() + "b = payments()\n")
    with pytest.raises(PipelineNotFoundError, match=r"no pipeline \(no name given\) in .*one_pipeline.py: it has a, b"):
        load(str(file))


EVENT = Schema(
    "Event",
    1,
    {"kind": Kind(("b", "a")), "at": Time(), "id": Integer(), "who": Text(optional=True), "sum": Number(on=("a",))},
)


def events(**other: object) -> pa.Table:
    times = np.array(["2024-03-01T00:00:00", "2024-03-02T00:00:01"], "datetime64[ms]")
    ids = pa.array([1, 2], pa.int32())
    return pa.table({"kind": ["a", "b"], "at": times, "id": ids, "sum": [1, None], "more": [0, 0]} | other)


def test_events_of_a_file_are_columns_of_the_schema(tmp_path: Path) -> None:
    pq.write_table(events(), tmp_path / "events.parquet")
    table = read_events(tmp_path / "events.parquet", EVENT)
    assert table.schema == EVENT.arrow()
    assert table.to_pylist()[0] == {
        "kind": "a",
        "at": table["at"][0].as_py(),
        "id": 1,
        "who": None,
        "sum": 1.0,
    }
    assert table["at"][1].as_py().isoformat() == "2024-03-02T00:00:01+00:00"
    assert table["kind"].chunk(0).indices.to_pylist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": ["a", "c"]}, 'column kind: expected one of b, a, got "c"'),
        ({"id": [1, None]}, "column id: expected a value in every row, got 1 nulls"),
        ({"sum": ["1", "much"]}, "column sum: expected Number, got string: "),
        ({"at": [1.5, 2.5]}, "column at: expected Time, got double: "),
    ],
)
def test_events_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    pq.write_table(events(**change), tmp_path / "events.parquet")
    with pytest.raises(ValueError, match=said):
        read_events(tmp_path / "events.parquet", EVENT)
    pq.write_table(events().drop(["id"]), tmp_path / "events.parquet")
    with pytest.raises(ValueError, match="expected a column id, got kind, at, sum, more"):
        read_events(tmp_path / "events.parquet", EVENT)
    with pytest.raises(ValueError, match=r"nowhere.parquet: expected a Parquet file, got none$"):
        read_events(tmp_path / "nowhere.parquet", EVENT)
    (tmp_path / "events.parquet").write_text("no")
    with pytest.raises(ValueError, match="expected a Parquet file"):
        read_events(tmp_path / "events.parquet", EVENT)


def test_what_a_pipeline_lacks_is_said(tmp_path: Path) -> None:
    stored = replace(payments(), features=[Stored("card_v1")])
    with pytest.raises(ValueError, match="its stored features need a Feast repo, got none: name its folder as feast_repo in"):
        stored.repo(settings(tmp_path))
    assert replace(stored, feast_repo=tmp_path / "a").repo(settings(tmp_path)) == tmp_path / "a"
    assert replace(stored, feast_repo=tmp_path / "a").repo(settings(tmp_path, feast_repo="b")) == Path("b")
    with pytest.raises(CannotTryError, match="pipeline payments: its Model needs history"):
        trial(payments(), settings(tmp_path), seed=0, progress=lambda doing, share: None)
    with pytest.raises(CannotTrainError, match="its Model has no history: name a file with --events"):
        backfill(payments(), settings(tmp_path), None, tmp_path / "frame.parquet", lambda doing, share: None)
    with pytest.raises(ValueError, match="Invalid isoformat string"):
        replace(payments(), model=Model("payments", until="tomorrow"))


def test_a_frame_is_written_with_categories_by_frequency(tmp_path: Path) -> None:
    """Their places in the dictionary are what a foreign model gets."""
    times = np.datetime64("2024-02-01", "us") + np.arange(30) * np.timedelta64(60, "s")
    rows = {"kind": ["paid"] * 30, "at": times, "payment": np.arange(30), "card": ["b"] * 30, "amount": np.arange(30.0)}
    pq.write_table(pa.table(rows | {"shop": [*"aabbb"] * 6}), tmp_path / "events.parquet")
    pipeline = replace(payments(), features=[Fields("shop", "amount"), *payments().features[1:]])
    quiet = settings(tmp_path)
    made = backfill(pipeline, quiet, tmp_path / "events.parquet", tmp_path / "frame.parquet", lambda doing, share: None)
    frame = pq.read_table(tmp_path / "frame.parquet")
    assert frame.column_names == made.column_names == ["shop", *NAMES, "event_id", "event_time"]
    assert frame["shop"].chunk(0).dictionary.to_pylist() == ["b", "a"]
    assert frame["shop"].to_pylist() == [*"aabbb"] * 6
    assert frame["amount_count_1h_by_card"].to_pylist() == list(range(30))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_init_makes_runs_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = state(CHECKOUT)
    project = tmp_path / "my-fraud"
    assert run_command(["init", str(project)]) == 0
    assert f"cd {project} && headrace try pipeline.py" in capfd.readouterr().out
    said = headrace(project, "try", "pipeline.py")
    assert "decisions     " in said
    assert "dead letters  0" in said
    assert "was trained for this" in said
    again = json.loads(headrace(project, "try", "pipeline.py", "--json"))
    assert again["decisions"] == again["expected"] >= 10_000
    assert again["trained"] is False
    assert set(again["by_decision"]) == {"allow", "review", "block"}
    assert again["auc"] > 0.8
    assert "1 passed" in headrace(project, "-q", "-p", "no:cacheprovider", module="pytest")
    assert state(CHECKOUT) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_foreign_tree_and_a_feast_repo_that_was_there_before_decide_ten_thousand_events(tmp_path: Path) -> None:
    before = state(CHECKOUT)
    project, repo = tmp_path / "my-fraud", theirs(tmp_path / "platform" / "feast")
    make(project)
    page = (project / "pipeline.py").read_text()
    page = page.replace('Stored("card_v1")', 'Stored("risk_v2")').replace("sources=write_profiles", "sources=None")
    (project / "pipeline.py").write_text(page.replace("train=train, ", ""))
    with (project / "headrace.toml").open("a") as toml:
        toml.write(f'feast_repo = "{repo}"\n')
    was = contents(repo)

    headrace(project, "backfill", "pipeline.py", "--out", "frame.parquet")
    file = foreign_model(project, tmp_path / "elsewhere.onnx")
    register = ["models", "register", "my-fraud", "--onnx", str(file), "--reference", "frame.parquet", "--champion"]
    said = headrace(project, *register, "--pipeline", "pipeline.py")
    assert "channel (category)" in said
    assert "risk__years (number)" in said
    tried = json.loads(headrace(project, "try", "pipeline.py", "--json", "--out", "decisions.ndjson"))
    assert tried["decisions"] == tried["expected"] >= 10_000
    assert (tried["trained"], tried["model_version"], tried["dead_letters"]) == (False, 1, {})
    assert tried["auc"] > 0.8
    scored_as_elsewhere(project)
    assert contents(repo) == was
    assert state(CHECKOUT) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def theirs(repo: Path) -> Path:
    """Another team's Feast repo, applied and materialised with nothing but Feast."""
    (repo / "data").mkdir(parents=True)
    (repo / "definitions.py").write_text(DEFINITIONS)
    (repo / "feature_store.yaml").write_text((TEMPLATE / "feature_repo" / "feature_store.yaml").read_text())
    rng = np.random.default_rng(3)
    known = pa.array(np.full(1_500, np.datetime64("2024-02-20", "us")), pa.timestamp("us", "UTC"))
    rows = {
        "card": [f"card-{k:04}" for k in range(1_500)],
        "years": rng.integers(0, 20, 1_500),
        "usual": rng.lognormal(3, 1, 1_500),
    }
    pq.write_table(pa.table(rows | {"known_at": known}), repo / "data" / "risk.parquet")
    headrace(repo, "apply", module="feast.cli.cli")
    headrace(repo, "materialize", "2024-01-01T00:00:00", "2024-03-01T00:00:00", module="feast.cli.cli")
    return repo


def foreign_model(project: Path, to: Path) -> Path:
    """The gradient-boosted tree of docs/your-own.md, trained by that very script, which knows nothing of headrace."""
    script = (CHECKOUT / "docs" / "your-own.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert "headrace" not in script
    (to.parent / "train_elsewhere.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(to.parent / "train_elsewhere.py")],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (project / "tree.onnx").replace(to)
    return to


def scored_as_elsewhere(project: Path) -> None:
    """The scores of the decisions are the foreign model's own of the features that they carry."""
    import onnxruntime as ort

    frame = pq.read_schema(project / "frame.parquet")
    names = [name for name in frame.names if name not in ("event_id", "event_time", "label")]
    words = pq.read_table(project / "frame.parquet", columns=["channel"])["channel"].unify_dictionaries().chunk(0).dictionary
    codes = {word: k for k, word in enumerate(words.to_pylist())}
    decisions = [json.loads(line) for line in (project / "decisions.ndjson").read_text().splitlines()]
    rows = [[codes[d["features"][n]] if n == "channel" else d["features"][n] for n in names] for d in decisions]
    matrix = np.array([[np.nan if value is None else value for value in row] for row in rows], np.float32)
    session = ort.InferenceSession(str(project.parent / "elsewhere.onnx"), providers=["CPUExecutionProvider"])
    expected = [found[1] for found in session.run(["output_probability"], {"rows": matrix})[0]]
    assert [decision["score"] for decision in decisions] == pytest.approx(expected, abs=1e-6)
