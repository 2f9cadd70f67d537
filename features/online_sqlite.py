"""Rows from SQLite, as Feast's SQLite online store writes them: a row for each cell, with the message of its value.

Feast's own read of 10 features takes some 70 µs an entity. Here SQLite joins the cells of an entity to one text, in hexadecimal
digits since a text cannot hold them otherwise, and a kernel reads the texts of all.
"""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np

from features.rows import Fetched, Read
from features.views import View
from kernels.feast_values.cpu import NONE, hexed

KEYS = 512
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

    def connection() -> sqlite3.Connection:
        if not opened:
            found = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, check_same_thread=False)
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
        seen: dict[object, int] = {}
        for start in range(0, len(keys), KEYS):
            some = keys[start : start + KEYS]
            rows = connection().execute(_select(table, len(some)), some).fetchall()
            if not rows:
                continue
            found, texts, stamps = zip(*rows, strict=True)
            place = {key: start + k for k, key in enumerate(some)}
            places = np.array([place[key] for key in found], np.int64)
            parts = [text.encode() for text in texts]
            data, ends = np.frombuffer(b"".join(parts), np.uint8), np.cumsum([len(part) for part in parts], dtype=np.int64)
            wrong = hexed(data, ends, spelt, name_ends, places, values)
            if wrong >= 0:
                raise ValueError(f"view {view.name}: expected numbers, got {texts[wrong]!r:.200}")
            times[places] = [seen[stamp] if stamp in seen else seen.setdefault(stamp, _time(stamp)) for stamp in stamps]
        return Fetched(values, times)

    return read


def _select(table: str, keys: int) -> str:
    return (
        f"SELECT entity_key, group_concat(feature_name || char(31) || hex(value) || char(30), ''), max(event_ts) FROM {table} "
        f"WHERE entity_key IN ({','.join('?' * keys)}) GROUP BY entity_key"
    )


def _time(stamp: Any) -> int:
    """A row's time in microseconds. Feast stores the UTC wall time in seconds, as if it were of the local time zone."""
    when = datetime.fromtimestamp(stamp) if isinstance(stamp, int) else datetime.fromisoformat(stamp)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return round(when.timestamp() * 1_000_000)
