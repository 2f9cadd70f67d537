"""A shadow scores what the champion decided on, compares, and can do what it likes: nothing of it is in a decision."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hanging import FOREVER, write_hanging
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnxruntime.capi import onnxruntime_pybind11_state as native
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_swapping import FEWER, champion, until, version
from typer.testing import CliRunner

from models.engine import OnnxEngine
from models.files import write_whole
from models.policy import Bands, Coded, Rule
from models.registry import ModelNotFound, promote, record
from models.registry import shadow as set_shadow
from models.shadow import CHAMPION, EDGES, READY, SCORE, SUFFIX, Compared, lines, shadow_folder
from models.spec import Input, ModelSpec
from ops.cli import app
from ops.model_shadow import HANGS, MOST_REST_SECONDS, PROCESS, REFUSED, Keeper, Scoring, score
from ops.workers import as_environment
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.run import run
from streams.shadowing import MOST_FILES
from streams.source import MemorySource

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)
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
    home: Path,
    versions: list[Path],
    on_ready: Callable[[MemorySink, Messages], None],
    registry: CollectorRegistry | None = None,
) -> dict[str, dict[str, Any]]:
    """A job that is told that a shadow is ready, and then waits for as long as `on_ready` takes, half of the way."""
    sink, began = MemorySink(), threading.Event()
    folder = shadow_folder(home / "models", "payments")
    folder.mkdir(parents=True, exist_ok=True)

    def on_write(messages: Messages) -> None:
        if len(sink.values("verdicts")) > 1000:
            (folder / READY).touch()
            if not began.is_set():
                began.set()
                on_ready(sink, messages)

    sink.on_write = on_write
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(1, versions[0])}
    run(payments(), settings(home), registry=registry or CollectorRegistry(), **parts)
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
    folder = shadow_folder(tmp_path / "home" / "models", "payments")
    scoring = Scoring(folder, OnnxEngine(versions[1]), payments(), 2)
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
    by_decision = Counter((alone[0][key]["decision"], alone[1][key]["decision"]) for key in seen)
    assert {(ours, theirs): n for ours, row in compared.decided.items() for theirs, n in row.items()} == by_decision


def test_a_shadow_that_does_not_take_what_waits_is_given_no_more_and_the_stream_goes_on(
    tmp_path: Path, versions: list[Path]
) -> None:
    folder, before, registry = shadow_folder(tmp_path / "home" / "models", "payments"), list[int](), CollectorRegistry()
    folder.mkdir(parents=True)
    for number in range(MOST_FILES):
        (folder / f"0-9{number:08d}{SUFFIX}").touch()

    def left_out() -> int:
        return int(registry.get_sample_value("headrace_shadow_left_out_total", {"pipeline": "payments"}) or 0)

    def on_ready(sink: MemorySink, messages: Messages) -> None:
        time.sleep(0.6)  # what a slow job was asked for by then is left out, too
        before.append(len(sink.values("verdicts")) - len(messages.values) - left_out())

    found = with_shadow(tmp_path / "home", versions, on_ready, registry)
    assert len(found) == sum(b'"paid"' in value for _, value in stream(4000))
    assert len(list(folder.glob(f"*{SUFFIX}"))) == MOST_FILES
    assert left_out() == len(found) - before[0]


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
    """A crash, another version, one that is refused, one that hangs, and none."""
    bad, hangs = version(tmp_path / "bad", ("nobody", "knows"), 1), tmp_path / "hangs"
    write_hanging(hangs, ModelSpec("payments", tuple(Input(name, "number") for name in NAMES), medians={NAMES[0]: 3.0}))
    made, said = registered(tmp_path, *versions, bad, hangs), list[str]()
    folder = shadow_folder(made.home / "models", "payments")
    keeper = Keeper(payments(), made, lambda words, **fields: said.append(words), rest=0.0)

    def process() -> ForkProcess:
        assert keeper._process is not None
        return keeper._process

    def ends() -> int | None:
        process().join(240)
        return process().exitcode

    keeper.look()
    assert keeper._process is None
    set_shadow(made.registry_uri, "payments", 2)
    keeper.look()
    until(lambda: (folder / READY).exists())
    first = process()
    assert first.pid is not None
    if sys.platform == "linux":
        assert os.sched_getscheduler(first.pid) == os.SCHED_IDLE
        assert psutil.Process(first.pid).name() == PROCESS
    assert os.getsid(first.pid) == os.getsid(0), "priorities count within a session only"
    first.kill()
    assert ends() == -signal.SIGKILL
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
    assert ends() == REFUSED
    keeper.look()
    found = Compared.read(folder)
    assert found is not None
    assert "nobody" in found.refused
    assert "is refused" in lines("payments", found)[0]
    set_shadow(made.registry_uri, "payments", 4)
    keeper.look()
    until(lambda: (folder / READY).exists())
    write_batch(folder, np.full(300, FOREVER), np.full(300, 0.5, np.float32))
    assert ends() == HANGS
    keeper.look()
    found = Compared.read(folder)
    assert found is not None
    assert (found.champion, found.shadow, found.rows, found.dropped, found.trouble) == (1, 4, 0, 300, "it hung in a call")
    assert not list(folder.glob(f"*{SUFFIX}")), "what it hung at is given up"
    assert [words.partition(", version ")[2] for words in said] == [
        "2, scores what the champion decides on",
        "2, ended with code -9: it rests for 0 s",
        "3, scores what the champion decides on",
        "3, is refused: headrace models diff says why",
        "4, scores what the champion decides on",
        "4, hung in a call: it rests for 0 s",
    ]
    set_shadow(made.registry_uri, "payments", None)
    keeper.look()
    assert keeper._process is None
    keeper.close()


def with_shadow_files(home: Path, versions: list[Path]) -> None:
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": Slowly(), "champion": champion(1, versions[0])}
    run(payments(), settings(home), registry=CollectorRegistry(), **parts)


class Slowly(MemorySink):
    """Takes so long that the worker's thread has looked meanwhile."""

    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.seconds = seconds

    def write(self, messages: Messages) -> None:
        time.sleep(self.seconds)
        super().write(messages)


