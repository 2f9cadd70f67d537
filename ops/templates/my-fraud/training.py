"""How the model is made. Any code will do that leaves model.onnx and model.json in the folder and returns its metrics."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from models.tabular import train_on


def train(frame: pa.Table, folder: Path, *, seed: int, progress: Callable[[str, float], None]) -> dict[str, float]:
    """A small network, checked on the last tenth in time.

    frame: a row for each past payment in order of time, a column for each feature as it was then (computed by the code that
    serves), `label` (what came true) and `event_time`. For a model of your own: write the network's ONNX, which takes one
    float matrix [n, K] and gives one score a row, as folder/model.onnx, and its inputs, in the order of the columns, with
    `models.spec.ModelSpec(name, inputs).write(folder)`; `models.spec.assemble` makes the very matrix that serving makes.
    A model that was trained elsewhere needs none of this: headrace models register.
    """
    return train_on(frame, folder, name="my-fraud", seed=seed, progress=progress)
