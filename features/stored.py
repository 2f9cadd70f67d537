"""Stored features: Feast defines, materialises and joins; what a batch needs is read through a columnar cache.

Feast's online read costs about 80 µs a row in Python, so rows are kept in arrays beside it: the hash of the entity leads to a row
of a float32 matrix with the row's event time. What is not there is fetched in one batch through the store's own `online_read`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from kernels.hashing.cpu import hash_columns
from kernels.table import cpu as table

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

Mask = npt.NDArray[np.bool_]
ABSENT = -(2**63)


class StoredFeaturesError(RuntimeError):
    """The Feast repo cannot serve what the pipeline asks for; the message says what to run."""


@dataclass(frozen=True)
class StoredRead:
    """What was stored for n rows: columns float32 [n] by full name, null where there is no value, and flags bool [n] by name."""

    columns: dict[str, pa.Array]
    flags: dict[str, Mask]


def open_store(repo: Path, service: str) -> tuple["FeatureStore", list[tuple["FeatureView", list[str]]]]:
    """The store of a Feast repo, and the service's views with the names of their features. Raises StoredFeaturesError."""
    from feast import FeatureStore
    from feast.errors import FeatureServiceNotFoundException

    if not (repo / "feature_store.yaml").is_file():
        raise StoredFeaturesError(f"no Feast repo at {repo}: expected a feature_store.yaml there")
    store = FeatureStore(repo_path=str(repo))
    try:
        found = store.get_feature_service(service)
    except FeatureServiceNotFoundException:
        raise StoredFeaturesError(f"no feature service {service} in {repo}: feast -c {repo} apply") from None
    projections = found.feature_view_projections
    return store, [(store.get_feature_view(p.name), [feature.name for feature in p.features]) for p in projections]


class StoredFeatures:
    """A Feast service's features for the hot path. `names` are "view__feature", `entities` the event columns it needs."""

    def __init__(self, repo: Path, service: str, *, clock: Callable[[], float], refresh_seconds: float = 600.0) -> None:
        """clock: seconds now. A cached row is fetched again after refresh_seconds, or after its view's ttl if that is shorter.

        Raises StoredFeaturesError if the repo has no such service.
        """
        store, views = open_store(repo, service)
        self._views = [_View(store, view, features, clock, refresh_seconds) for view, features in views]
        self.names = tuple(name for view in self._views for name in view.names)
        self.entities = frozenset(key for view in self._views for key in view.keys)

    def read(self, batch: pa.RecordBatch, times_us: npt.NDArray[np.int64]) -> StoredRead:
        """Values for n rows at their event times int64 [n] (microseconds).

        Flags: `missing:view` (nothing stored, or no entity), `stale:view` (older than the view's ttl at the event's time: its
        values are null), `future:view` (stored later than the event: its values are there).
        """
        columns: dict[str, pa.Array] = {}
        flags: dict[str, Mask] = {}
        for view in self._views:
            values, stored_at = view.lookup(batch)
            missing = stored_at == ABSENT
            age = times_us - np.where(missing, times_us, stored_at)
            stale = age > view.ttl_us if view.ttl_us else np.zeros(len(age), np.bool_)
            if stale.any():
                values = np.where(stale, np.float32(np.nan), values)
            flags |= {f"missing:{view.name}": missing, f"stale:{view.name}": stale, f"future:{view.name}": age < 0}
            columns |= {name: pa.array(row, from_pandas=True) for name, row in zip(view.names, values, strict=True)}
        return StoredRead(columns, flags)