def test_a_process_that_says_nothing_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "two"
    made, said = registered(tmp_path, version(tmp_path / "one", NAMES, 40), version(folder, NAMES, 41)), list[str]()
    monkeypatch.setattr("ops.model_shadow.work", lambda *of: time.sleep(60))
    keeper = Keeper(payments(), made, lambda words, **fields: said.append(words), rest=0.0)
    keeper._silent = 0.2
    set_shadow(made.registry_uri, "payments", 2)
    keeper.look()
    first = keeper._process
    assert first is not None
    pid = first.pid
    shared = shadow_folder(made.home / "models", "payments")
    time.sleep(0.3)
    (shared / READY).touch()
    (shared / f"0-000000001{SUFFIX}").touch()
    keeper.look()
    assert keeper._process is first, "it has said that it is ready"
    time.sleep(0.3)
    keeper.look()
    second = keeper._process
    assert second is not None
    assert second is not first
    assert "said nothing for" in said[-1]
    assert not list(shared.glob(f"*{SUFFIX}")), "what it may have hung at is given up"
    pids = pid, second.pid
    keeper.close()
    assert not any(psutil.pid_exists(each) for each in pids if each is not None)


def test_a_shadow_that_hangs_or_throws_at_a_batch_has_no_scores_there(tmp_path: Path) -> None:
    """The hanging one is ended, the throwing one asked for halves: one row costs itself alone."""
    hangs = ModelSpec("payments", tuple(Input(name, "number") for name in NAMES), medians={NAMES[0]: 3.0})
    write_hanging(tmp_path / "hangs", hangs)
    engine = OnnxEngine(tmp_path / "hangs", seconds=0.2)
    for bad, failed in ((FOREVER, 300), (np.float32(7), 1)):
        if failed == 1:
            engine.infer = throwing(engine, bad)  # type: ignore[method-assign]
        scoring = Scoring(tmp_path / f"of-{failed}", engine, payments(), 2)
        values = np.full(300, 3.0)
        values[123] = bad
        write_batch(tmp_path / f"of-{failed}", values, np.full(300, 0.5, np.float32))
        assert scoring.turn() == 1
        assert (scoring.compared.asked, scoring.compared.failed, scoring.compared.dropped) == (300, failed, 0)
        assert not list((tmp_path / f"of-{failed}").glob(f"*{SUFFIX}"))
    engine.close()


