"""Models for tests of the peers, made in a moment: enough to tell right answers from wrong ones."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.spec import ModelSpec


def linear(path: Path, weights: np.ndarray) -> None:
    """model.onnx with x float32 [n, K] -> x @ weights [K, M]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    _save(graph, path)


def logistic(folder: Path, spec: ModelSpec, scales: np.ndarray) -> None:
    """model.json and a model.onnx that scores sigmoid(sum of sin(x / scale)), and sin(1) for what is missing: every input
    moves the score, and the scores lie in all bands."""
    width = len(spec.inputs)
    numbers = {"scale": scales.astype(np.float32), "none": np.float32([1.0]), "axis": np.array([1], np.int64)}
    nodes = [
        helper.make_node("Div", ["x", "scale"], ["scaled"]),
        helper.make_node("IsNaN", ["scaled"], ["missing"]),
        helper.make_node("Where", ["missing", "none", "scaled"], ["full"]),
        helper.make_node("Sin", ["full"], ["waves"]),
        helper.make_node("ReduceSum", ["waves", "axis"], ["sum"], keepdims=1),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    spec.write(folder)
    _save(graph, folder / "model.onnx")


def _save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
