"""Stored features as they were: joined as of each event's time, for training."""

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from features.memo import microseconds
from features.views import View, open_store, views


def historical(repo: Path, service: str, entities: pa.Table, time_column: str) -> pa.Table:
    """The features of a service as they were at each row's time, by Feast's own point-in-time join.

    entities: the entity columns and `time_column`, timestamp[us, UTC]. Returns float32 columns with the service's full
    names, row for row: null where there was none, or none younger than the view's ttl.

    Each view is joined by itself, with each entity and time once: Feast 0.67's file store, asked for several views at once,
    keeps one row per key of the first view and time, and drops rows that have only stale ones.
    """
    store = open_store(repo)
    columns: dict[str, pa.Array] = {}
    for view in views(store, repo, service):
        columns |= _as_of(store, view, entities, time_column)
    return pa.table(columns)


def _as_of(store: Any, view: View, entities: pa.Table, time_column: str) -> dict[str, pa.Array]:
    import pytz

    keys = [entities[column] for column in view.columns]
    keys = [key.cast(key.type.value_type) if pa.types.is_dictionary(key.type) else key for key in keys]
    asked = pl.DataFrame([pl.Series(name, key) for name, key in zip(view.join_keys, keys, strict=True)])
    asked = asked.with_columns(
        event_timestamp=pl.Series(microseconds(entities[time_column].combine_chunks())).cast(pl.Datetime("us", "UTC"))
    )
    by = [*view.join_keys, "event_timestamp"]
    names = dict(zip((f"{view.table.name}__{feature}" for feature in view.features), view.names, strict=True))
    frame = asked.drop_nulls().unique(by, maintain_order=True).to_pandas()
    if len(frame) == 0:
        return {name: pa.nulls(len(asked), pa.float32()) for name in view.names}
    # Feast converts times one by one in Python unless they are in pytz's UTC.
    frame["event_timestamp"] = frame["event_timestamp"].dt.tz_convert(pytz.UTC)
    references = [f"{view.table.name}:{feature}" for feature in view.features]
    job = store.get_historical_features(entity_df=frame, features=references, full_feature_names=True)
    known = pl.from_pandas(job.to_df()[[*by, *names]]).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
    joined = asked.join(known, on=by, how="left", maintain_order="left")
    table = joined.select(pl.col(old).cast(pl.Float32).fill_nan(None).alias(new) for old, new in names.items()).to_arrow()
    return {name: table[name].combine_chunks() for name in view.names}
