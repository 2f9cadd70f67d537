"""A model of a frame of numbers and categories: a small network, checked on the last tenth in time, and exported."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.metrics import auc, log_loss
from models.spec import Input, ModelSpec, assemble

if TYPE_CHECKING:
    from models.network import Fit

NOT_FEATURES = ("event_id", "event_time", "label")
HELD_OUT = 0.1
TOLERANCE = 1e-5


def train_on(
    frame: pa.Table,
    folder: Path,
    *,
    name: str,
    seed: int,
    progress: Callable[[str, float], None],
    fit: "Fit | None" = None,
) -> dict[str, float]:
    """Trains on a frame and writes model.onnx and model.json to `folder`; returns the metrics on the last tenth in time.

    frame: a column per feature (strings and dictionaries are categories, the rest numbers; null is missing), `label` bool and
    `event_time`. name: the model's. progress: what is being done and the share of it that is done. fit: how the network is
    fitted, if not as `models.network.Fit` has it. Metrics: `auc` and
    `log_loss` of rows held out of training, their share of true labels `held_out_positive`, and the counts `rows` and
    `held_out_rows`. One seed gives the same files. Raises ValueError for a frame that cannot be learned from.
    """
    from models.engine import OnnxEngine
    from models.network import export, train_network

    frame = _checked(frame).sort_by("event_time")
    labels = frame["label"].to_numpy()
    inputs = tuple(_input(frame, column) for column in frame.column_names if column not in NOT_FEATURES)
    spec = ModelSpec(name, inputs, seed)
    matrix, _ = assemble(frame.combine_chunks().to_batches()[0], spec)
    cut = int(len(matrix) * (1 - HELD_OUT))
    sizes = {k: len(each.vocabulary) + 1 for k, each in enumerate(inputs) if each.kind == "category"}
    network = train_network(
        matrix[:cut], labels[:cut], sizes, seed=seed, progress=lambda share: progress("training", share), fit=fit
    )  # fmt: skip

    progress("exporting", 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    export(network, folder / "model.onnx", len(inputs))
    spec.write(folder)
    engine = OnnxEngine(folder, threads=1)
    scores = engine.infer(matrix[cut:])
    engine.close()
    _same(network.scores(matrix[cut:]), scores)
    metrics = {
        "auc": auc(labels[cut:], scores),
        "log_loss": log_loss(labels[cut:], scores),
        "held_out_positive": float(labels[cut:].mean()),
        "held_out_rows": float(len(matrix) - cut),
        "rows": float(cut),
    }
    ModelSpec(spec.name, inputs, seed, metrics).write(folder)
    progress("exporting", 1.0)
    return metrics


def _checked(frame: pa.Table) -> pa.Table:
    for name in ("label", "event_time"):
        if name not in frame.column_names or frame[name].null_count:
            raise ValueError(f"training frame: expected a column {name} without nulls, got {', '.join(frame.column_names)}")
    if len(frame) < 100:
        raise ValueError(f"training frame: expected at least 100 rows, got {len(frame)}")
    positive = pc.sum(frame["label"]).as_py()
    if positive in (0, len(frame)):
        raise ValueError(f"training frame: expected labels of both kinds, got {positive} true of {len(frame)}")
    return frame


def vocabulary(column: pa.ChunkedArray) -> tuple[str, ...]:
    """The values of a column of strings, or a dictionary of them, the most frequent first."""
    words = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    counts = words.drop_null().value_counts().to_pylist()
    counts.sort(key=lambda count: (-count["counts"], count["values"]))
    return tuple(count["values"] for count in counts)


def _input(frame: pa.Table, name: str) -> Input:
    kind = frame[name].type
    if pa.types.is_string(kind) or pa.types.is_dictionary(kind):
        return Input(name, "category", vocabulary(frame[name]))
    return Input(name, "number")


def _same(expected: np.ndarray, got: np.ndarray) -> None:
    worst = float(np.abs(expected - got).max())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"model.onnx: expected PyTorch's scores to {TOLERANCE:g}, got {worst:g} apart")
