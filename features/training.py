"""Training frames: the features of past events, computed by the very code that serves them, with what came true beside them."""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from features.derived import compile_derived, evaluate
from features.expressions import compile_expression, mask
from features.memo import Memo
from features.spec import Feature, Fields, Label, Stored, seconds
from features.state import State
from features.streaming import Cutter, event_order, groups

Historical = Callable[[pa.Table], pa.Table]


def training_frame(
    history: pa.Table,
    *,
    features: Sequence[Feature],
    decide_on: str,
    time: str,
    ties: Sequence[str],
    id: str,
    label: Label | None,
    historical: Historical | None,
) -> pa.Table:
    """One row for each event that is decided on, in event order: features, `event_id`, `event_time`, and `label` (bool).

    history: decoded events in any order. historical: from the decided events to their stored features as of each event's
    time, in the same rows (Feast's point-in-time join); None where the pipeline has none.
    """
    batch = history.combine_chunks().to_batches()[0]
    batch = batch.take(pa.array(event_order(batch, time, ties)))
    seen = Memo(batch)
    reads = mask(compile_expression(decide_on, batch.schema), seen)
    decided = batch.filter(pa.array(reads))
    numbers: dict[str, np.ndarray] = {}
    for group in groups(features):
        cut = Cutter(group, batch.schema, time)(seen, reads)
        made = np.full((len(group.names), decided.num_rows), np.nan)
        made[:, cut.row[cut.reads]] = State(group).update(cut)
        numbers |= dict(zip(group.names, made, strict=True))
    columns = {name: pa.array(values, from_pandas=True) for name, values in numbers.items()}
    stored = _stored(features, historical, decided)
    numbers |= {name: column.to_numpy(zero_copy_only=False) for name, column in stored.items()}
    columns |= evaluate(compile_derived(features, decided.schema, list(stored)), decided, numbers)
    frame: dict[str, pa.Array] = {}
    for feature in features:
        if isinstance(feature, Fields):
            frame |= {name: decided[name] for name in feature.names}
        elif isinstance(feature, Stored):
            frame |= stored
        else:
            frame |= {name: columns[name] for name in feature.names}
    frame["event_id"] = decided[id]
    frame["event_time"] = decided[time]
    if label is not None:
        frame["label"] = labels(batch, decided, label, time)
    return pa.table(frame)


def _stored(features: Sequence[Feature], historical: Historical | None, decided: pa.RecordBatch) -> dict[str, pa.Array]:
    """The stored features of the decided rows, if the pipeline has any."""
    service = next((feature.service for feature in features if isinstance(feature, Stored)), None)
    if service is None:
        return {}
    if historical is None:
        raise ValueError(f"feature service {service}: no Feast repo to read its history from")
    table = historical(pa.Table.from_batches([decided]))
    return {name: table[name].combine_chunks() for name in table.schema.names}


def labels(events: pa.RecordBatch, decided: pa.RecordBatch, label: Label, time: str) -> pa.Array:
    """The label bool of each decided row: of the first event that matches it in time, `absent` where there is none."""
    came = events.filter(pa.array(mask(compile_expression(label.where, events.schema), events)))
    value = compile_expression(label.value, came.schema)(came)
    true = pl.DataFrame({"join": pl.Series(came[label.join]), "at": pl.Series(came[time]), "value": pl.Series(value)})
    asked = pl.DataFrame({"join": pl.Series(decided[label.join]), "asked": pl.Series(decided[time])})
    joined = asked.join(
        true.sort("at", maintain_order=True).unique("join", keep="first"), on="join", how="left", maintain_order="left"
    )
    in_time = pl.col("at") <= pl.col("asked") + pl.duration(seconds=seconds(label.within))
    result = joined.select(pl.when(in_time).then(pl.col("value")).otherwise(label.absent).fill_null(label.absent))
    return result.to_series().to_arrow()
