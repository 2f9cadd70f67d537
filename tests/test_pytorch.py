"""The PyTorch engines give the network's scores, from safetensors alone, and serve a pipeline that names them."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file
from torch import nn

from models.device import NoDevice
from models.engine import Engine, ModelRefused, OnnxEngine
from models.network import export
from models.pytorch import Torch, TorchEngine, graph_engine
from models.registry import record
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams.pipeline import Model
from streams.run import run
from streams.source import MemorySource

SPEC = ModelSpec("deep", tuple(Input(name, "number") for name in NAMES))
BUCKETS = (1, 16)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(len(NAMES), 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.where(torch.isnan(matrix), 0.0, matrix) / 300)


def network_of(folder: Path) -> nn.Module:
    network = Deep()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "deep"
    made.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Deep().eval()
    export(network, made / "model.onnx", len(NAMES))
    save_file(network.state_dict(), made / "model.safetensors")
    SPEC.write(made)
    return made


def same(engine: Engine, folder: Path) -> None:
    plain = OnnxEngine(folder)
    for rows in (0, 1, 7, 97, 1023):
        matrix = np.random.default_rng(rows).standard_normal((rows, len(NAMES))).astype(np.float32)
        out = np.full(rows, np.nan, np.float32)
        expected = plain.infer(matrix)
        np.testing.assert_allclose(engine.infer(matrix), expected, atol=1e-6)
        assert engine.infer(matrix, out) is out
        np.testing.assert_allclose(out, expected, atol=1e-6)
    plain.close()


def test_eager_scores_are_those_of_the_exported_model(folder: Path) -> None:
    engine = Torch(network_of)(folder)
    engine.warm()
    same(engine, folder)
    assert sorted(engine.profile((1, 8))) == [1, 8]
    with pytest.raises(ValueError, match=r"model deep: expected a matrix float32"):
        engine.infer(np.zeros((3, 1), np.float32))
    engine.close()


@pytest.mark.slow
def test_compiled_scores_are_those_of_the_exported_model(folder: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("NOT PROVEN: no C++ compiler (g++) for torch.compile")
    same(Torch(network_of, mode="compile")(folder), folder)


def test_captured_scores_are_those_of_the_exported_model_on_a_fake_of_a_device(folder: Path) -> None:
    for seed in range(3):
        same(graph_engine(SPEC, network_of(folder).eval(), BUCKETS, FakeCuda(seed)), folder)


def test_what_cannot_be_loaded_is_refused_with_the_reason(folder: Path) -> None:
    save_file({"other": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(ModelRefused, match=r"(?s)PyTorch cannot load it: RuntimeError: .*Missing key"):
        Torch(network_of)(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelRefused, match="PyTorch cannot load it: SafetensorError"):
        Torch(network_of)(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelRefused, match="PyTorch cannot load it: FileNotFoundError"):
        Torch(network_of)(folder)


def test_another_number_of_scores_is_an_error(folder: Path) -> None:
    engine = TorchEngine(SPEC, nn.Linear(len(NAMES), 3))
    with pytest.raises(ValueError, match=r"model deep: expected scores \[5\], got \[5, 3\]"):
        engine.infer(np.zeros((5, len(NAMES)), np.float32))


def test_memory_that_cannot_be_written_to_is_scored(folder: Path) -> None:
    """A single vector's matrix is Arrow's own."""
    matrix = np.ones((3, len(NAMES)), np.float32)
    matrix.flags.writeable = False
    assert np.isfinite(Torch(network_of)(folder).infer(matrix)).all()


def test_graphs_need_a_device(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("NOT PROVEN: there is a CUDA device")
    with pytest.raises(NoDevice, match="expected a CUDA device"):
        Torch(network_of, mode="graph")(folder)


def test_a_pipeline_decides_by_the_engine_that_it_names(folder: Path, tmp_path: Path) -> None:
    """The version's model.onnx gives other scores here, so that who decided can be told."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        export(Deep().eval(), folder / "model.onnx", len(NAMES))
    of = settings(tmp_path)
    record(of.registry_uri, "deep", folder, params={}, metrics={})
    pipeline = replace(payments(), model=Model("deep", engine=Torch(network_of)))
    sink, messages = MemorySink(), stream(40)
    registry = CollectorRegistry()
    run(pipeline, of, registry=registry, source=MemorySource([messages]), sink=sink)
    assert registry.get_sample_value("headrace_model_engine", {"pipeline": "payments", "engine": "PyTorch, cpu"}) == 1
    found = list(decisions(sink).values())
    assert len(found) == sum(b'"paid"' in value for _, value in messages)
    matrix = np.array([[each["features"][name] for name in NAMES] for each in found], np.float64).astype(np.float32)
    scores = np.array([each["score"] for each in found])
    np.testing.assert_allclose(scores, Torch(network_of)(folder).infer(matrix), atol=1e-5)
    assert np.abs(scores - OnnxEngine(folder).infer(matrix)).max() > 0.01
