"""A model trained elsewhere becomes a version in the registry: its ONNX file, its inputs, its reference profile."""

import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.events import unread
from features.views import open_store, views
from models.engine import ModelRefused
from models.foreign import adapt, inputs_of
from models.metrics import auc
from models.registry import Version, record
from models.spec import Input, ModelSpec
from models.tabular import NOT_FEATURES
from ops.train import write_reference
from streams.inputs import compare, features_of
from streams.pipeline import Pipeline
from streams.settings import JobSettings


@dataclass(frozen=True)
class Registered:
    """A new version, its inputs, the pipeline's features that it does not use, its AUC where the frame has labels, and of how
    many rows of the frame it gives no score."""

    version: Version
    inputs: tuple[Input, ...]
    unused: tuple[str, ...]
    metrics: dict[str, float]
    unscored: int


def register(
    name: str,
    onnx_file: Path,
    frame_file: Path,
    settings: JobSettings,
    *,
    pipeline: Pipeline | None,
    champion: bool,
    output: str = "",
) -> Registered:
    """Records the model as the next version of `name`, champion or not.

    frame_file: Parquet, a row for each event that the model may have been trained on, a column for each input in the model's
    order (categories as dictionaries, whose places are the model's codes), `event_time`, and maybe `event_id` and `label`,
    as `headrace backfill` writes it. output: the ONNX output with the score, where it cannot be told.
    Raises ModelRefused, InputsDifferError, or ValueError for a frame that no profile can be made of; then nothing is recorded.
    """
    what = f"model {name}: {onnx_file}"
    content = _bytes(onnx_file)
    frame = _frame(frame_file)
    inputs = inputs_of(frame.schema, NOT_FEATURES)
    unused: tuple[str, ...] = ()
    if pipeline is not None:
        features = features_of(pipeline, stored_names(pipeline, settings))
        unused = compare(f"model {name}", [(each.name, each.kind) for each in inputs], f"pipeline {pipeline.name}", features)
    inputs = tuple(replace(each, vocabulary=_vocabulary(frame, each)) for each in inputs)
    model = adapt(content, inputs, what, output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        ModelSpec(name, inputs).write(folder)
        scores = write_reference(frame, folder)
        unscored = int(np.isnan(scores).sum())
        if unscored == len(scores):
            raise ModelRefused(f"{what}: expected scores, got none (NaN) for all {unscored:,} rows of the reference")
        metrics = _quality(frame, scores)
        replace(ModelSpec.read(folder), metrics=metrics).write(folder)
        params = {
            "source": onnx_file.name,
            "source_sha256": hashlib.sha256(content).hexdigest(),
            "reference_sha256": hashlib.sha256(frame_file.read_bytes()).hexdigest(),
            "rows": frame.num_rows,
        }
        alias = "champion" if champion else ""
        version = record(settings.registry_uri, name, folder, params=params, metrics=metrics, alias=alias)
    return Registered(version, inputs, unused, metrics, unscored)


def stored_names(pipeline: Pipeline, settings: JobSettings) -> tuple[str, ...]:
    """The names of the pipeline's stored features, as its Feast repo has them."""
    if pipeline.service is None:
        return ()
    repo = pipeline.repo(settings)
    return tuple(name for view in views(open_store(repo), repo, pipeline.service) for name in view.names)


def _quality(frame: pa.Table, scores: npt.NDArray[np.float32]) -> dict[str, float]:
    """The AUC of the rows that have a score, if there are labels of both kinds."""
    place = frame.schema.get_field_index("label")
    if place < 0 or not pa.types.is_boolean(frame.schema.field(place).type) or frame["label"].null_count:
        return {}
    scored = ~np.isnan(scores)
    found = auc(frame["label"].to_numpy()[scored], scores[scored])
    return {} if np.isnan(found) else {"auc": found}


def _vocabulary(frame: pa.Table, each: Input) -> tuple[str, ...]:
    if each.kind != "category":
        return ()
    return tuple(frame[each.name].unify_dictionaries().chunk(0).dictionary.to_pylist())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"{path}: expected an ONNX file, got {error.strerror}") from None


def _frame(path: Path) -> pa.Table:
    """The reference frame, its time as timestamp[us, UTC]."""
    try:
        frame = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"reference {path}: expected a Parquet file, got {unread(error)}") from None
    place = frame.schema.get_field_index("event_time")
    found = "none" if place < 0 else str(frame.schema.field(place).type)
    if place < 0 or not pa.types.is_timestamp(frame.schema.field(place).type) or frame["event_time"].null_count:
        raise ValueError(f"reference {path}: expected a column event_time of timestamps without nulls, got {found}")
    if frame.num_rows == 0:
        raise ValueError(f"reference {path}: expected rows, got none")
    return frame.set_column(place, "event_time", frame["event_time"].cast(pa.timestamp("us", "UTC")))
