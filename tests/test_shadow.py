"""A shadow scores what the champion decided on, compares, and can do what it likes: nothing of it is in a decision."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hanging import FOREVER, write_hanging
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_swapping import FEWER, champion, until, version
from typer.testing import CliRunner

from models.engine import OnnxEngine
from models.policy import Coded
from models.registry import ModelNotFound, promote, record
from models.registry import shadow as set_shadow
from models.shadow import EDGES, READY, SUFFIX, Compared, lines, shadow_folder
from models.spec import Input, ModelSpec
from ops.cli import app
from ops.model_shadow import REFUSED, Keeper, Scoring, score
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.run import run
from streams.shadowing import MOST_FILES
from streams.source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
ROOT = Path(__file__).parents[1]
SCORES = arrays(np.float32, 17, elements=st.floats(0, 1, width=32) | st.just(np.float32(np.nan)))


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=4))
def test_what_compares_is_as_by_hand(batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    compared = Compared(1, 2)
    pairs = []
    for ours, theirs in batches:
        decided = [Coded(["low", "high"], (scores >= 0.5).astype(np.int8)) for scores in (ours, theirs)]
        compared.add(ours, theirs, (decided[0], decided[1]), 0.5)
        pairs += [(float(a), float(b)) for a, b in zip(ours, theirs, strict=True)]
    both = [(a, b) for a, b in pairs if a == a and b == b]
    assert (compared.rows, compared.failed) == (len(both), sum(a == a and b != b for a, b in pairs))
    assert compared.seconds == 0.5 * len(batches)
    assert compared.absolute == pytest.approx(sum(abs(b - a) for a, b in both))
    assert compared.difference == pytest.approx(sum(b - a for a, b in both), abs=1e-9)
    assert compared.largest == pytest.approx(max((abs(b - a) for a, b in both), default=0))
    for k, edge in enumerate(EDGES):
        assert sum(compared.within[: k + 1]) == sum(abs(b - a) <= edge for a, b in both)
    same = sum((a >= 0.5) == (b >= 0.5) for a, b in both)
    assert compared.agreement == (same / len(both) if both else None)
    assert lines("m", compared)


def with_shadow(
    home: Path, versions: list[Path], on_ready: Callable[[MemorySink, Messages], None]
) -> dict[str, dict[str, Any]]:
    """A job that is told that a shadow is ready, and then waits for as long as `on_ready` takes, half of the way."""
    sink, began = MemorySink(), threading.Event()
    folder = shadow_folder(home / "models", "payments")
    folder.mkdir(parents=True)
    (folder / READY).touch()

    def on_write(messages: Messages) -> None:
        if len(sink.values("verdicts")) > 1000 and not began.is_set():
            began.set()
            on_ready(sink, messages)

    sink.on_write = on_write
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(1, versions[0])}
    run(payments(), settings(home), registry=CollectorRegistry(), **parts)
    return decisions(sink)


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    return [version(tmp_path / "one", NAMES, 40), version(tmp_path / "two", FEWER, 25)]


def test_it_scores_by_its_own_inputs_what_was_decided_and_no_decision_is_another(tmp_path: Path, versions: list[Path]) -> None:
    """As a run would have it that the shadow decides alone; what was decided before the worker heard of it is left out."""
    alone = []
    for number, each in enumerate(versions, 1):
        sink = MemorySink()
        parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(number, each)}
        run(payments(), settings(tmp_path / f"alone-{number}", model_look_seconds=0), registry=CollectorRegistry(), **parts)
        alone.append(decisions(sink))
    scoring = Scoring(
        shadow_folder(tmp_path / "home" / "models", "payments"), OnnxEngine(versions[1]), payments().policy.compile, 2  # type: ignore[union-attr]
    )  # fmt: skip
    before = list[int]()

    def on_ready(sink: MemorySink, messages: Messages) -> None:
        time.sleep(0.6)  # until the worker's thread has looked: from this batch on it is handed over
        before.append(len(sink.values("verdicts")) - len(messages.values))

    found = with_shadow(tmp_path / "home", versions, on_ready)
    assert scoring.turn() > 0
    for key, one in found.items():
        assert one | {"decided_at": 0} == alone[0][key] | {"decided_at": 0}
    compared = scoring.compared
    assert (compared.champion, compared.shadow, compared.failed) == (1, 2, 0)
    seen = sorted(found, key=lambda key: int(key.rsplit("/", 1)[1]))[before[0] :]
    assert compared.rows == len(seen) > 1000
    differences = [alone[1][key]["score"] - alone[0][key]["score"] for key in seen]
    assert compared.difference == pytest.approx(sum(differences), rel=1e-3, abs=1e-4)
    same = [alone[1][key]["decision"] == alone[0][key]["decision"] for key in seen]
    assert compared.agreement == pytest.approx(sum(same) / len(same))
    assert 0 < sum(same) < len(same)


def test_a_shadow_that_does_not_take_what_waits_is_given_no_more_and_the_stream_goes_on(
    tmp_path: Path, versions: list[Path]
) -> None:
    folder = shadow_folder(tmp_path / "home" / "models", "payments")

    def on_ready(sink: MemorySink, messages: Messages) -> None:
        for number in range(MOST_FILES):
            (folder / f"0-9{number:08d}{SUFFIX}").touch()
        time.sleep(0.6)

    found = with_shadow(tmp_path / "home", versions, on_ready)
    assert len(found) == sum(b'"paid"' in value for _, value in stream(4000))
    assert len(list(folder.glob(f"*{SUFFIX}"))) == MOST_FILES


def registered(tmp_path: Path, *folders: Path) -> Any:
    """The settings of a home whose registry has these versions, the first of them champion."""
    made = settings(tmp_path / "home")
    (tmp_path / "home").mkdir(exist_ok=True)
    for folder in folders:
        record(made.registry_uri, "payments", folder, params={}, metrics={})
    promote(made.registry_uri, "payments", 1)
    return made


def pipeline_file(folder: Path) -> str:
    (folder / "pay.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom payments import payments\npipeline = payments()\n"
    )
    return f"{folder / 'pay.py'}:pipeline"


@pytest.mark.slow
def test_its_process_is_kept_started_again_and_ended(tmp_path: Path, versions: list[Path]) -> None:
    """A crash, another version, one that is refused, and none."""
    bad = version(tmp_path / "bad", ("nobody", "knows"), 1)
    made, said = registered(tmp_path, *versions, bad), list[str]()
    folder = shadow_folder(made.home / "models", "payments")
    keeper = Keeper(pipeline_file(tmp_path), payments(), made, said.append)

    def process() -> subprocess.Popen[bytes]:
        assert keeper._process is not None
        return keeper._process

    keeper.look()
    assert keeper._process is None
    set_shadow(made.registry_uri, "payments", 2)
    keeper.look()
    until(lambda: (folder / READY).exists())
    first = process()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    keeper.look()
    assert "version 2, ended with code -9" in said[-1]
    assert process() is not first
    until(lambda: (folder / READY).exists())
    with_shadow_files(made.home, versions)
    until(lambda: (found := Compared.read(folder)) is not None and found.rows > 100)
    runner = CliRunner()
    told = runner.invoke(app, ["models", "diff", "payments", "--home", str(made.home)])
    assert told.exit_code == 1, "no job has looked: there are no news of a pipeline"
    (made.home / "models" / "payments.news.json").write_text('{"model": "payments", "good": [], "refused": {}}')
    told = runner.invoke(app, ["models", "diff", "payments", "--home", str(made.home)])
    assert "version 2 as a shadow of version 1" in told.output
    assert "% the same" in told.output
    told = runner.invoke(app, ["models", "diff", "payments", "--home", str(made.home), "--json"])
    assert json.loads(told.output)["pipelines"]["payments"]["rows"] > 100
    set_shadow(made.registry_uri, "payments", 3)
    keeper.look()
    assert process().wait(60) == REFUSED
    keeper.look()
    found = Compared.read(folder)
    assert found is not None
    assert "nobody" in found.refused
    assert "is refused" in lines("payments", found)[0]
    assert len(said) == 1
    set_shadow(made.registry_uri, "payments", None)
    keeper.look()
    assert keeper._process is None
    keeper.close()


def with_shadow_files(home: Path, versions: list[Path]) -> None:
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": Slowly(), "champion": champion(1, versions[0])}
    run(payments(), settings(home), registry=CollectorRegistry(), **parts)


class Slowly(MemorySink):
    """Takes so long that the worker's thread has looked meanwhile."""

    def write(self, messages: Messages) -> None:
        time.sleep(0.02)
        super().write(messages)


