"""A new version of the model takes over between two batches: every decision is that of the version that it names."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from small_models import logistic

from features.views import StoredFeaturesError
from models.engine import ModelRefused, OnnxEngine
from models.news import Good, News, key, loaded, look, news_file, reason_of, sample, state_of, try_out
from models.reference import build_reference
from models.registry import Version, record
from models.spec import Input, ModelSpec, digest
from ops.model_news import apart, checker, watch
from sinks.memory import MemorySink
from sinks.messages import Messages
from sinks.records import read, tables
from sinks.segments import chains
from streams.job import Champion
from streams.pipeline import Pipeline, Record
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource

pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated",
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)
FEWER = ("amount_mean_1h_by_card", "amount")
LABEL = {"pipeline": "payments"}


def version(folder: Path, names: tuple[str, ...], scale: float) -> Path:
    """A version with these inputs."""
    spec = ModelSpec("payments", tuple(Input(name, "number") for name in names))
    logistic(folder, spec, np.linspace(scale, 9 * scale, len(names)))
    return folder


def champion(number: int, folder: Path) -> Champion:
    return Champion(number, OnnxEngine(folder), None, digest(folder))


def by_it_alone(home: Path, number: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The decisions where nothing is swapped."""
    sink = MemorySink()
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(number, folder)}
    run(payments(), settings(home, model_look_seconds=0), registry=CollectorRegistry(), **parts)
    return decisions(sink)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240  # a shadow has the time that nobody else wants
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def versions(tmp_path: Path) -> list[Path]:
    """Of other weights, inputs and order of inputs."""
    assert set(FEWER) < set(NAMES)
    models = tmp_path / "home" / "models"
    first = version(models / "one", NAMES, 40)
    return [first, version(models / "two", FEWER, 25), version(models / "three", NAMES[::-1], 30)]


def test_swapped_in_the_stream_each_decision_is_as_if_its_version_had_decided_all(tmp_path: Path, versions: list[Path]) -> None:
    """To another, to a third, and back to the first; a broken one in between changes nothing. So the record says, too."""
    expected = {number: by_it_alone(tmp_path / f"alone-{number}", number, each) for number, each in enumerate(versions, 1)}
    broken = tmp_path / "home" / "models" / "broken"
    version(broken, ("nobody", "knows"), 1)
    registry, sink, said = CollectorRegistry(), MemorySink(), list[str]()
    file = news_file(tmp_path / "home" / "models", "payments")

    def count(name: str) -> float:
        return registry.get_sample_value(f"headrace_model_{name}", LABEL) or 0

    def news(number: int, folder: Path) -> None:
        News("payments", (Good(number, digest(folder), folder.name),)).write(file)

    turns = iter(
        [
            (300, lambda: news(2, versions[1]), lambda: count("version") == 2),
            (700, lambda: news(9, broken), lambda: count("refused_total") == 1),
            (1100, lambda: news(3, versions[2]), lambda: count("version") == 3),
            (1600, lambda: news(1, versions[0]), lambda: count("version") == 1),
        ]
    )
    due = next(turns)

    def on_write(messages: Messages) -> None:
        nonlocal due
        if due and len(sink.values("verdicts")) >= due[0]:
            due[1]()
            until(due[2])
            due = next(turns, None)  # type: ignore[assignment]

    sink.on_write = on_write
    run(
        replace(payments(), record=Record()),
        settings(tmp_path / "home"),
        registry=registry,
        source=MemorySource([stream(4000)], rows=50),
        sink=sink,
        champion=champion(1, versions[0]),
        say=lambda words, **fields: said.append(words),
    )
    found = decisions(sink)
    assert found.keys() == expected[1].keys()
    assert len(found) == len(sink.values("verdicts"))
    assert [number for number, _ in groupby(one["model_version"] for one in found.values())] == [1, 2, 3, 1]
    for id, one in found.items():
        assert one | {"decided_at": 0} == expected[one["model_version"]][id] | {"decided_at": 0}
    assert {len(one["features"]) for one in found.values() if one["model_version"] == 2} == {2}
    assert count("swaps_total") == 3
    assert [words for words in said if "version 9 is refused" in words and "nobody" in words], said
    recorded = read(tmp_path / "home" / "record" / "payments").table
    numbers = dict(recorded.select("decision_id", "model_version").iter_rows())
    assert numbers == {key: one["model_version"] for key, one in found.items()}
    assert set(recorded["model_digest"].unique()) == {digest(folder) for folder in versions}
    (chain,) = chains(tmp_path / "home" / "record" / "payments")
    assert [table["model_version"].unique().to_pylist() for table in tables(chain)] == [[1], [2], [3], [1]]


