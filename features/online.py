"""Reads rows from a Feast online store, many at once.

`Read` is called with a view and serialized entity keys, returns their rows, and raises what the store raises. Feast's own
`online_read`, which every store has, makes a Python object of each cell; so Redis and SQLite are read in their own bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.entity_keys import VERSION
from features.feast_value import number
from features.online_redis import redis_reader
from features.online_sqlite import sqlite_reader
from features.precomputed import precomputed_reader
from features.rows import Fetched, Read
from features.views import StoredFeaturesError, View
from kernels.feast_values.cpu import NONE

READ_KEYS = 4096
DOWN = ("ConnectionError", "TimeoutError")


def open_reader(store: Any, service: str) -> Read:
    """A reader of a service's views from the online store of a FeatureStore, for one thread at a time."""
    read = redis_reader(store) or sqlite_reader(store) or feast_reader(store)
    return precomputed_reader(store, service, read) or read


def feast_reader(store: Any) -> Read:
    """By Feast's own online_read, which every online store has."""
    from feast.infra.key_encoding_utils import deserialize_entity_key

    def read(view: View, keys: Sequence[bytes]) -> Fetched:
        values = np.full((len(view.features), len(keys)), np.nan, np.float32)
        times = np.full(len(keys), NONE, np.int64)
        for start in range(0, len(keys), READ_KEYS):
            some = [deserialize_entity_key(key, VERSION) for key in keys[start : start + READ_KEYS]]
            rows = store.provider.online_read(store.config, view.table, some, list(view.features))
            for row, (when, found) in enumerate(rows, start):
                numbers = [number(found.get(name) if found else None) for name in view.features]
                # Some stores return rows of nothing at time 0 for entities that they do not have.
                if when is not None and (when.timestamp() != 0 or not np.isnan(numbers).all()):
                    values[:, row] = numbers
                    times[row] = round(when.timestamp() * 1_000_000)
        return Fetched(values, times)

    return read


def try_once(read: Read, view: View, key: bytes, repo: Path) -> str:
    """Reads one row; returns why not where the store is only slow or down, nothing where it is well.

    Raises StoredFeaturesError, with what to do, for whatever else a store raises.
    """
    try:
        read(view, [key])
    except Exception as error:
        if any(kind.__name__ in DOWN for kind in type(error).__mro__) or "database is locked" in str(error):
            return f"{type(error).__name__}: {error}"
        raise StoredFeaturesError(
            f"the online store of the Feast repo {repo} cannot read {view.name} ({error}): "
            f"run feast -c {repo} apply, then feast -c {repo} materialize START END"
        ) from error
    return ""
