"""A large version is mapped into memory instead of copied, scores the same, and is never one that was not tried."""

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from small_models import save
from test_swapping import until, version

from models.engine import MAPPED, ModelRefused, OnnxEngine, mapped
from models.mapped import LEAST_BYTES, MAKING, tidy_mapped, write_mapped
from models.news import News, look, news_file, state_of
from models.registry import record
from models.spec import Input, ModelSpec, digest, state
from ops.model_news import checker
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.job import Champion
from streams.run import run
from streams.source import MemorySource

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
ROWS = 100_000


def large(folder: Path, seed: int = 0) -> Path:
    """A version that looks a number up for each of its inputs, of a table of more than a megabyte, and weighs them by a small
    and by a large matrix."""
    folder.mkdir(parents=True)
    ModelSpec("payments", tuple(Input(name, "number") for name in NAMES)).write(folder)
    rng, k = np.random.default_rng(seed), len(NAMES)
    numbers = {
        "rows": rng.random((ROWS, 4), np.float32),
        "count": np.array([ROWS]),
        "first": rng.normal(size=(4 * k, 2000)).astype(np.float32) / 9,
        "second": rng.normal(size=(2000, 1)).astype(np.float32) / 40,
        "shape": np.array([-1, 4 * k]),
    }
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "none", "x"], ["full"]),
        helper.make_node("Cast", ["full"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mod", ["whole", "count"], ["places"]),
        helper.make_node("Gather", ["rows", "places"], ["found"], axis=0),
        helper.make_node("Reshape", ["found", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["positive"]),
        helper.make_node("MatMul", ["positive", "second"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", k])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in (numbers | {"none": np.float32([7])}).items()],
    )
    save(graph, folder / "model.onnx")
    return folder


def in_memory(models: Path) -> set[str]:
    """The mapped versions of a folder that this process has in its memory."""
    gc.collect()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if f"{models}/" in line]
    return {Path(words[5]).parent.name for words in maps if Path(words[5]).parent.suffix == MAPPED}


def test_a_large_version_is_mapped_scores_the_same_and_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    folder = large(tmp_path / "models" / "one")
    before = digest(folder)
    assert write_mapped(folder)
    first = state(mapped(folder))
    assert write_mapped(folder)
    assert state(mapped(folder)) == first  # it was there
    assert digest(folder) == before
    assert {path.name for path in folder.parent.iterdir()} == {"one", "one.mapped"}
    assert (mapped(folder) / "model.onnx").stat().st_size < 10_000
    plain, light = OnnxEngine(folder), OnnxEngine(folder, checked=True)
    assert in_memory(folder.parent) == {"one.mapped"}
    matrix = np.random.default_rng(1).integers(0, ROWS, (997, len(NAMES))).astype(np.float32)
    assert np.array_equal(plain.infer(matrix), light.infer(matrix))
    assert np.unique(light.infer(matrix)).size > 900
    light.close()
    assert in_memory(folder.parent) == set()
    plain.close()


def test_a_version_that_is_small_is_left_as_it_is(tmp_path: Path) -> None:
    folder = version(tmp_path / "small", NAMES, 40)
    assert (folder / "model.onnx").stat().st_size < LEAST_BYTES
    assert not write_mapped(folder)
    assert not write_mapped(tmp_path)  # of another engine: it has no graph
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    OnnxEngine(folder, checked=True).close()


def test_a_graph_that_is_not_to_be_served_is_refused_and_nothing_written(tmp_path: Path) -> None:
    folder = large(tmp_path / "models" / "one")
    (folder / "weights").write_bytes(bytes(16))
    model = onnx.load(folder / "model.onnx")
    tensor = next(each for each in model.graph.initializer if each.name == "second")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match="weights second: expected them inside the file, got weights"):
        write_mapped(folder)
    (folder / "model.onnx").write_bytes(b"no graph" * LEAST_BYTES)
    with pytest.raises(ModelRefused, match="cannot read the model"):
        write_mapped(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_what_is_mapped_of_a_model_goes_with_its_versions_and_what_a_killed_process_left_an_hour_later(tmp_path: Path) -> None:
    stay = {"m-2-b.mapped", "m-2-b", "other-1-c.mapped", "m-2-1-d.mapped", "m-x-3-e.mapped", f"{MAKING}new"}
    for name in {*stay, "m-1-a.mapped", f"{MAKING}old"}:
        (tmp_path / name).mkdir()
    os.utime(tmp_path / f"{MAKING}old", (time.time() - 4000,) * 2)
    tidy_mapped(tmp_path, "m", ["m-2-b", "m-0-x"])
    assert {path.name for path in tmp_path.iterdir()} == stay


def test_tensors_begin_at_pages_whatever_their_lengths(tmp_path: Path) -> None:
    """A graph of bytes of an odd number before floats; ONNX Runtime maps them where they stand."""
    bytes_, floats = np.arange(70_001, dtype=np.uint8), np.random.default_rng(0).random(300_000).astype(np.float32)
    folder = tmp_path / "models" / "one"
    folder.mkdir(parents=True)
    ModelSpec("payments", (Input("amount", "number"),)).write(folder)
    numbers = {"bytes": bytes_, "floats": floats, "count": np.array([70_001])}
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mod", ["whole", "count"], ["places"]),
        helper.make_node("Gather", ["bytes", "places"], ["small"], axis=0),
        helper.make_node("Cast", ["small"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["floats", "places"], ["large"], axis=0),
        helper.make_node("Add", ["number", "large"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    save(graph, folder / "model.onnx")
    assert write_mapped(folder)
    light = onnx.load_model(mapped(folder) / "model.onnx", load_external_data=False)
    said = [{each.key: each.value for each in tensor.external_data} for tensor in light.graph.initializer]
    assert [int(one["offset"]) % 4096 for one in said if one] == [0, 0]
    engine = OnnxEngine(folder, checked=True)
    assert engine.mapped
    places = np.arange(0, 70_001, 97)
    scores = engine.infer(places.astype(np.float32)[:, None])
    assert np.array_equal(scores, bytes_[places].astype(np.float32) + floats[places])
    engine.close()


def test_a_version_is_used_without_where_it_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: what is only faster keeps nobody from a version."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    home = tmp_path / "home"
    values = settings(home)
    record(values.registry_uri, "payments", large(tmp_path / "two"), params={}, metrics={})
    monkeypatch.setattr("models.mapped.onnx.save_model", full)
    news = look(values.registry_uri, "payments", home / "models", News(), checker(payments(), values))
    assert [good.version for good in news.good] == [1]
    assert not [path for path in (home / "models").iterdir() if MAPPED in path.name or MAKING in path.name]


def test_what_is_mapped_of_a_version_that_is_refused_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    values, check = settings(home), checker(payments(), settings(home))
    record(values.registry_uri, "payments", large(tmp_path / "two"), params={}, metrics={})
    monkeypatch.setattr("ops.model_news.try_out", lambda engine, reference: engine.infer(np.zeros((1, 99), np.float32)))
    news = look(values.registry_uri, "payments", home / "models", News(), check)
    assert not news.good
    assert "expected a matrix" in "".join(news.refused.values())
    assert not list((home / "models").glob(f"*{MAPPED}"))


def test_one_that_has_gone_meanwhile_is_loaded_from_the_version_s_own_files(tmp_path: Path) -> None:
    folder = large(tmp_path / "one")
    write_mapped(folder)
    (mapped(folder) / "weights").unlink()
    engine = OnnxEngine(folder, checked=True)
    assert in_memory(folder.parent) == set()
    engine.close()


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_job_maps_what_the_look_has_tried_and_nothing_else(tmp_path: Path, spoilt: bool) -> None:
    """Where weights beside a version are not those that were tried, it is loaded from its own files, which have a digest."""
    home, sink, registry = tmp_path / "home", MemorySink(), CollectorRegistry()
    values, file = settings(home), news_file(home / "models", "payments")
    first = Champion(1, OnnxEngine(version(tmp_path / "first", NAMES, 40)), None, "d")
    record(values.registry_uri, "payments", version(tmp_path / "one", NAMES, 40), params={}, metrics={})
    record(values.registry_uri, "payments", large(tmp_path / "two"), params={}, metrics={})
    folders = set[str]()

    def tell(messages: Messages) -> None:
        if len(sink.values("verdicts")) > 300 and not file.exists():
            news = look(values.registry_uri, "payments", home / "models", News(), checker(payments(), values))
            folder = home / "models" / news.good[0].folder
            assert news.good[0].state == state_of(folder) != ""
            if spoilt:
                weights = bytearray((mapped(folder) / "weights").read_bytes())
                weights[1000:2000] = bytes(1000)
                (mapped(folder) / "weights").write_bytes(weights)
            news.write(file)
            until(lambda: registry.get_sample_value("headrace_model_version", {"pipeline": "payments"}) == 2)
            folders.update(in_memory(home / "models"))

    sink.on_write = tell
    parts: dict[str, Any] = {"source": MemorySource([stream(4000)], rows=50), "sink": sink, "champion": first}
    run(payments(), values, registry=registry, **parts)
    assert len(folders) == (0 if spoilt else 1)
    found = decisions(sink)
    by_second = [id for id, one in found.items() if one["model_version"] == 2]
    assert len(by_second) > 100
    alone = MemorySink()
    parts = {"source": MemorySource([stream(4000)], rows=50), "sink": alone}
    second = Champion(2, OnnxEngine(tmp_path / "two"), None, "d")
    run(payments(), settings(tmp_path / "alone"), registry=CollectorRegistry(), champion=second, **parts)
    expected = decisions(alone)
    assert {id: found[id]["score"] for id in by_second} == {id: expected[id]["score"] for id in by_second}
