"""Features that Feast stores, read through a columnar cache while serving.

Feast's own online read costs some 80 µs a row in Python. So the rows of entities that were asked for are kept as arrays
(features/rows.py), and read again before they are too old; only an event whose entity is not there yet waits for the store
(features/asking.py). Two entities with the same 64-bit hash would share a row: among a million entities the chance that any
two do is one in 37 million.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.asking import Asking
from features.entity_keys import VERSION, entity_keys
from features.freshness import substitutes
from features.online import open_reader, try_once
from features.rows import Rows
from features.spec import Stored
from features.views import StoredFeaturesError, View, open_store, views
from kernels.hashing.cpu import hash_column, hash_columns

log = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
WARM_KEYS = 1024
NOTHING: Mapping[str, float] = {}
FLAGS = ("missing", "stale", "future", "unread")
REFUSED = "refused"


@dataclass(frozen=True)
class StoredRead:
    """columns: float32 [n] by full feature name, NaN where there is nothing to give. flags: int64 [n], bit k: the k-th name of
    `StoredFeatures.flags`. times: int64 [V, n], by view: when the row that is held is from, microseconds, kernels'
    stored_rows.cpu.NONE where there is none."""

    columns: dict[str, F32]
    flags: I64
    times: I64


class StoredFeatures:
    """A FeatureService, read by batches. Open it once per worker; use it from one thread; close it.

    asked: the pipeline's Stored, or a service by name. medians: of the model's training data, by feature; None: `read` is given
    what is `filled`. age: how old a row
    is, at the event's time (as in a replay) or by the clock. refresh_seconds: how long a row read from the store is good (a
    view's ttl, if that is shorter); a thread reads rows again in the second half of that time. max_entities: how many rows are
    kept per view; those asked for longest ago make room. patience: how many seconds an event waits for the store where its
    entity is not there (and a little more for each, where they are many). clock: seconds since 1970.

    names: the features, "view__feature"; by_view: the same, by view. entities: the event's columns that `read` needs.
    flags: for every view "missing:view" (no such entity, or null, or not known), "stale:view" (older than the view's ttl),
    "future:view" (the row is from later than the event: its values are kept) and "unread:view" (the store has not answered in
    time: the row is older than refresh_seconds, or, with "missing:view", not known); and "refused" (as Stored says).
    refuses: may there be such?

    Raises StoredFeaturesError, with what to do, if the repo, its registry, the service or a table of the online store is
    missing. A store that is slow or down is none of these: until it answers, what it has is not known, and flagged.
    """

    def __init__(
        self,
        repo: Path,
        asked: Stored | str,
        *,
        medians: Mapping[str, float] | None = NOTHING,
        age: Literal["event", "wall"] = "event",
        refresh_seconds: float = 600,
        clock: Callable[[], float],
        max_entities: int = 1_000_000,
        patience: float = 0.1,
    ) -> None:
        stored = Stored(asked) if isinstance(asked, str) else asked
        store = open_store(repo)
        used = views(store, repo, stored.service)
        if store.config.entity_key_serialization_version != VERSION:
            raise StoredFeaturesError(
                f"the Feast repo {repo}: expected entity_key_serialization_version: {VERSION} in feature_store.yaml, "
                f"got {store.config.entity_key_serialization_version}"
            )
        self._store = store
        self._clock = clock
        self._views = used
        self._max_entities = max_entities
        self._columns = tuple(dict.fromkeys(column for view in used for column in view.columns))
        self._keys = [entity_keys(view) for view in used]
        self._read = open_reader(store, stored.service)
        down = ""
        for view, keys in zip(used, self._keys, strict=True):
            nobody = keys([pa.array([""] if kind.name == "STRING" else [0]) for kind in view.key_types])
            down = down or try_once(self._read, view, nobody[0], repo)
        parts = [[self._columns.index(column) for column in view.columns] for view in used]
        good = [min(refresh_seconds, view.ttl_us / 1e6) if view.ttl_us else refresh_seconds for view in used]
        instead = substitutes(stored, used, medians)
        self._stored = stored
        self._fill, self._wall = instead.fill, age == "wall"
        self.refuses = any(instead.refuses)
        self._rows = Rows(used, parts, instead.refuses, [int(seconds * 1e6) for seconds in good], max_entities)
        again = open_reader(open_store(repo), stored.service)
        self._asking = Asking(self._rows, used, self._read, again, clock, patience)
        if down:
            self._asking.is_down(down)
        self.names: tuple[str, ...] = tuple(name for view in used for name in view.names)
        self.entities: frozenset[str] = frozenset(self._columns)
        self.by_view: dict[str, tuple[str, ...]] = {view.name: view.names for view in used}
        self.flags: tuple[str, ...] = (*(f"{flag}:{view.name}" for view in used for flag in FLAGS), REFUSED)

    def warm(self, seconds: float = 5.0) -> int:
        """Reads the entities that the views' offline sources know into the cache, newest first; returns how many it holds.

        It takes about `seconds` at most. What is not read by then, or cannot be listed, or not be read while the store is down,
        is read when it is first needed.
        """
        until = time.monotonic() + seconds
        for k, view in enumerate(self._views):
            if not self._asking.well:
                break
            try:
                known = _known_entities(self._store, view).slice(0, self._max_entities)
            except Exception as error:  # noqa: BLE001 - whatever an offline store raises, serving goes on
                log.warning("features/stored: the entities of view %s cannot be listed (%s): no warm start", view.name, error)
                continue
            for start in range(0, known.num_rows, WARM_KEYS):
                if time.monotonic() > until or not self._asking.well:
                    break
                try:
                    self._load(k, known.slice(start, WARM_KEYS), known.num_rows)
                except Exception as error:  # noqa: BLE001 - whatever an online store raises, serving goes on
                    self._asking.is_down(f"{type(error).__name__}: {error}")
        self._asking.refresh()
        return sum(self._rows.held(k) for k in range(len(self._views)))

    def filled(self, medians: Mapping[str, float]) -> F32:
        """float32 [F]: what is given instead with other medians. Raises StoredFeaturesError for one that is not there."""
        return substitutes(self._stored, self._views, medians).fill

    def read(
        self, batch: pa.RecordBatch, times_us: I64, hashes: dict[str, U64] | None = None, fill: F32 | None = None
    ) -> StoredRead:
        """The features of the entities in a batch, at times int64 [n], microseconds since 1970-01-01 UTC.

        hashes: of columns by name, those that are known; the others are added. fill: as of `filled`.
        Raises StoredFeaturesError for a missing entity column or one of the wrong type.
        """
        now_us = int(self._clock() * 1_000_000)
        fill = self._fill if fill is None else fill
        hashed = self._hashed(batch, {} if hashes is None else hashes)
        given = self._rows.read(hashed, fill, times_us, now_us, self._wall)
        if given.absent or (given.late and self._asking.well):
            asked = self._want(batch, hashed, given.missed)
            if given.absent and self._asking.wait(asked):
                given = self._rows.read(hashed, fill, times_us, now_us, self._wall)
        return StoredRead(dict(zip(self.names, given.values, strict=True)), given.flags, given.held)

    def counts(self) -> dict[str, dict[str, int]]:
        """What a metric may count, by view: rows held; entities asked for, and read again; rows that made room for others."""
        return {
            view.name: {
                "rows": self._rows.held(k),
                "asked": self._asking.asked[k],
                "refreshed": self._asking.refreshed[k],
                "given_up": self._rows.given_up(k),
            }
            for k, view in enumerate(self._views)
        }

    @property
    def failures(self) -> int:
        """How often the store has failed."""
        return self._asking.failed

    def close(self) -> None:
        """Ends its threads."""
        self._asking.close()

    def _hashed(self, batch: pa.RecordBatch, known: dict[str, U64]) -> U64:
        """The hashes uint64 [C, n] of the entity columns."""
        hashed = np.empty((len(self._columns), batch.num_rows), np.uint64)
        for c, name in enumerate(self._columns):
            column = known.get(name)
            if column is None:
                column = known[name] = hash_column(self._column(batch, name))
            hashed[c] = column
        return hashed

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        place = batch.schema.get_field_index(name)
        if place < 0:
            view = next(view for view in self._views if name in view.columns)
            expected = ", ".join(view.columns)
            raise StoredFeaturesError(f"features/stored: view {view.name}: expected the columns {expected}, got no {name}")
        return batch.column(place)

    def _want(self, batch: pa.RecordBatch, hashed: U64, missed: npt.NDArray[np.uint8]) -> int:
        """Asks for the entities that are missed; returns how many they are."""
        count = 0
        for k, view in enumerate(self._views):
            if missed[k].any():
                hashes, events = self._rows.missing(k, hashed, missed)
                chosen = pa.array(events)
                keys = self._keys[k]([self._column(batch, name).take(chosen) for name in view.columns])
                self._asking.want(k, hashes, keys, batch.num_rows)
                count += len(keys)
        self._asking.refresh()
        return count

    def _load(self, k: int, entities: pa.RecordBatch, room: int) -> None:
        """Reads known entities of a view, each once, on this thread."""
        columns = [entities.column(name) for name in self._views[k].columns]
        hashes, first = np.unique(hash_columns(columns), return_index=True)
        keys = self._keys[k]([column.take(pa.array(first)) for column in columns])
        now_us = int(self._clock() * 1_000_000)
        self._rows.put(k, hashes, keys, self._read(self._views[k], keys), now_us, min(room, self._max_entities))


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
    table = job.to_arrow().select([*view.join_keys, source.timestamp_field]).drop_null()
    table = table.sort_by([(source.timestamp_field, "descending")])
    keys = [table[name].combine_chunks() for name in view.join_keys]
    keys = [key.cast(pa.string()) if pa.types.is_large_string(key.type) else key for key in keys]
    return pa.RecordBatch.from_arrays(keys, list(view.columns))