def throwing(engine: OnnxEngine, bad: float) -> Callable[[np.ndarray], np.ndarray]:
    infer = engine.infer

    def throws(matrix: np.ndarray) -> np.ndarray:
        if (matrix == bad).any():
            raise native.Fail("a node is out of its range")
        return infer(matrix)

    return throws


def write_batch(folder: Path, values: np.ndarray, scores: np.ndarray, champion: int = 1) -> None:
    """What a worker hands over, with the same value for each feature of a row."""
    folder.mkdir(exist_ok=True)
    columns = {name: pa.array(values, from_pandas=True) for name in NAMES}
    batch = pa.RecordBatch.from_pydict(columns | {SCORE: pa.array(scores)}).replace_schema_metadata({CHAMPION: str(champion)})
    out = pa.BufferOutputStream()
    with pa.ipc.new_file(out, batch.schema) as writer:
        writer.write_batch(batch)
    write_whole(folder / f"0-1-{champion:09d}{SUFFIX}", out.getvalue().to_pybytes())  # a process may look for it at any moment


def test_what_is_missing_is_missing_for_the_policy_too(tmp_path: Path, versions: list[Path]) -> None:
    """As in the job: a rule over a missing value does not hold, whatever it is."""
    policy = Bands(block=0.7, otherwise="allow", rules=[Rule("odd", "not (amount_mean_1h_by_card > 5)", "look")])
    scoring = Scoring(tmp_path / "x", OnnxEngine(versions[0]), replace(payments(), policy=policy), 2)
    write_batch(tmp_path / "x", np.array([1.0, np.nan, 9.0]), np.array([0.1, 0.1, 0.1], np.float32))
    scoring.turn()
    assert scoring.compared.dropped == 0, scoring.compared.trouble
    assert {name: sum(row.values()) for name, row in scoring.compared.decided.items()} == {"look": 1, "allow": 2}