def test_the_process_beside_the_job_finds_versions_and_eleven_bad_ones_of_eleven_kinds_are_refused(tmp_path: Path) -> None:
    home = tmp_path / "home"
    values = settings(home, model_look_seconds=0.01)
    pipeline = payments()
    good = version(tmp_path / "good", NAMES, 40)
    publish(values.registry_uri, good)
    file, check = news_file(home / "models", "payments"), apart(pipeline, values)

    def news() -> News:
        made = look(values.registry_uri, "payments", home / "models", News.read(file), check)
        made.write(file)
        return made

    first = news()
    assert (first.model, first.good[0][:2], dict(first.refused)) == ("payments", (1, digest(good)), {})
    assert digest(home / "models" / first.good[0].folder) == digest(good)
    assert first.good[0].state == state_of(home / "models" / first.good[0].folder)
    assert news() == first
    refused = {
        number: reason for number, (spoil, reason) in enumerate(BAD.items(), 2)
        if spoil(version(tmp_path / f"bad-{number}", NAMES, 40), lambda folder: publish(values.registry_uri, folder)) or True
    }  # fmt: skip
    assert len(refused) == 11
    from mlflow.tracking import MlflowClient

    client = MlflowClient(values.registry_uri)
    for number, reason in refused.items():
        client.set_registered_model_alias("payments", "champion", number)
        found = news()
        assert found.good == first.good
        (said,) = (why for called, why in found.refused.items() if called.startswith(f"{number}-"))
        assert reason in said
    assert len(news().refused) == 11
    publish(values.registry_uri, version(tmp_path / "better", FEWER, 40))
    failed = list[str]()
    watch(pipeline, values, lambda: False, lambda words, **fields: failed.append(words), apart)
    last = News.read(file)
    assert ([each.version for each in last.good], dict(last.refused), failed) == ([13, 1], {}, [])


def refuses(version: Version) -> None:
    error = ValueError("of no use")
    error.add_note("and here is why")
    raise error


def misses(version: Version) -> None:
    raise ConnectionError("no store there")


@pytest.mark.parametrize(
    ("check", "kind", "reason"),
    [
        (lambda version: os._exit(7), ValueError, "model payments: it ended the process that tried it (exit code 7)"),
        (
            lambda version: os.kill(os.getpid(), signal.SIGKILL),
            ValueError,
            "it ended the process that tried it (exit code -9)",
        ),
        (refuses, ValueError, "of no use\nand here is why"),
        (misses, RuntimeError, "no store there"),
        (lambda version: os.kill(os.getpid(), signal.SIGTERM), RuntimeError, "(exit code -15)"),
    ],
)
def test_what_a_fork_finds_of_a_version_is_found_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Version], None], kind: type[Exception], reason: str
) -> None:
    monkeypatch.setattr("ops.model_news.checker", lambda pipeline, settings: check)
    with pytest.raises(kind) as raised:
        apart(payments(), settings(tmp_path))(Version("payments", 3, "", tmp_path))
    assert reason in reason_of(raised.value)
    assert type(raised.value) is kind


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has SCHED_IDLE")
def test_a_version_is_tried_with_time_that_nobody_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_more(version: Version) -> None:
        if os.sched_getscheduler(0) != os.SCHED_IDLE:
            raise ValueError("it has more")

    monkeypatch.setattr("ops.model_news.checker", lambda pipeline, settings: with_more)
    monkeypatch.setattr("ops.model_news.FIRST_SECONDS", 240.0)
    apart(payments(), settings(tmp_path))(Version("payments", 3, "", tmp_path))


