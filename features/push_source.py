"""A push source of a Feast repo: its views, and what writes values to their online store."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.pushing import Values
from features.views import StoredFeaturesError, open_store

KEYS = {"STRING": "text", "INT32": "whole numbers", "INT64": "whole numbers"}
NUMBERS = ("FLOAT", "DOUBLE")


def push_writer(repo: Path, source: str, features: Sequence[str], entity: pa.DataType) -> Callable[[Values], None]:
    """What writes values [f, n] of these features to the views of a push source; it raises what the store raises.

    entity: the type of the event's column. Together the views have these features, each a Float32 or Float64, and one entity of
    one column. Raises StoredFeaturesError, naming what is expected, where that is not so.
    """
    store = open_store(repo)
    views = _views(store, source)
    here = f"push source {source} of the Feast repo {repo}"
    if not views:
        raise StoredFeaturesError(f"{here}: expected a feature view with it as its source, got none: run feast -c {repo} apply")
    theirs = list(dict.fromkeys(field.name for view in views for field in view.features))
    if set(theirs) != set(features):
        raise StoredFeaturesError(f"{here}: its views have {', '.join(theirs)}, the pipeline pushes {', '.join(features)}")
    for view in views:
        if len(view.entity_columns) != 1:
            names = ", ".join(column.name for column in view.entity_columns) or "none"
            raise StoredFeaturesError(f"{here}: view {view.name}: expected an entity of one column, got {names}")
        kind = view.entity_columns[0].dtype.to_value_type().name
        text = pa.types.is_dictionary(entity) or pa.types.is_string(entity)
        if kind not in KEYS or (kind == "STRING") != text:
            raise StoredFeaturesError(f"{here}: view {view.name}: expected an entity of {entity}, got {kind}")
        for field in view.features:
            if field.dtype.to_value_type().name not in NUMBERS:
                raise StoredFeaturesError(
                    f"{here}: expected Float32 or Float64, got {field.dtype} at {view.name}__{field.name}"
                )
    provider = store.provider

    def write(values: Values) -> None:
        for view in views:
            provider.ingest_df(view, _frame(view, features, values))

    return write


def _views(store: Any, source: str) -> list[Any]:
    from feast.data_source import PushSource

    views = [*store.list_feature_views(), *store.list_stream_feature_views()]
    return [view for view in views if isinstance(view.stream_source, PushSource) and view.stream_source.name == source]


def _frame(view: Any, features: Sequence[str], values: Values) -> Any:
    """The values as a view's sources have them."""
    batch = view.batch_source
    times = pa.array(values.times, pa.timestamp("us", "UTC"))
    columns = {view.entity_columns[0].name: values.entity, batch.timestamp_field: times}
    if batch.created_timestamp_column:
        columns[batch.created_timestamp_column] = times
    for field in view.features:
        columns[field.name] = pa.array(values.values[list(features).index(field.name)], from_pandas=True)
    return pa.table(columns).to_pandas()
