"""Rows from SQLite, as Feast's SQLite online store writes them: a row for each cell, with the message of its value.

Feast's own read of 10 features takes some 70 µs an entity. Here SQLite joins the cells of an entity to a text of bytes, and the
texts of all, in the order in which they are asked for, to one, which a kernel reads. With a row for each entity this thread
would ask for the interpreter's lock at each row, which whoever holds it gives up after 5 ms.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np

from features.rows import Fetched, Read
from features.views import View
from kernels.feast_values.cpu import NONE, cells

KEYS = 512
SIZES = (1, 8, 64, KEYS)
CACHE_KIB = 65_536
MAPPED = 1 << 30


def sqlite_reader(store: Any) -> Read | None:
    """A reader with a connection of its own, if the FeatureStore's online store is SQLite; None for any other.

    It raises sqlite3.Error, and ValueError for a cell that is no number.
    """
    if getattr(store.config.online_store, "type", "") != "sqlite":
        return None
    from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

    config = store.config
    path = SqliteOnlineStore._get_db_path(config)
    opened: list[sqlite3.Connection] = []
    nothing, none = np.frombuffer(b"", np.uint8), np.empty(0, np.int64)
    cells(nothing, nothing, none, 0, np.empty((0, 0), np.float32), np.empty((0, 2), np.int64))  # compiled now

    def connection() -> sqlite3.Connection:
        if not opened:
            found = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)
            found.text_factory = bytes
            found.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            found.execute(f"PRAGMA mmap_size = {MAPPED}")
            opened.append(found)
        return opened[0]

    def read(view: View, keys: Sequence[bytes]) -> Fetched:
        table = _quote_id(_table_id(config.project, view.table, config.registry.enable_online_feature_view_versioning))
        names = [name.encode() for name in view.features]
        spelt, name_ends = np.frombuffer(b"".join(names), np.uint8), np.cumsum([len(name) for name in names], dtype=np.int64)
        values = np.full((len(names), len(keys)), np.nan, np.float32)
        times = np.full(len(keys), NONE, np.int64)
        seen: dict[bytes, int] = {}
        for start in range(0, len(keys), KEYS):
            some = keys[start : start + KEYS]
            asked = next(size for size in SIZES if size >= len(some))
            ((data,),) = connection().execute(_select(table, asked), [*some, *[None] * (asked - len(some))]).fetchall()
            stamps = np.empty((asked, 2), np.int64)
            wrong = cells(np.frombuffer(data, np.uint8), spelt, name_ends, start, values, stamps)
            if wrong >= 0:
                raise ValueError(f"view {view.name}: expected numbers, got {data[wrong:]!r:.200}")
            for row, (a, b) in enumerate(stamps.tolist(), start):
                if a >= 0:
                    stamp = data[a:b]
                    times[row] = seen[stamp] if stamp in seen else seen.setdefault(stamp, _time(stamp))
        return Fetched(values, times)

    return read


def _select(table: str, keys: int) -> str:
    cells = "group_concat(feature_name || x'1f' || value, x'1e') || x'1d' || max(event_ts)"
    asked = ",".join(["(?)"] * keys)
    text = f"coalesce((SELECT {cells} FROM {table} WHERE entity_key = key), '')"
    return f"WITH asked(key) AS (VALUES {asked}) SELECT group_concat({text}, x'1c') FROM asked"


def _time(stamp: bytes) -> int:
    """A row's time in microseconds. Feast stores the UTC wall time in seconds, as if it were of the local time zone."""
    text = stamp.decode()
    when = datetime.fromtimestamp(int(text)) if text.lstrip("-").isdigit() else datetime.fromisoformat(text)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return round(when.timestamp() * 1_000_000)