def test_what_was_compared_goes_on_where_it_was_and_by_champion(tmp_path: Path, versions: list[Path]) -> None:
    folder, scores = tmp_path / "x", np.full(10, 0.5, np.float32)
    for number in (1, 2):
        scoring = Scoring(folder, OnnxEngine(versions[0]), payments(), 7)
        write_batch(folder, np.ones(10), scores)
        scoring.turn()
        scoring.compared.write(folder)
        assert scoring.compared.rows == 10 * number
    for decided_by in (2, 1, 2, 1):  # workers of which one does not have the new champion yet
        write_batch(folder, np.ones(10), scores, decided_by)
        scoring.turn()
    assert (scoring.compared.champion, scoring.compared.rows) == (2, 20)
    assert scoring._by_champion[1].rows == 40
    found = Scoring(folder, OnnxEngine(versions[0]), payments(), 8)
    assert found.compared.rows == 0, "of another shadow"


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_and_stops_nothing(
    tmp_path: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, tries = pa.OSFile, [0]

    def full(path: str, mode: str) -> Any:
        tries[0] += 1
        if tries[0] <= MOST_FILES + 2:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        return whole(path, mode)

    monkeypatch.setattr("streams.shadowing.pa.OSFile", full)
    folder = shadow_folder(tmp_path / "home" / "models", "payments")
    folder.mkdir(parents=True)
    (folder / READY).touch()
    said, registry = list[str](), CollectorRegistry()
    parts = {"source": MemorySource([stream(4000)], rows=25), "sink": Slowly(0.05), "champion": champion(1, versions[0])}
    parts["say"] = lambda words, **fields: said.append(words)
    run(payments(), settings(tmp_path / "home"), registry=registry, **parts)
    assert not list(folder.glob("*.part"))
    assert [words for words in said if "No space left" in words] == said
    assert len(said) == 1
    files = list(folder.glob(f"*{SUFFIX}"))
    assert files, "once there is room it goes on"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_after_a_failed_start_it_is_started_at_the_next_look(
    tmp_path: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tries, whole = registered(tmp_path, *versions), [0], os.fork

    def fails() -> int:
        tries[0] += 1
        if tries[0] == 1:
            raise OSError(12, "Cannot allocate memory")
        return whole()

    monkeypatch.setattr("os.fork", fails)
    monkeypatch.setattr("ops.model_shadow.work", lambda *of: time.sleep(60))
    keeper = Keeper(payments(), made, lambda words, **fields: None)
    set_shadow(made.registry_uri, "payments", 2)
    with pytest.raises(OSError, match="allocate"):
        keeper.look()
    keeper.look()
    assert keeper._process is not None
    keeper.close()


def test_one_that_ends_again_and_again_rests_for_longer_and_another_version_does_not(
    tmp_path: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, now = registered(tmp_path, *versions), list[str](), [1000.0]
    whole, forks = os.fork, [0]

    def counted() -> int:
        forks[0] += 1
        return whole()

    monkeypatch.setattr("os.fork", counted)
    monkeypatch.setattr("ops.model_shadow.work", lambda *of: sys.exit(9))
    monkeypatch.setattr("ops.model_shadow.time.monotonic", lambda: now[0])
    keeper = Keeper(payments(), made, lambda words, **fields: said.append(words))

    def looks(seconds: float) -> int:
        """How many have been started after a look so much later."""
        now[0] += seconds
        keeper.look()
        if keeper._process is not None:
            keeper._process.join()
        return forks[0]

    set_shadow(made.registry_uri, "payments", 2)
    assert [looks(seconds) for seconds in (0, 1, 9, 1, 1, 19, 1, 1, 39, 1)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    set_shadow(made.registry_uri, "payments", 1)
    assert looks(0) == 5, "another one has no share in it"
    for _ in range(7):
        looks(0)
        looks(MOST_REST_SECONDS)
    looks(0)
    looks(MOST_REST_SECONDS)
    keeper._since -= MOST_REST_SECONDS  # as if it had lasted
    looks(0)
    rested = [words.partition("ended with code 9: it rests for ")[2] for words in said if "rests" in words]
    assert rested == [f"{seconds} s" for seconds in (10, 20, 40, *(10, 20, 40, 80, 160, 320, 600, 600), 10)]
    set_shadow(made.registry_uri, "payments", None)
    looks(0)
    set_shadow(made.registry_uri, "payments", 1)
    before = forks[0]
    assert looks(0) == before + 1, "taken away and given again, it has no past"
    keeper.close()


@pytest.mark.slow
def test_asked_to_leave_the_process_that_looks_ends_the_shadow_and_clears(tmp_path: Path, versions: list[Path]) -> None:
    made = registered(tmp_path, *versions)
    set_shadow(made.registry_uri, "payments", 2)
    folder = shadow_folder(made.home / "models", "payments")
    command = [sys.executable, "-m", "ops.model_watch", pipeline_file(tmp_path), "0.2"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, env=os.environ | as_environment(made)) as watch:
        until(lambda: (folder / READY).exists())
        (child,) = psutil.Process(watch.pid).children()
        (folder / f"0-1-000000001{SUFFIX}.part").touch()
        child.suspend()  # as if it hung
        watch.terminate()
        assert watch.wait(20) == 0
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert not [file.name for file in folder.iterdir() if file.name != "compared.json"]


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