def test_a_process_that_says_nothing_while_batches_wait_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "two"
    made, said = registered(tmp_path, version(tmp_path / "one", NAMES, 40), version(folder, NAMES, 41)), list[str]()
    started: list[subprocess.Popen[bytes]] = []
    whole = subprocess.Popen

    def sleeper(*arguments: Any, **values: Any) -> subprocess.Popen[bytes]:
        started.append(whole([sys.executable, "-c", "import time; time.sleep(600)"], stdin=subprocess.PIPE))
        return started[-1]

    monkeypatch.setattr("ops.model_shadow.subprocess.Popen", sleeper)
    keeper = Keeper("pay.py:pipeline", payments(), made, said.append)
    keeper._silent = 0.2
    set_shadow(made.registry_uri, "payments", 2)
    keeper.look()
    shared = shadow_folder(made.home / "models", "payments")
    Compared(1, 2).write(shared)
    time.sleep(0.3)
    keeper.look()
    assert len(started) == 1, "nothing waits for it"
    (shared / f"0-000000001{SUFFIX}").touch()
    keeper.look()
    assert len(started) == 2
    assert "said nothing for" in said[-1]
    assert not list(shared.glob(f"*{SUFFIX}")), "what it may have hung at is given up"
    keeper.close()
    assert all(process.poll() is not None for process in started)


