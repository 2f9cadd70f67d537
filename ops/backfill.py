"""Past events as a training frame in a file, for whoever trains elsewhere: computed by the code that serves."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.events import read_events
from models.tabular import NOT_FEATURES, vocabulary
from ops.train import CannotTrainError, Progress, frame, prepare_stored
from streams.pipeline import Pipeline
from streams.settings import JobSettings


def backfill(pipeline: Pipeline, settings: JobSettings, events: Path | None, out: Path, progress: Progress) -> pa.Table:
    """Writes the pipeline's frame of the events (Parquet; the history of its Model where none are given) to `out`; returns it.

    Texts are dictionaries, the most frequent value first: their places are what a model gets (models/foreign.py). Raises
    CannotTrainError where there are no events.
    """
    if events is None and pipeline.model.history is None:
        raise CannotTrainError(f"pipeline {pipeline.name}: its Model has no history: name a file with --events")
    prepare_stored(pipeline, settings, progress)
    progress("reading the events", 0.0)
    history = read_events(events, pipeline.events.schema) if events else pipeline.model.history()  # type: ignore[misc]
    history = pipeline.events.hashed(history, settings)
    if history.num_rows == 0:
        raise CannotTrainError(f"pipeline {pipeline.name}: expected events, got none")
    progress("computing features", 0.0)
    rows = frame(pipeline, settings, history)
    for place, name in enumerate(rows.column_names):
        if name not in NOT_FEATURES and pa.types.is_string(rows.schema.field(name).type):
            rows = rows.set_column(place, name, _coded(rows[name]))
    progress("writing", 0.0)
    part = out.with_name(f".{out.name}.part")
    pq.write_table(rows, part)
    part.replace(out)
    return rows


def _coded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    words = pa.array(vocabulary(column), pa.string())
    return pa.DictionaryArray.from_arrays(pc.index_in(column, value_set=words).combine_chunks(), words)
