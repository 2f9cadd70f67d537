"""Entities as Feast's online stores name them: its entity keys, serialized, made from Arrow columns."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from features.views import StoredFeaturesError, View

VERSION = 3
TEXT = 2
PACKED = {"INT32": (3, "<i"), "INT64": (4, "<q")}


def entity_keys(view: View) -> Callable[[Sequence[pa.Array]], list[bytes]]:
    """From the view's entity columns, without nulls, to the serialized keys of their rows, as Feast's version 3 has them.

    What it returns raises StoredFeaturesError for a column that is not of the entity's type. Raises StoredFeaturesError for
    entities that are neither text nor whole numbers.
    """
    order = sorted(range(len(view.join_keys)), key=lambda k: view.join_keys[k])
    head = struct.pack("<I", len(order))
    for k in order:
        head += _sized(TEXT, view.join_keys[k].encode())
    for column, kind in zip(view.columns, view.key_types, strict=True):
        if kind.name != "STRING" and kind.name not in PACKED:
            raise StoredFeaturesError(
                f"view {view.name}: expected an entity of text or whole numbers, got {kind.name} at {column}"
            )

    def keys(columns: Sequence[pa.Array]) -> list[bytes]:
        parts = [_parts(view, k, columns[k]) for k in order]
        if len(parts) == 1:
            return [head + part for part in parts[0]]
        return [head + b"".join(row) for row in zip(*parts, strict=True)]

    return keys


def _parts(view: View, k: int, column: pa.Array) -> list[bytes]:
    kind, name = view.key_types[k].name, view.columns[k]
    if (kind == "STRING") == pa.types.is_integer(column.type):
        expected = "text" if kind == "STRING" else "whole numbers"
        raise StoredFeaturesError(f"features/stored: view {view.name}: expected {expected}, got {column.type} at {name}")
    values: list[Any] = column.to_pylist()
    if kind == "STRING":
        return [_sized(TEXT, value.encode() if isinstance(value, str) else value) for value in values]
    number, packed = PACKED[kind]
    return [_sized(number, struct.pack(packed, value)) for value in values]


def _sized(kind: int, value: bytes) -> bytes:
    return struct.pack("<II", kind, len(value)) + value
