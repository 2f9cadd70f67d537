"""TensorRT builds engines of our models on a machine without a GPU, says of what, and refuses what does not convert."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from bench.dense import write_model
from models import tensorrt
from models.engine import ModelRefused
from models.precision import halved, quantised
from models.registry import record
from models.spec import Input, ModelSpec, digest
from models.tensorrt import BUCKETS, CAPABILITIES, Layer, build, cached
from ops.cli import app
from streams.settings import JobSettings

try:
    LIBRARY = tensorrt.library()[1]
except tensorrt.NoTensorRT as error:
    pytest.skip(f"NOT PROVEN: {error}", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dense")
    write_model(made, "dense", "x", (24, 64, 32, 1))
    return made


def content(folder: Path) -> tuple[bytes, ModelSpec]:
    return (folder / "model.onnx").read_bytes(), ModelSpec.read(folder)


@pytest.mark.parametrize(("precision", "of"), [("fp32", "FLOAT"), ("fp16", "HALF")])
def test_an_engine_is_built_and_said_to_be_of_what_it_is(folder: Path, precision: tensorrt.Precision, of: str) -> None:
    model, spec = content(folder)
    made, plan = build(model, spec, precision=precision)
    assert len(made) == plan.size > plan.weights
    assert plan.weights == (24 * 64 + 64 + 64 * 32 + 32 + 32 + 1) * (4 if precision == "fp32" else 2)
    assert (plan.library, plan.buckets, plan.capabilities) == (LIBRARY, BUCKETS, CAPABILITIES)
    multiplied = [layer for layer in plan.layers if layer.kind == "MATRIX_MULTIPLY"]
    assert len(multiplied) == 3
    assert {layer.precision for layer in multiplied} == {of}


def test_an_engine_is_built_once_for_what_it_depends_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    whole = tensorrt.build
    monkeypatch.setattr(tensorrt, "build", lambda *given, **named: built.append(named) or whole(*given, **named))
    first = cached(folder, digest(folder), tmp_path)
    assert cached(folder, digest(folder), tmp_path) == first
    assert len(built) == 1
    assert isinstance(first[1].layers[0], Layer)
    cached(folder, "another", tmp_path)
    cached(folder, digest(folder), tmp_path, precision="fp16")
    cached(folder, digest(folder), tmp_path, device="a GPU, a driver")
    cached(folder, digest(folder), tmp_path, buckets=(1, 64))
    cached(folder, digest(folder), tmp_path, capabilities=("SM120",))
    assert len(built) == 6
    assert len(list(tmp_path.glob("*.engine"))) == 6
    assert not list(tmp_path.glob("*.timings")), "there is no device to learn them on"
    for told in tmp_path.glob("*.json"):
        told.unlink()  # killed between the two files: it is built again
    cached(folder, digest(folder), tmp_path)
    assert len(built) == 7


def of_nodes(*nodes: onnx.NodeProto, **numbers: np.ndarray) -> tuple[bytes, ModelSpec]:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    return model.SerializeToString(), ModelSpec("one", tuple(Input(name, "number") for name in "abc"))


def test_a_model_that_does_not_convert_is_refused_with_node_and_reason() -> None:
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], name="the_trees", domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0],
        nodes_nodeids=[0], nodes_featureids=[0], nodes_values=[0.0], nodes_modes=["LEAF"], nodes_truenodeids=[0],
        nodes_falsenodeids=[0], target_treeids=[0], target_nodeids=[0], target_ids=[0], target_weights=[1.0],
    )  # fmt: skip
    with pytest.raises(
        ModelRefused, match=r"model one: TensorRT cannot convert it: node the_trees \(TreeEnsembleRegressor\): .+"
    ):
        build(*of_nodes(tree))


def test_fp16_is_taken_only_where_scores_stay_what_they_were() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    halved(*of_nodes(node, w=np.full((3, 1), 0.1, np.float32)))
    with pytest.raises(ModelRefused, match=r"model one: in fp16 its scores differ by .*, expected 0.002 at most"):
        halved(*of_nodes(node, w=np.full((3, 1), 3000.0, np.float32)))


def of_codes(buckets: int) -> tuple[bytes, ModelSpec]:
    """Rows of a table by the codes of a hashed input."""
    column = helper.make_node("Gather", ["x", "first"], ["code"], axis=1)
    cast = helper.make_node("Cast", ["code"], ["place"], to=TensorProto.INT64)
    row = helper.make_node("Gather", ["table", "place"], ["y"])
    table = (np.arange(buckets) % 2).astype(np.float32)
    model, _ = of_nodes(column, cast, row, first=np.array([0]), table=table)
    return model, ModelSpec("codes", (Input("h", "hashed", buckets=buckets), Input("a", "number"), Input("b", "number")))


def test_codes_that_fp16_cannot_hold_are_refused_and_those_that_it_can_are_not() -> None:
    halved(*of_codes(1000))
    with pytest.raises(ModelRefused, match=r"model codes: in fp16 (its scores differ by 1, |it throws: )"):
        halved(*of_codes(5000))
    with pytest.raises(ModelRefused, match="model codes: in fp16 it throws: "):
        halved(*of_codes(500_000))


def test_int8_is_taken_only_where_scores_stay_what_they_were(folder: Path) -> None:
    known = helper.make_node("IsNaN", ["x"], ["none"]), helper.make_node("Where", ["none", "zero", "x"], ["full"])
    nodes, zero = (*known, helper.make_node("MatMul", ["full", "w"], ["y"])), np.zeros(1, np.float32)
    small = of_nodes(*nodes, zero=zero, w=np.full((3, 1), 0.1, np.float32))
    made, plan = build(*small, precision="int8")
    kinds = [layer.kind for layer in plan.layers]
    assert (kinds.count("MATRIX_MULTIPLY"), kinds.count("DEQUANTIZE")) == (1, 2)
    assert len(made) == plan.size
    with pytest.raises(ModelRefused, match=r"model one: in int8 its scores differ by .*, expected 0.01 at most"):
        quantised(*of_nodes(*nodes, zero=zero, w=np.array([[1], [-3], [5]], np.float32)))
    with pytest.raises(ModelRefused, match=r"model dense: in int8 \d+ scores are numbers that were none"):
        quantised(*content(folder))


def test_a_capability_that_nobody_knows_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"expected compute capabilities among SM120, .* got SM1"):
        build(*content(folder), capabilities=("SM80", "SM1"))


def test_without_tensorrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "MODULES", ("no_such_module",))
    with pytest.raises(tensorrt.NoTensorRT, match=r"pip install headrace\[tensorrt\]"):
        tensorrt.library()


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_the_command_builds_the_champion_and_tells(folder: Path, tmp_path: Path) -> None:
    settings = JobSettings(home=tmp_path)
    record(settings.registry_uri, "dense", folder, params={}, metrics={})
    told = CliRunner().invoke(app, ["models", "tensorrt", "dense", "--home", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "dense version 1 by tensorrt" in told.output
    assert told.output.count("matrix_multiply") == 3
    told = CliRunner().invoke(app, ["models", "tensorrt", "dense", "--home", str(tmp_path), "--json", "--precision", "fp16"])
    plan = json.loads(told.output)
    assert (plan["precision"], plan["version"], plan["buckets"]) == ("fp16", 1, list(BUCKETS))
    assert len(list((tmp_path / "models" / "engines").glob("*.engine"))) == 2
    assert CliRunner().invoke(app, ["models", "tensorrt", "dense", "--precision", "int4"]).exit_code == 2