@pytest.mark.parametrize("seconds", [0.0, 240.0])
def test_a_version_for_which_that_is_not_enough_is_tried_as_who_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """There is none, or a call takes longer than its limit."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    file = tmp_path / "tried"

    def needs_time(version: Version) -> None:
        if os.getpriority(os.PRIO_PROCESS, 0) != ours:
            raise ValueError("it took too long")
        file.touch()

    monkeypatch.setattr("ops.model_news.checker", lambda pipeline, settings: needs_time)
    monkeypatch.setattr("ops.model_news.FIRST_SECONDS", seconds)
    apart(payments(), settings(tmp_path))(Version("payments", 3, "", tmp_path))
    assert file.exists()


def test_a_version_that_hangs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.model_news.checker", lambda pipeline, settings: lambda version: time.sleep(600))
    monkeypatch.setattr("ops.model_news.FIRST_SECONDS", 0.1)
    monkeypatch.setattr("ops.model_news.MOST_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"model payments: expected to have tried it within 0 s, had not"):
        apart(payments(), settings(tmp_path))(Version("payments", 3, "", tmp_path))


def test_what_fails_before_a_version_is_tried_is_not_its_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(pipeline: Pipeline, values: JobSettings) -> Callable[[Version], None]:
        raise StoredFeaturesError("no such repo")

    monkeypatch.setattr("ops.model_news.checker", none)
    with pytest.raises(RuntimeError, match="no such repo"):
        apart(payments(), settings(tmp_path))(Version("payments", 3, "", tmp_path))


def test_a_job_begins_with_the_last_version_that_was_checked_where_the_champion_cannot_be_used(tmp_path: Path) -> None:
    home, said, sink = tmp_path / "home", list[str](), MemorySink()
    values = settings(home)
    good = version(home / "models" / "good", NAMES, 40)
    publish(values.registry_uri, version(tmp_path / "bad", ("amount", "what_nobody_computes"), 3))

    def begin() -> None:
        parts = {"source": MemorySource([stream(50)]), "sink": sink}
        run(payments(), values, registry=CollectorRegistry(), say=lambda words, **fields: said.append(words), **parts)

    with pytest.raises(ValueError, match="inputs that are not features"):
        begin()
    file = news_file(home / "models", "payments")
    News("payments", (Good(7, digest(good), "good"),)).write(file)
    begin()
    assert {one["model_version"] for one in decisions(sink).values()} == {7}
    assert [words for words in said if "version 7 decides: the champion cannot be used" in words], said
    publish(values.registry_uri, better := version(tmp_path / "better", NAMES, 20))
    begin()
    assert {one["model_version"] for one in map(json.loads, sink.values("verdicts")[-20:])} == {2}, "old news are none"
    News("payments", (Good(7, digest(good), "good"),), {f"2-{digest(better)[:12]}": "it was bad"}).write(file)
    begin()
    assert {one["model_version"] for one in map(json.loads, sink.values("verdicts")[-20:])} == {2}, "it may be good by now"
    publish(values.registry_uri, nan := version(tmp_path / "nan", NAMES, 0))
    News("payments", (Good(7, digest(good), "good"),), {f"3-{digest(nan)[:12]}": "it is bad"}).write(file)
    begin()
    assert "version 7 decides: the champion cannot be used: model payments: expected scores, got none" in said[-1]
    assert {one["model_version"] for one in map(json.loads, sink.values("verdicts")[-20:])} == {7}
    other = version(home / "models" / "other", ("what_nobody_computes",), 3)
    for news in (
        News("another", (Good(7, digest(good), "good"),), {f"3-{digest(nan)[:12]}": "it is bad"}),
        News("payments", (Good(8, digest(other), "other"),)),
    ):
        news.write(file)
        begin()
        assert {one["model_version"] for one in map(json.loads, sink.values("verdicts")[-20:])} == {3}, "not by a look's news"
    before = digest(good)
    (good / "model.onnx").write_bytes(b"other")
    News("payments", (Good(7, before, "good"),), {f"3-{digest(nan)[:12]}": "it is bad"}).write(file)
    with pytest.raises(ValueError, match="expected scores, got none"):
        begin()
    file.write_text("{")
    begin()
    assert {one["model_version"] for one in map(json.loads, sink.values("verdicts")[-20:])} == {3}


def test_files_are_digested_again_only_where_they_are_not_in_the_state_that_the_look_left_them_in(
    tmp_path: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are, they are not read twice; where they were written since, the version is used or refused by its digest."""
    file, sink, registry = news_file(tmp_path / "home" / "models", "payments"), MemorySink(), CollectorRegistry()
    digested, said = list[str](), list[str]()
    monkeypatch.setattr("streams.swapping.digest", lambda folder: digested.append(folder.name) or digest(folder))

    def good(number: int) -> Good:
        return Good(number, digest(versions[number - 1]), versions[number - 1].name, state_of(versions[number - 1]))

    two, one, three = good(2), good(1), good(3)
    time.sleep(0.02)  # a clock tick of the kernel's
    for each in (versions[0], versions[2]):
        content = each.joinpath("model.onnx").read_bytes()
        each.joinpath("model.onnx").write_bytes(content if each == versions[0] else content + b" ")

    def count(name: str) -> float:
        return registry.get_sample_value(f"headrace_model_{name}", LABEL) or 0

    turns = iter(
        [
            (200, two, lambda: count("version") == 2),
            (600, three, lambda: count("refused_total") == 1),
            (1000, one, lambda: count("version") == 1),
        ]
    )
    due: Any = next(turns)

    def on_write(messages: Messages) -> None:
        nonlocal due
        if due and len(sink.values("verdicts")) >= due[0]:
            News("payments", (due[1],)).write(file)
            until(due[2])
            due = next(turns, None)

    sink.on_write = on_write
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(8, versions[1])}
    run(payments(), settings(tmp_path / "home"), registry=registry, say=lambda words, **fields: said.append(words), **parts)
    assert digested == ["three", "one"]
    assert [number for number, _ in groupby(each["model_version"] for each in decisions(sink).values())] == [8, 2, 1]
    assert [words for words in said if "version 3 is refused" in words and f"expected digest {three.digest}" in words], said


