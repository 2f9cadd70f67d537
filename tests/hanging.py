"""A real ONNX model that goes round in a loop for as long as its input says."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.spec import Input, ModelSpec


def write_hanging(folder: Path, spec: ModelSpec) -> None:
    """The score is the sum of what is not missing of the first input, after as many rounds as its largest value."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["sum", "nothing"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n", 1]),
        ],
    )
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "nothing", "x"], ["full"]),
        helper.make_node("Gather", ["full", "first"], ["column"], axis=1),
        helper.make_node("ReduceMax", ["column"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Loop", ["rounds", "", "column"], ["score"], body=body),
    ]
    numbers = {"nothing": np.zeros(1, np.float32), "first": np.zeros(1, np.int64)}
    graph = helper.make_graph(
        nodes,
        "hanging",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", spec.columns])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    spec.write(folder)


SPEC = ModelSpec("hanging", (Input("rounds", "number"), Input("b", "number")))
FOREVER = 1e15
