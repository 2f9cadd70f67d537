"""A store's state and positions as files that anyone may read: `headrace state export`."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from features.state import State, arrays_of
from features.streaming import Cut
from ops.state_store import iso, look
from streams.holdings import whole
from streams.migrate import there
from streams.pipeline import Pipeline
from streams.settings import JobSettings
from streams.start import RecoveryError, differences, needs, store_of
from streams.store import Store

SECOND = 1_000_000
PAGES = 64
NOT_STATE = ("shards", "order", "time")
NOTE = (
    "entity_hash is a hash of the entity (features/entity_keys.py): who knows an entity finds it, nobody can read it from there"
)


def export(pipeline: Pipeline, settings: JobSettings, called: str, folder: Path, at: datetime | None = None) -> dict[str, int]:
    """Writes store.json, all that `headrace state --json` says, and ENTITY.parquet for each kind of entity: a row for each that
    is held, with its hash, its shard, when it was last updated, and its features as an event at `at` would see them.

    at: if not given, just after the last update of all. Returns the rows by entity. All of the state is in memory meanwhile.
    Raises RecoveryError for a store that cannot be read, or is of other features than the pipeline's.
    """
    store_folder = store_of(pipeline, settings)
    made = there(store_folder, called)
    told = [words for name, words in differences(made, needs(pipeline, settings)).items() if name not in NOT_STATE]
    if told:
        raise RecoveryError(f"recovery store {store_folder}: {'; '.join(told)}: export it with the pipeline it was made for")
    found = look(pipeline, settings, called)
    shards = int(made["shards"])
    with Store(store_folder) as store:
        held = whole(store, pipeline.name, pipeline.groups, shards)
    latest = max((int(seconds.max()) for state in held.states for _, seconds in entities(state) if len(seconds)), default=0)
    time = (latest + 1) * SECOND - 1 if at is None else int(at.timestamp() * SECOND)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for state in held.states:
        entity = state.group.entity
        schema = _schema(state, time)
        with pq.ParquetWriter(folder / f"{entity}.parquet", schema) as writer:
            rows[entity] = 0
            for keys, seconds in entities(state):
                writer.write_batch(_rows(state, keys, seconds, time, shards, schema))
                rows[entity] += len(keys)
    (folder / "store.json").write_text(json.dumps(found | {"features_at": iso(time), "note": NOTE}, indent=2) + "\n")
    return rows


def entities(state: State) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]]:
    """The hashes of what is held, and the seconds of their last updates, in pieces."""
    for page in range(PAGES):
        arrays = arrays_of(state.dump(page=page, pages=PAGES), ("keys", "seconds"))
        yield arrays["keys"], arrays["seconds"]


def _schema(state: State, time: int) -> pa.Schema:
    own = [("entity_hash", pa.uint64()), ("shard", pa.int32()), ("last_update", pa.timestamp("s", "UTC"))]
    told = {"features_at": str(iso(time)), "entity": state.group.entity, "note": NOTE}
    return pa.schema([*own, *((name, pa.float64()) for name in state.group.names)], told)


def _rows(
    state: State,
    keys: npt.NDArray[np.uint64],
    seconds: npt.NDArray[np.uint32],
    time: int,
    shards: int,
    schema: pa.Schema,
) -> pa.RecordBatch:
    n, group = len(keys), state.group
    asked = Cut(
        np.arange(n, dtype=np.int32),
        keys.copy(),
        np.full(n, time),
        np.ones(n, np.uint32),
        np.full((len(group.inputs), n), np.nan),
        np.empty((0, n), np.int64),
    )
    values = state.update(asked, 0)
    columns: list[Any] = [
        pa.array(keys),
        pa.array((keys % np.uint64(shards)).astype(np.int32)),
        pa.array(seconds.astype(np.int64)).cast(pa.timestamp("s", "UTC")),
    ]
    return pa.RecordBatch.from_arrays([*columns, *(pa.array(row, from_pandas=True) for row in values)], schema=schema)