class _View:
    """The cache of one feature view: values float32 [f, rows], stored_at int64 [rows] (ABSENT: nothing stored)."""

    def __init__(
        self, store: "FeatureStore", view: "FeatureView", features: list[str], clock: Callable[[], float], refresh: float
    ) -> None:
        self.name: str = view.name
        self.keys: list[str] = list(view.join_keys)
        self.names = [f"{view.name}__{feature}" for feature in features]
        ttl = view.ttl.total_seconds() if view.ttl else 0.0
        self.ttl_us = int(ttl * 1e6)
        self._store, self._feast_view, self._features, self._clock = store, view, features, clock
        self._refresh = min(refresh, ttl) if ttl else refresh
        self._kinds = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        self._table = table.new_table()
        self._used = 0
        self._values = np.empty((len(features), 0), np.float32)
        self._stored_at = np.empty(0, np.int64)
        self._fetched_at = np.empty(0)

    def lookup(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Values [f, n] (NaN: none) and stored_at [n] of each row's entity."""
        hashes = hash_columns([batch[key] for key in self.keys])
        slots = np.empty(len(hashes), np.int32)
        table.find(*self._table, hashes, slots)
        wanted = slots < 0
        if self._used:
            wanted |= self._fetched_at[slots] < self._clock() - self._refresh
        wanted &= hashes != 0
        if wanted.any():
            self._fetch(batch, hashes, wanted)
            table.find(*self._table, hashes, slots)
        if not self._used:
            return np.full((len(self.names), len(hashes)), np.nan, np.float32), np.full(len(hashes), ABSENT)
        known = slots >= 0
        stored_at = np.where(known, self._stored_at[slots], ABSENT)
        return np.where(known, self._values[:, slots], np.float32(np.nan)), stored_at

    def _fetch(self, batch: pa.RecordBatch, hashes: npt.NDArray[np.uint64], wanted: Mask) -> None:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.type_map import python_values_to_proto_values

        unique, first = np.unique(hashes[wanted], return_index=True)
        rows = pa.array(np.flatnonzero(wanted)[first])
        columns = [python_values_to_proto_values(batch[key].take(rows).to_pylist(), self._kinds[key]) for key in self.keys]
        keys = [EntityKey(join_keys=self.keys, entity_values=list(values)) for values in zip(*columns, strict=True)]
        provider = self._store._get_provider()
        found = provider.online_store.online_read(self._store.config, self._feast_view, keys, self._features)
        self._table = table.grow(*self._table, self._used + len(unique))
        slots = np.empty(len(unique), np.int32)
        self._used = table.insert(*self._table, unique, slots, self._used)
        self._grow()
        self._fetched_at[slots] = self._clock()
        self._stored_at[slots] = [ABSENT if at is None else _microseconds(at) for at, _ in found]
        self._values[:, slots] = [[_number(values, feature) for _, values in found] for feature in self._features]

    def _grow(self) -> None:
        size = max(2 * len(self._stored_at), self._used)
        if len(self._stored_at) < self._used:
            more = size - len(self._stored_at)
            self._values = np.concatenate([self._values, np.full((len(self.names), more), np.nan, np.float32)], axis=1)
            self._stored_at = np.concatenate([self._stored_at, np.full(more, ABSENT)])
            self._fetched_at = np.concatenate([self._fetched_at, np.zeros(more)])


def _microseconds(at: datetime) -> int:
    from datetime import UTC

    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1e6)


def _number(values: dict[str, Any] | None, feature: str) -> float:
    if not values or feature not in values:
        return np.nan
    which = values[feature].WhichOneof("val")
    return float(getattr(values[feature], which)) if which else np.nan


def historical(repo: Path, service: str, events: pa.Table, time: str) -> pa.Table:
    """The service's features as of each event's time, by Feast's point-in-time join: n events, n rows in the same order.

    Each view is joined by itself, on its own keys: joined together, Feast leaves out the rows for which any view has nothing.
    """
    store, views = open_store(repo, service)
    made = pl.DataFrame({"row": np.arange(events.num_rows)})
    for view, features in views:
        keys = [*view.join_keys, "event_timestamp"]
        asked = pl.DataFrame(events.select([*view.join_keys, time])).rename({time: "event_timestamp"})
        names = [f"{view.name}:{feature}" for feature in features]
        job = store.get_historical_features(
            entity_df=asked.unique().drop_nulls().to_pandas(), features=names, full_feature_names=True
        )
        came = pl.from_pandas(job.to_df()).with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
        joined = asked.join(came.unique(keys), on=keys, how="left", maintain_order="left")
        made = pl.concat(
            [made, joined.select(pl.col(f"{view.name}__{f}").cast(pl.Float32) for f in features)], how="horizontal"
        )
    return made.drop("row").to_arrow()
