"""Features that Feast stores: read through a columnar cache while serving, and joined as of their time for training.

Feast's own online read costs some 80 µs a row in Python. So what was read is kept by view as arrays (hash of the entity key →
row of a float32 matrix, with the time of the row), and only keys that are not there yet, or have been there too long, go to the
online store, all of a batch in one read. Two entities with the same 64-bit hash would share a row: among a million entities
the chance that any two do is one in 37 million.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from features.memo import microseconds
from kernels.hashing.cpu import combined, hash_column
from kernels.table.cpu import find_due, grow, insert, new_table, take

log = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Rows = list[tuple[Any, dict[str, Any] | None]]
Fetch = Callable[[list[pa.Array]], Rows]

READ_KEYS = 4096
WARM_KEYS = 1024
METRICS_FILES = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOL")


class StoredFeaturesError(ValueError):
    """The Feast repo cannot give what was asked of it; the message says what to do."""


@dataclass(frozen=True)
class StoredRead:
    """columns: float32 [n] by full feature name, NaN where null, missing or stale. flags: int64 [n], bit k: the k-th name of
    `StoredFeatures.flags`."""

    columns: dict[str, F32]
    flags: I64


@dataclass(frozen=True)
class View:
    """A feature view as a service asks for it.

    columns: the event's columns with the entity, in the order of `join_keys`, Feast's names for them; key_types: their Feast
    types. ttl_us: how old a value may be, in microseconds; 0: any age. table: Feast's own object.
    """

    name: str
    columns: tuple[str, ...]
    join_keys: tuple[str, ...]
    key_types: tuple[Any, ...]
    features: tuple[str, ...]
    ttl_us: int
    table: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The full names, as Feast has them."""
        return tuple(f"{self.name}__{feature}" for feature in self.features)


def load_feast() -> Any:
    """The module feast, imported only where it is needed, since that takes seconds, and without what it does to metrics.

    Feast sets an environment variable that makes prometheus_client keep its values in files: in this process, if it is not yet
    imported, and in every process started from here.
    """
    import prometheus_client.values  # noqa: F401  how values are kept is settled here

    before = {name: os.environ.get(name) for name in METRICS_FILES}
    import feast

    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
    return feast


def open_store(repo: Path) -> Any:
    """The FeatureStore of a Feast repo. Raises StoredFeaturesError if there is none, or it was never applied."""
    if not (repo / "feature_store.yaml").is_file():
        raise StoredFeaturesError(f"no Feast repo at {repo}: expected a file feature_store.yaml there")
    store = load_feast().FeatureStore(repo_path=str(repo))
    registry = store.config.registry
    if registry.registry_type == "file" and "://" not in registry.path and not (repo / registry.path).is_file():
        raise StoredFeaturesError(f"the Feast repo {repo} has no registry at {repo / registry.path}: run feast -c {repo} apply")
    return store


def views(store: Any, repo: Path, service: str) -> list[View]:
    """The views of a FeatureService. Raises StoredFeaturesError if there is no such service, or a feature is no number."""
    from feast.errors import FeastObjectNotFoundException
    from feast.feature_view import FeatureView

    try:
        projections = store.get_feature_service(service).feature_view_projections
        found = [(projection, store.get_feature_view(projection.name)) for projection in projections]
    except FeastObjectNotFoundException as error:
        known = ", ".join(sorted(known.name for known in store.list_feature_services())) or "none"
        raise StoredFeaturesError(
            f"no feature service {service} in the Feast repo {repo} (it has {known}; {error}): run feast -c {repo} apply"
        ) from error
    for projection, table in found:
        name = projection.name_to_use()
        if not isinstance(table, FeatureView) or not table.entities or table.entities == ["__dummy"]:
            raise StoredFeaturesError(f"feature service {service}: expected views of stored rows with entities, got {name}")
        for feature in projection.features:
            if feature.dtype.to_value_type().name not in NUMBERS:
                raise StoredFeaturesError(
                    f"feature service {service}: expected numbers, got {feature.dtype} at {name}__{feature.name}"
                )
    return [_view(projection, table) for projection, table in found]


def _view(projection: Any, table: Any) -> View:
    return View(
        name=projection.name_to_use(),
        columns=tuple(projection.join_key_map.get(column.name, column.name) for column in table.entity_columns),
        join_keys=tuple(column.name for column in table.entity_columns),
        key_types=tuple(column.dtype.to_value_type() for column in table.entity_columns),
        features=tuple(feature.name for feature in projection.features),
        ttl_us=int(table.ttl.total_seconds() * 1_000_000) if table.ttl else 0,
        table=table,
    )


