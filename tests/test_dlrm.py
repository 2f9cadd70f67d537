"""The DLRM: ONNX Runtime, PyTorch and plain NumPy agree, and the pipeline scores clicks as the model alone does."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from prometheus_client import CollectorRegistry
from safetensors.numpy import load_file

from bench.dlrm import FLOP, WEIGHTS, Gathering, matrix, network_of, write_model
from bench.load import Payloads
from bench.workloads import dlrm
from bench.workloads.dlrm import CATEGORIES, NUMBERS
from features.schema import Integer, Kind, Number, Schema, Text
from features.spec import Fields
from kernels.gather.cpu import gather
from models.engine import OnnxEngine
from models.spec import Input, ModelSpec
from sinks.encoders import Scores
from sinks.memory import MemorySink
from sinks.records import read
from streams.inputs import InputsDifferError, fits
from streams.pipeline import Decisions, Drift, Model, Pipeline, Record
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource
from streams.topic import Topic

BUCKETS = 50
N = 100


def quiet(doing: str, share: float) -> None: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dlrm")
    write_model(made, "dlrm", BUCKETS)
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[OnnxEngine]:
    made = OnnxEngine(folder)
    yield made
    made.close()


def rows(n: int, engine: OnnxEngine) -> np.ndarray:
    """Clicks, the first of which has nothing."""
    made = matrix(n, engine.spec)
    made[0, :13], made[0, 13:] = np.nan, 0
    return made


def by_hand(folder: Path, clicks: np.ndarray) -> list[float]:
    """The scores in float64, a row at a time, as the paper defines them."""
    weights = {name: each.astype(np.float64) for name, each in load_file(folder / WEIGHTS).items()}
    tables = weights["embeddings"].reshape(26, BUCKETS, 128)

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    scores = []
    for row in clicks.astype(np.float64):
        dense = np.log1p(np.nan_to_num(row[:13]).clip(0))
        for k in (0, 2, 4):
            dense = layer(f"bottom.{k}", dense).clip(0)
        vectors = [dense, *(tables[k, int(code)] for k, code in enumerate(row[13:]))]
        x = np.array([*dense, *(vectors[i] @ vectors[j] for i in range(27) for j in range(i))])
        for k in (0, 2, 4, 6):
            x = layer(f"top.{k}", x).clip(0)
        scores.append(float(1 / (1 + np.exp(-layer("top.8", x)[0]))))
    return scores


@pytest.mark.parametrize("n", [1, 7, 97])
def test_onnx_runtime_scores_as_pytorch_and_numpy_do(folder: Path, engine: OnnxEngine, n: int) -> None:
    clicks = rows(n, engine)
    scores = engine.infer(clicks)
    np.testing.assert_allclose(scores, network_of(folder).scores(clicks), rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores, by_hand(folder, clicks), rtol=0, atol=1e-4)


def test_scores_spread_and_depend_on_counts_and_on_each_category(engine: OnnxEngine) -> None:
    clicks = rows(500, engine)
    scores = engine.infer(clicks)
    assert scores.min() < 0.3
    assert scores.max() > 0.7
    assert 0.35 < scores.mean() < 0.65
    for column in range(39):
        changed = clicks.copy()
        changed[:, column] = 30
        assert np.abs(engine.infer(changed) - scores).max() > 1e-3


def test_codes_beyond_the_tables_are_those_at_their_ends(folder: Path, engine: OnnxEngine) -> None:
    inside = rows(7, engine)
    beyond = inside.copy()
    inside[:, 13], inside[:, 38] = BUCKETS - 1, 0
    beyond[:, 13], beyond[:, 38] = 1e6, -3
    np.testing.assert_array_equal(engine.infer(beyond), engine.infer(inside))
    network = network_of(folder)
    np.testing.assert_array_equal(network.scores(beyond), network.scores(inside))


def test_with_embeddings_that_a_kernel_takes_the_scores_are_the_same(folder: Path, engine: OnnxEngine) -> None:
    def by_kernel(matrix: torch.Tensor, first: int, *arrays: torch.Tensor) -> None:
        gather(matrix.numpy(), first, *(each.numpy() for each in arrays))

    clicks, network = rows(97, engine), network_of(folder)
    with torch.no_grad():
        found = Gathering(network, by_kernel)(torch.from_numpy(clicks)).numpy()
    np.testing.assert_allclose(found, network.scores(clicks), rtol=0, atol=1e-6)


def test_the_files_say_what_they_are(folder: Path, tmp_path: Path) -> None:
    numbers = [Input(name, "number") for name in NUMBERS]
    hashed = [Input(name, "hashed", buckets=BUCKETS) for name in CATEGORIES]
    assert ModelSpec.read(folder) == ModelSpec("dlrm", (*numbers, *hashed), seed=1)
    graph = onnx.load(folder / "model.onnx").graph
    (table,) = [each.name for each in graph.initializer if list(each.dims) == [26 * BUCKETS, 128]]
    assert [node.op_type for node in graph.node if table in node.input] == ["Gather"]
    assert FLOP == 2 * (170_496 + 2_194_688 + 44_928)
    network = network_of(folder)
    assert network.buckets == BUCKETS
    found = {name: each.numpy() for name, each in network.state_dict().items()}
    saved = load_file(folder / WEIGHTS)
    assert found.keys() == saved.keys()
    assert all(np.array_equal(found[name], saved[name]) for name in saved)
    assert matrix(0, ModelSpec.read(folder)).shape == (0, 39)
    with pytest.raises(FileNotFoundError):
        network_of(tmp_path)


def test_the_pipeline_scores_clicks_as_the_model_alone_does_of_hashes_by_the_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.pooled.POOLED", 64)
    monkeypatch.setattr("bench.pooled.STEP", 1_000)
    workload = replace(dlrm.workload, buckets=BUCKETS, _home=[])
    workload.ready(tmp_path, quiet)
    prepared = workload.prepare(N, quiet)
    assert workload.prepare(N, quiet) == prepared
    log = [(entry["key"], entry["value"]) for entry in Payloads(prepared.payloads).entries(0, N)]
    events = [json.loads(value) for _, value in log]
    assert [event["id"] for event in events] == prepared.ids().tolist()
    assert any(None in event.values() for event in events)
    assert any(len(event) < 40 for event in events)
    sink = MemorySink()
    settings = JobSettings(home=tmp_path, recovery=False, metrics_port=0, registry=workload.settings.registry_uri)
    job = replace(dlrm.pipeline("in", "out"), record=Record())
    run(job, settings, registry=CollectorRegistry(), source=MemorySource([log], rows=16), sink=sink)
    assert sink.values("in.dead") == []
    values = sink.values("out")
    checked = workload.check(prepared, values, ordered=True)
    assert (checked.wrong.any(), checked.why) == (False, "")
    assert sorted(checked.ids.tolist()) == prepared.ids().tolist()
    assert len({round(json.loads(value)["score"], 4) for value in values}) > 32
    other = values[4].replace(str(events[4]["id"]).encode(), str(events[5]["id"]).encode())
    assert workload.check(prepared, [other], ordered=True).wrong.tolist() == [True]
    recorded = read(tmp_path / "record" / "dlrm").table
    assert recorded["c1"].to_list() == [event.get("c1") for event in events]
    assert recorded["i1"].to_list() == [event["i1"] for event in events]


def test_a_hashed_input_takes_a_field_of_text_or_integers() -> None:
    schema = Schema("Word", 1, {"id": Integer(), "kind": Kind(("a", "b")), "text": Text(), "price": Number()})
    job = Pipeline(
        name="words",
        events=Topic("words", schema=schema, id="id"),
        features=[Fields("id", "kind", "text", "price")],
        model=Model("words"),
        drift=Drift("drift"),
        sinks=[Decisions("scores", encode=Scores())],
    )
    fits(job, ModelSpec("words", tuple(Input(name, "hashed", buckets=9) for name in ("text", "kind", "id"))), 1, ())
    for name in ("price", "unknown"):
        with pytest.raises(InputsDifferError, match="it has inputs that are not features of pipeline words") as caught:
            fits(job, ModelSpec("words", (Input(name, "hashed", buckets=9),)), 1, ())
        assert f"  > {name} hashed" in "\n".join(caught.value.__notes__)
