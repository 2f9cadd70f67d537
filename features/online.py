"""Reads rows from a Feast online store, many at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.entity_keys import VERSION
from features.rows import Fetched
from features.views import StoredFeaturesError, View
from kernels.stored_rows.cpu import NONE

READ_KEYS = 4096


class Reader:
    """Reads the views of a service from the online store of a FeatureStore; use it from one thread."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __call__(self, view: View, keys: Sequence[bytes]) -> Fetched:
        """The rows of entities, given by their serialized keys. Raises what the store raises."""
        from feast.infra.key_encoding_utils import deserialize_entity_key

        store = self._store
        values = np.full((len(view.features), len(keys)), np.nan, np.float32)
        times = np.full(len(keys), NONE, np.int64)
        for start in range(0, len(keys), READ_KEYS):
            some = [deserialize_entity_key(key, VERSION) for key in keys[start : start + READ_KEYS]]
            for row, (when, found) in enumerate(
                store.provider.online_read(store.config, view.table, some, list(view.features)), start
            ):
                numbers = [_number(found, name) for name in view.features]
                # Some stores return rows of nothing at time 0 for entities that they do not have.
                if when is not None and (when.timestamp() != 0 or not np.isnan(numbers).all()):
                    values[:, row] = numbers
                    times[row] = round(when.timestamp() * 1_000_000)
        return Fetched(values, times)


def try_once(reader: Reader, view: View, key: bytes, repo: Path) -> None:
    """Reads one row. Raises StoredFeaturesError, with what to do, where that cannot be done."""
    try:
        reader(view, [key])
    except Exception as error:
        raise StoredFeaturesError(
            f"the online store of the Feast repo {repo} cannot read {view.name} ({error}): "
            f"run feast -c {repo} apply, then feast -c {repo} materialize START END"
        ) from error


def _number(values: dict[str, Any] | None, name: str) -> float:
    """A feature of a row as Feast gives it: NaN for no row, no value, or null."""
    value = values.get(name) if values is not None else None
    kind = value.WhichOneof("val") if value is not None else None
    return float("nan") if kind is None or kind == "null_val" else float(getattr(value, kind))
