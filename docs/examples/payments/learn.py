"""How the model is made: headrace's own small network, twice: the second learns from what the first finds hard to tell."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.engine import OnnxEngine
from models.network import Fit
from models.spec import assemble
from models.tabular import train_on

OTHERS, HARD = 0.05, 0.03
PART = 50_000


def train(frame: pa.Table, folder: Path, *, seed: int, progress: Callable[[str, float], None]) -> dict[str, float]:
    """A network on all payments that were reported, a twentieth of those that were not, and the three hundredths of all that a
    first network, which learned from the former, finds likest to fraud.

    So its scores are no probabilities, which is no matter to a threshold. What the reports leave out or have wrong, it learns
    wrong.
    """
    rng = np.random.default_rng(seed)
    some = frame["label"].to_numpy() | (rng.random(frame.num_rows) < OTHERS)
    with TemporaryDirectory() as first:
        train_on(frame.filter(pa.array(some)), Path(first), name="payments", seed=seed, progress=progress, fit=Fit(epochs=6))
        likeness = scored(Path(first), frame)
    chosen = some | (likeness >= np.quantile(likeness, 1 - HARD))
    return train_on(frame.filter(pa.array(chosen)), folder, name="payments", seed=seed, progress=progress, fit=Fit(epochs=8))


def scored(folder: Path, frame: pa.Table) -> npt.NDArray[np.float64]:
    """The scores [n] that the model in a folder gives to a frame."""
    engine = OnnxEngine(folder, threads=2)
    parts = frame.combine_chunks().to_batches(max_chunksize=PART)
    scores = [engine.infer(assemble(part, engine.spec)[0]).astype(np.float64) for part in parts]
    engine.close()
    return np.concatenate(scores)