def test_a_shadow_that_hangs_at_a_batch_has_no_scores_there(tmp_path: Path) -> None:
    hangs = ModelSpec("payments", tuple(Input(name, "number") for name in NAMES), medians={NAMES[0]: 3.0})
    write_hanging(tmp_path / "hangs", hangs)
    engine = OnnxEngine(tmp_path / "hangs", seconds=0.2)
    scoring = Scoring(tmp_path, engine, None, 2)
    assert np.isnan(scoring._scores(np.full((5, len(NAMES)), FOREVER, np.float32))).all()
    assert np.isfinite(scoring._scores(np.full((5, len(NAMES)), 2, np.float32))).all()
    engine.close()


def test_one_that_cannot_be_used_says_why_and_never_is_ready(tmp_path: Path) -> None:
    bad = version(tmp_path / "bad", ("nobody", "knows"), 1)
    made = settings(tmp_path / "home")
    shared = shadow_folder(made.home / "models", "payments")
    shared.mkdir(parents=True)
    assert score(payments(), made, 7, bad, lambda seconds: False) == REFUSED
    found = Compared.read(shared)
    assert found is not None
    assert (found.shadow, "nobody" in found.refused) == (7, True)
    assert not (shared / READY).exists()


def test_the_alias_is_given_and_taken(tmp_path: Path, versions: list[Path]) -> None:
    made, runner = registered(tmp_path, *versions), CliRunner()
    home = ["--home", str(made.home)]
    with pytest.raises(ModelNotFound, match="alias shadow"):
        set_shadow(made.registry_uri, "payments", None)
    with pytest.raises(ModelNotFound, match="no version 9"):
        set_shadow(made.registry_uri, "payments", 9)
    assert "version 2 is shadow" in runner.invoke(app, ["models", "shadow", "payments", "2", *home]).output
    assert "no shadow any more" in runner.invoke(app, ["models", "shadow", "payments", "--off", *home]).output
    assert runner.invoke(app, ["models", "shadow", "payments", *home]).exit_code == 2
    told = runner.invoke(app, ["models", "diff", "payments", *home])
    assert told.exit_code == 1
    assert "no shadow has scored anything" in told.output