class StoredFeatures:
    """A FeatureService, read by batches. Open it once per worker; use it from one thread.

    refresh_seconds: how long a row read from the store is used at most (a view's ttl, if that is shorter); each is read again
    at a moment of its own in the second half of that time, so that they do not all come due together. max_entities: how
    many rows are kept per view; with more the cache begins anew. clock: seconds, never going back.

    names: the features, "view__feature". entities: the event's columns that `read` needs. flags: for every view
    "missing:view" (no such entity, or null), "stale:view" (older than the view's ttl: its values are null) and "future:view"
    (the row is from later than the event: its values are kept).

    Raises StoredFeaturesError, with what to do, if the repo, its registry, the service or a table of the online store is
    missing.
    """

    def __init__(
        self,
        repo: Path,
        service: str,
        *,
        refresh_seconds: float = 600,
        clock: Callable[[], float],
        max_entities: int = 1_000_000,
    ) -> None:
        store = open_store(repo)
        used = views(store, repo, service)
        self._store = store
        self._clock = clock
        self._caches = [_Cache(view, _reader(store, repo, view), refresh_seconds, max_entities) for view in used]
        self.names: tuple[str, ...] = tuple(name for view in used for name in view.names)
        self.entities: frozenset[str] = frozenset(column for view in used for column in view.columns)
        self.flags: tuple[str, ...] = tuple(f"{flag}:{view.name}" for view in used for flag in ("missing", "stale", "future"))

    def warm(self, seconds: float = 5.0) -> int:
        """Reads the entities that the views' offline sources know into the cache, newest first; returns how many it holds.

        It takes about `seconds` at most. What is not read by then, or cannot be listed, is read when it is first needed.
        """
        until = time.monotonic() + seconds
        now = self._clock()
        for cache in self._caches:
            try:
                known = _known_entities(self._store, cache.view)
            except Exception as error:  # noqa: BLE001 - whatever an offline store raises, serving goes on
                log.warning(
                    "features/stored: the entities of view %s cannot be listed (%s): no warm start", cache.view.name, error
                )
                continue
            cache.warm(known, until, now)
        return sum(cache.entities for cache in self._caches)

    def read(self, batch: pa.RecordBatch, times_us: I64, hashes: dict[str, U64] | None = None) -> StoredRead:
        """The features of the entities in a batch, at times int64 [n], microseconds since 1970-01-01 UTC.

        hashes: of columns by name, those that are known; the others are added.
        Raises StoredFeaturesError for a missing entity column or one of the wrong type, and what the store raises.
        """
        now = self._clock()
        hashes = {} if hashes is None else hashes
        read = StoredRead({}, np.zeros(batch.num_rows, np.int64))
        for place, cache in enumerate(self._caches):
            cache.read(batch, times_us, now, read, 3 * place, hashes)
        return read


