"""How the flights' model is made: a small network on the frame of past decisions."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from models.tabular import train_on


def train(frame: pa.Table, folder: Path, *, seed: int, progress: Callable[[str, float], None]) -> dict[str, float]:
    """Trains on a frame and writes model.onnx and model.json to `folder`; returns the metrics (models/tabular.py)."""
    return train_on(frame, folder, name="flights", seed=seed, progress=progress)
