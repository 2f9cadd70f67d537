"""The job that bench/faults.py kills: a number for each key, and in each decision what the job knew of its keys before it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from features.schema import Integer, Schema, Text, Time
from features.spec import Fields, Window
from models.policy import Bands
from models.registry import ModelNotFound, record, resolve
from models.spec import Input, ModelSpec
from sinks.staged import Lane, Stage
from streams.pipeline import Decisions, Model, Pipeline
from streams.settings import JobSettings
from streams.topic import Topic

NAME = "faults"
BEGINS = np.datetime64("2026-01-01T00:00:00", "us")
COUNT, SUM, ALL = "n_count_12h_by_key", "n_sum_12h_by_key", "n_count_12h_by_shared"
Tally = Schema(
    "Tally",
    version=1,
    fields={
        "key": Text(max_bytes=20),
        "shared": Text(max_bytes=20),
        "n": Integer(low=0),
        "at": Time(after="2026-01-01", before="2027-01-01"),
    },
)


def pipeline(name: str) -> Pipeline:
    """From NAME-in to NAME-out, each event decided on, with the count and the sum of its key before it, and the count of a key
    that other partitions have, too."""
    return Pipeline(
        name=name,
        events=Topic(f"{name}-in", schema=Tally, time="at", key="key", id="n"),
        features=[
            Fields("n"),
            Window("key", "n", over="12h", aggs=("count", "sum")),
            Window("shared", "n", over="12h", aggs=("count",), tile="1h"),
        ],
        model=Model(NAME),
        policy=Bands(high=0.5, otherwise="low"),
        sinks=[Decisions(f"{name}-out", features=True)],
    )


def event(key: str, shared: str, n: int, step_us: int = 1000) -> bytes:
    """Number n of a partition: so many microseconds after the one before."""
    at = str(BEGINS + np.timedelta64(n * step_us, "us"))
    return b'{"key":"%s","shared":"%s","n":%d,"at":"%sZ"}' % (key.encode(), shared.encode(), n, at.encode())


def make_model(settings: JobSettings, folder: Path) -> None:
    """A model that scores the logistic of nothing much, in the registry, if it is not there."""
    try:
        resolve(settings.registry_uri, NAME, into=Path(settings.home) / "models")
        return
    except ModelNotFound:
        pass
    inputs = tuple(Input(name, "number", ()) for name in ("n", COUNT, SUM, ALL))
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(logistic(4, 1e-7), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    ModelSpec(NAME, inputs).write(folder)
    record(settings.registry_uri, NAME, folder, params={}, metrics={})


def logistic(width: int, weight: float) -> onnx.GraphProto:
    """The logistic of the sum of what is not missing of so many inputs, times a weight."""
    numbers = {"w": np.full((width, 1), weight, np.float32), "zero": np.zeros(1, np.float32)}
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "x"], ["full"]),
        helper.make_node("MatMul", ["full", "w"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["score"]),
    ]
    return graph_of(nodes, width, numbers)


def graph_of(nodes: Sequence[onnx.NodeProto], width: int, numbers: Mapping[str, npt.NDArray[Any]]) -> onnx.GraphProto:
    """Nodes from x float32 [n, width] to score float32 [n, 1], with these numbers."""
    return helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(value, name) for name, value in numbers.items()],
    )


def commit_in_snapshot() -> None:
    """A bug for bench/faults.py to find: what is staged is committed before its epoch is durable."""
    right: Callable[[Stage], dict[str, Any]] = Stage.snapshot

    def snapshot(stage: Stage) -> dict[str, Any]:
        state = right(stage)
        stage._lane.durable()
        stage._lane.commit()
        return state | {"sequence": 0, "pending": []}

    setattr(Stage, "snapshot", snapshot)  # noqa: B010
    setattr(Lane, "committed", lambda lane, stream: 0)  # noqa: B010


PLANTS = {"commit-in-snapshot": "commit_in_snapshot"}
