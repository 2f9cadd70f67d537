"""Models for tests of the peers, made in a moment: enough to tell right answers from wrong ones; and flights decided by one."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from features.spec import Feature
from models.engine import OnnxEngine
from models.flights_history import history
from models.spec import Input, ModelSpec
from ops.replay import between, encode
from sinks.memory import MemorySink
from streams.flights import flights
from streams.job import Champion
from streams.pipeline import Decisions
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource


def linear(path: Path, weights: np.ndarray) -> None:
    """model.onnx with x float32 [n, K] -> x @ weights [K, M]."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    save(graph, path)


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
    save(graph, folder / "model.onnx")


def decided(
    folder: Path, features: Sequence[Feature], stored: Sequence[str] = ()
) -> tuple[list[tuple[bytes, bytes]], list[dict[str, Any]]]:
    """Keys and values of three days of October's events, and the decisions on them, with these features, of a run in memory.

    stored: the full names of stored features, where they are among them. The model is left in folder/model. Categories have
    a value that the model does not know.
    """
    events = between(history(), "at", datetime(2013, 10, 6, tzinfo=UTC), datetime(2013, 10, 9, tzinfo=UTC))
    keys, values = encode(events, flights.events.schema, [flights.events.key, *flights.events.other_keys])
    known = {name: tuple(sorted(set(events[name].drop_null().to_pylist()))[1:]) for name in ("carrier", "origin", "dest")}
    pipeline = replace(flights, features=list(features), drift=None, sinks=[Decisions("decisions", features=True)])
    names = pipeline.feature_names(stored)
    inputs = [Input(name, "category" if name in known else "number", known.get(name, ())) for name in names]
    logistic(folder / "model", ModelSpec("flights", tuple(inputs)), np.linspace(3, 300, len(names)))
    sent, sink = list(zip(keys, values, strict=True)), MemorySink()
    run(
        pipeline,
        JobSettings(home=folder, recovery=False, metrics_port=0),
        registry=CollectorRegistry(),
        source=MemorySource([sent]),
        sink=sink,
        champion=Champion(1, OnnxEngine(folder / "model"), None),
    )
    return sent, [orjson.loads(value) for value in sink.values("decisions")]


def save(graph: onnx.GraphProto, path: Path) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