class _Cache:
    """The rows of one view. Row 0 is that of no entity: all missing, never due."""

    def __init__(self, view: View, fetch: Fetch, refresh_seconds: float, max_entities: int) -> None:
        self.view = view
        self._fetch = fetch
        self._refresh = min(refresh_seconds, view.ttl_us / 1e6) if view.ttl_us else refresh_seconds
        self._max_entities = max_entities
        self._clear()

    def _clear(self) -> None:
        self._keys, self._slots = new_table()
        self._used = 1
        self._values = np.full((len(self.view.features), 8), np.nan, np.float32)
        self._times = np.zeros(8, np.int64)
        self._present = np.zeros(8, np.bool_)
        self._due = np.full(8, np.inf)

    @property
    def entities(self) -> int:
        """How many entities it holds."""
        return self._used - 1

    def warm(self, known: pa.RecordBatch, until: float, now: float) -> None:
        """Reads entities, a column for each of the view's, while there is time and room."""
        known = known.slice(0, self._max_entities // 2)
        for start in range(0, known.num_rows, WARM_KEYS):
            if time.monotonic() > until:
                return
            self._rows(known.slice(start, WARM_KEYS), now, {})

    def read(
        self, batch: pa.RecordBatch, times_us: I64, now: float, into: StoredRead, first_bit: int, hashes: dict[str, U64]
    ) -> None:
        """Adds this view's columns and flags."""
        view = self.view
        rows = self._rows(batch, now, hashes)
        values = np.empty((len(view.features), len(rows)), np.float32)
        take(rows, times_us, self._values, self._times, self._present, view.ttl_us, first_bit, values, into.flags)
        into.columns.update(zip(view.names, values, strict=True))

    def _rows(self, batch: pa.RecordBatch, now: float, known: dict[str, U64]) -> npt.NDArray[np.int32]:
        """The row of each event's entity, read from the store where it is not there or due."""
        for name, column in zip(self.view.columns, self._entity(batch), strict=True):
            if name not in known:
                known[name] = hash_column(column)
        hashes = known[self.view.columns[0]]
        for name in self.view.columns[1:]:
            hashes = combined(hashes, known[name])
        rows = np.empty(len(hashes), np.int32)
        count = find_due(self._keys, self._slots, hashes, self._due, now, rows)
        if count:
            wanted = (rows < 0) | (self._due[rows] <= now)
            if self._used + count > self._max_entities:
                self._clear()
                wanted = hashes != 0
            self._load(batch, hashes, wanted, now)
            find_due(self._keys, self._slots, hashes, self._due, now, rows)
        return rows

    def _entity(self, batch: pa.RecordBatch) -> list[pa.Array]:
        try:
            return [batch.column(name) for name in self.view.columns]
        except KeyError as error:
            raise StoredFeaturesError(
                f"features/stored: view {self.view.name}: expected the columns {', '.join(self.view.columns)}, got no {error}"
            ) from error

    def _load(self, batch: pa.RecordBatch, hashes: U64, wanted: Mask, now: float) -> None:
        """Reads the entities of the wanted rows from the store, each once."""
        unique, positions = np.unique(hashes[wanted], return_index=True)
        chosen = pa.array(np.flatnonzero(wanted)[positions])
        read = self._fetch([column.take(chosen) for column in self._entity(batch)])
        self._make_room(self._used + len(unique))
        rows = np.empty(len(unique), np.int32)
        self._used = insert(self._keys, self._slots, unique, rows, self._used)
        self._values[:, rows] = [[_number(values, name) for _, values in read] for name in self.view.features]
        self._times[rows] = [0 if when is None else round(when.timestamp() * 1_000_000) for when, _ in read]
        self._present[rows] = [values is not None for _, values in read]
        self._due[rows] = now + self._refresh * (0.5 + 0.5 * (unique >> np.uint64(11)).astype(np.float64) / 2.0**53)

    def _make_room(self, entries: int) -> None:
        self._keys, self._slots = grow(self._keys, self._slots, entries)
        if entries > len(self._times):
            extra = max(entries, 2 * len(self._times)) - len(self._times)
            self._values = np.pad(self._values, ((0, 0), (0, extra)), constant_values=np.nan)
            self._times = np.pad(self._times, (0, extra))
            self._present = np.pad(self._present, (0, extra))
            self._due = np.pad(self._due, (0, extra))


def _number(values: dict[str, Any] | None, name: str) -> float:
    """A feature of a row as Feast gives it: NaN for no row, no value, or null."""
    value = values.get(name) if values is not None else None
    kind = value.WhichOneof("val") if value is not None else None
    return float("nan") if kind is None or kind == "null_val" else float(getattr(value, kind))


def _reader(store: Any, repo: Path, view: View) -> Fetch:
    """Reads entities, given as one column per join key, from the online store. Tries it once before it returns."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    def fetch(columns: list[pa.Array]) -> Rows:
        protos = []
        for name, column, kind in zip(view.columns, columns, view.key_types, strict=True):
            if (kind.name == "STRING") == pa.types.is_integer(column.type):
                expected = "text" if kind.name == "STRING" else "whole numbers"
                raise StoredFeaturesError(
                    f"features/stored: view {view.name}: expected {expected}, got {column.type} at {name}"
                )
            protos.append(python_values_to_proto_values(column.to_pylist(), kind))
        keys = [EntityKey(join_keys=view.join_keys, entity_values=values) for values in zip(*protos, strict=True)]
        read: Rows = []
        for start in range(0, len(keys), READ_KEYS):
            some = keys[start : start + READ_KEYS]
            read += store.provider.online_read(store.config, view.table, some, list(view.features))
        return read

    try:
        fetch([pa.array([""] if kind.name == "STRING" else [0]) for kind in view.key_types])
    except Exception as error:
        raise StoredFeaturesError(
            f"the online store of the Feast repo {repo} cannot read {view.name} ({error}): "
            f"run feast -c {repo} apply, then feast -c {repo} materialize START END"
        ) from error
    return fetch


def _known_entities(store: Any, view: View) -> pa.RecordBatch:
    """The entities in a view's offline source, newest first, in columns named as the event's."""
    source = view.table.batch_source
    job = store.provider.offline_store.pull_latest_from_table_or_query(
        config=store.config,
        data_source=source,
        join_key_columns=list(view.join_keys),
        feature_name_columns=[],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=datetime(1970, 1, 1, tzinfo=UTC),
        end_date=datetime.now(UTC),
    )
    table = job.to_arrow().sort_by([(source.timestamp_field, "descending")])
    keys = [table[name].combine_chunks() for name in view.join_keys]
    keys = [key.cast(pa.string()) if pa.types.is_large_string(key.type) else key for key in keys]
    return pa.RecordBatch.from_arrays(keys, list(view.columns))


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