def test_a_version_that_was_refused_and_is_found_good_is_taken(tmp_path: Path, versions: list[Path]) -> None:
    """As where a pipeline learned of a feature that it needs, and the news from before are still there; those of a model that
    the pipeline had before are none."""
    file, sink, registry = news_file(tmp_path / "home" / "models", "payments"), MemorySink(), CollectorRegistry()
    good = [Good(number, digest(folder), folder.name) for number, folder in enumerate(versions, 1)]
    News("payments", (good[0],), {key(*good[1][:2]): "it has inputs that are not features"}).write(file)
    turns = iter([(200, News("another", (good[2],))), (600, News("payments", (good[1], good[0])))])
    due: Any = next(turns)

    def on_write(messages: Messages) -> None:
        nonlocal due
        if due and len(sink.values("verdicts")) >= due[0]:
            due[1].write(file)
            due = next(turns, None)
            if due:
                time.sleep(0.5)
            else:
                until(lambda: registry.get_sample_value("headrace_model_version", LABEL) == 2)

    sink.on_write = on_write
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": champion(1, versions[0])}
    run(payments(), settings(tmp_path / "home"), registry=registry, **parts)
    found = [one["model_version"] for one in decisions(sink).values()]
    assert [number for number, _ in groupby(found)] == [1, 2]
    assert found.index(2) >= 600


def publish(uri: str, folder: Path) -> None:
    record(uri, "payments", folder, params={}, metrics={})


def spoilt(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path, Callable[[Path], None]], None]:
    """A version whose graph is changed."""

    def spoil(folder: Path, publish: Callable[[Path], None]) -> None:
        model = onnx.load(folder / "model.onnx")
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        publish(folder)

    return spoil


def other_files(folder: Path, publish: Callable[[Path], None]) -> None:
    publish(folder)
    stored = max((folder.parent / "home" / "artifacts").rglob("model.json"), key=lambda path: path.stat().st_mtime_ns)
    stored.write_text(stored.read_text() + " ")


def torn(folder: Path, publish: Callable[[Path], None]) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100])
    publish(folder)


def without_graph(folder: Path, publish: Callable[[Path], None]) -> None:
    (folder / "model.onnx").unlink()
    publish(folder)


def without_description(folder: Path, publish: Callable[[Path], None]) -> None:
    (folder / "model.json").write_text("{")
    publish(folder)


def other_inputs(folder: Path, publish: Callable[[Path], None]) -> None:
    publish(version(folder, ("amount", "what_nobody_computes"), 3))


