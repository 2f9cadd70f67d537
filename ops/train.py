"""Training: past events to a frame, a model, its reference profile, and a version in the registry."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.history import historical
from features.training import training_frame
from models.engine import Load, OnnxEngine
from models.reference import build_reference
from models.registry import Version, record
from models.spec import assemble
from ops.feast_repo import prepare
from streams.pipeline import Pipeline
from streams.settings import JobSettings

Progress = Callable[[str, float], None]
SCORED = 50_000
"""Rows that are scored at once, so that memory is bounded."""


class CannotTrainError(RuntimeError):
    """The pipeline says nothing of how its model is made."""


@dataclass(frozen=True)
class Trained:
    """A new version in the registry, and what it reached on the rows held out."""

    version: Version
    metrics: dict[str, float]


def prepare_stored(pipeline: Pipeline, settings: JobSettings, progress: Progress) -> None:
    """The Feast repo of a pipeline that writes its sources, made ready as of the time that training ends; others are let be."""
    if pipeline.service is None or pipeline.sources is None or settings.feast_repo is not None:
        return
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0) + timedelta(days=1)
    end = (pipeline.model.trained_until or midnight).astimezone(UTC)
    prepare(pipeline.repo(settings), lambda doing: progress(doing, 0.0), pipeline.sources, f"{end:%Y-%m-%dT%H:%M:%SZ}")


def frame(pipeline: Pipeline, settings: JobSettings, history: pa.Table) -> pa.Table:
    """The pipeline's training frame of a history (features/training.py)."""
    service, time = pipeline.service, pipeline.events.time
    return training_frame(
        history,
        features=pipeline.features,
        decide_on=pipeline.decide_on,
        time=time,
        ties=pipeline.events.ties,
        id=pipeline.events.id,
        label=pipeline.label,
        historical=(lambda decided: historical(pipeline.repo(settings), service, decided, time)) if service else None,
    )


def train(pipeline: Pipeline, settings: JobSettings, *, seed: int, until: datetime | None, progress: Progress) -> Trained:
    """Trains on the decided events before `until` and records the model as champion. Raises CannotTrainError."""
    if pipeline.model.train is None or pipeline.model.history is None or pipeline.label is None:
        raise CannotTrainError(
            f"pipeline {pipeline.name}: its Model needs train and history, and the pipeline a label, to be trained"
        )
    prepare_stored(pipeline, settings, progress)
    progress("reading the history", 0.0)
    history = pipeline.events.hashed(pipeline.model.history(), settings)
    progress("computing features", 0.0)
    rows = frame(pipeline, settings, history)
    if until is not None:
        rows = rows.filter(pc.less(rows["event_time"], pa.scalar(until.astimezone(UTC), rows["event_time"].type)))
    if rows.num_rows == 0:
        raise CannotTrainError(
            f"pipeline {pipeline.name}: no decided event{f' before {until:%Y-%m-%d}' if until else ''} to train on"
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        metrics = pipeline.model.train(rows, folder, seed=seed, progress=progress)
        progress("profiling the reference", 0.0)
        write_reference(rows, folder, pipeline.model.engine or OnnxEngine)
        params = {
            "pipeline": pipeline.name,
            "seed": seed,
            "rows": rows.num_rows,
            "until": until.isoformat() if until else "end",
        }
        progress("recording", 0.0)
        version = record(settings.registry_uri, pipeline.model.name, folder, params=params, metrics=metrics)
    return Trained(version, metrics)


def write_reference(rows: pa.Table, folder: Path, load: Load = OnnxEngine) -> npt.NDArray[np.float32]:
    """Scores the rows with the new model and writes beside it what they and their scores look like; the medians go with it. Of
    one with a vector, or several scores, only the medians: its drift cannot be measured.

    load: the engine that serves it. Returns the scores [n], or [n, k].
    """
    engine = load(folder, threads=2)
    matrix, _ = assemble(rows.combine_chunks().to_batches()[0], engine.spec)
    inputs = engine.spec.inputs
    at = np.cumsum([0, *(each.width for each in inputs)])
    times = rows["event_time"].combine_chunks().cast(pa.int64()).to_numpy()
    scores = np.concatenate([engine.infer(matrix[k : k + SCORED]) for k in range(0, len(matrix), SCORED)])
    engine.close()
    numbers = {each.name: matrix[:, k] for k, each in zip(at, inputs, strict=False) if each.kind == "number"}
    medians = {name: float(np.nanmedian(values)) for name, values in numbers.items() if not np.isnan(values).all()}
    replace(engine.spec, medians=medians).write(folder)
    if engine.spec.outputs == 1 and len(inputs) == engine.spec.columns:
        categorical = [each.kind == "category" for each in inputs]
        build_reference(engine.spec.names, categorical, matrix, scores, times).save(folder)
    return scores