def outputs_too_many(folder: Path, publish: Callable[[Path], None]) -> None:
    replace(ModelSpec.read(folder), outputs=3).write(folder)
    publish(folder)


def nan(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "scale":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(len(NAMES), np.float32), "scale"))


def throws(model: onnx.ModelProto) -> None:
    """Looks up what is not there, whatever it is given."""
    (last,) = (node for node in model.graph.node if node.op_type == "Sigmoid")
    last.output[0] = "before"
    numbers = {"zero": np.float32([0]), "nine": np.float32([9]), "pair": np.float32([0, 1])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["before", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "nine"], ["place"]),
            helper.make_node("Cast", ["place"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Gather", ["pair", "whole"], ["score"]),
        ]
    )


def narrower(model: onnx.ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"]))


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secrets")


BAD: dict[Callable[[Path, Callable[[Path], None]], None], str] = {
    other_files: "expected digest",
    torn: "cannot read the model",
    without_graph: "cannot read the model",
    without_description: "cannot read the model's description",
    other_inputs: "inputs that are not features",
    outputs_too_many: "expected one output",
    spoilt(nan): "expected scores, got none (NaN or infinite) for 64 of 64 rows",
    spoilt(throws): "it cannot be used: InvalidArgument",
    spoilt(narrower): "expected one input float",
    spoilt(custom): "expected an operator of ONNX, got com.example::Div",
    spoilt(elsewhere): "expected them inside the file",
}


def test_a_sample_has_what_the_model_knows_and_nothing_missing(tmp_path: Path) -> None:
    more = Input("v", "vector", width=3), Input("h", "hashed", buckets=5)
    spec = ModelSpec("m", (Input("a", "number"), Input("c", "category", ("x", "y")), *more), medians={"a": 7.5})
    rows = sample(spec, None)
    assert rows.shape == (64, 6)
    assert rows.dtype == np.float32
    assert set(rows[:, 0]) == {7.5}
    assert set(rows[:, 1]) == {0, 1, 2}
    assert set(rows[:, 5]) == {0, 1, 2, 3, 4}
    assert np.isfinite(rows).all()


def test_a_version_that_is_tried_says_how_long_it_takes(tmp_path: Path) -> None:
    folder = version(tmp_path / "m", NAMES, 40)
    engine, reference = loaded(folder, OnnxEngine, False)
    took = try_out(engine, reference)
    assert list(took) == [1, 64, 1024]
    assert all(seconds > 0 for seconds in took.values())
    with pytest.raises(ModelRefused, match=r"no reference profile to measure drift from \(reference.json\)"):
        loaded(folder, OnnxEngine, True)
    rng, days = np.random.default_rng(0), np.repeat(np.arange(20) * 86_400_000_000, 100)
    matrix, scores = rng.random((2000, 2)).astype(np.float32), rng.random(2000).astype(np.float32)
    build_reference(("amount", "other"), (False, False), matrix, scores, days).save(folder)
    with pytest.raises(
        ModelRefused, match="reference profile is of other inputs than it has, and their score: amount, other, score"
    ):
        loaded(folder, OnnxEngine, True)


def test_a_job_says_once_that_nobody_looks(tmp_path: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.swapping.PATIENCE_SECONDS", 0.1)
    said, sink = list[str](), MemorySink()
    sink.on_write = lambda messages: time.sleep(0.05)
    parts = {"source": MemorySource([stream(4000)], rows=100), "sink": sink, "champion": champion(1, versions[0])}
    parts["say"] = lambda words, **fields: said.append(words)
    run(payments(), settings(tmp_path, model_look_seconds=0.01), registry=CollectorRegistry(), **parts)
    assert [words for words in said if "nobody has looked" in words] == [
        "model payments: nobody has looked for another version for 0 s: start the job again"
    ]


def test_a_registry_that_fails_is_said_once_and_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, said = threading.Semaphore(0), list[str]()

    def fails(*_: Any) -> News:
        asked.release()
        raise OSError("no such host")

    monkeypatch.setattr("ops.model_news.look", fails)
    turns = iter([True, True, False])
    watch(payments(), settings(tmp_path), lambda: next(turns), lambda words, **fields: said.append(words), checker)
    assert said == ["model payments: no look at the registry: no such host"]
    assert all(asked.acquire(blocking=False) for _ in range(3))
