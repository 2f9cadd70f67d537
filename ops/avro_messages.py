"""Events written as Avro in the Confluent wire format: the schema that a pipeline's Schema is written by, and its messages."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from features.schema import Field, Integer, Kind, Number, Schema, Text, Time, Vector

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
STEP = 200_000
TIMEOUT = 10.0


def avro_schema(schema: Schema) -> dict[str, Any]:
    """The writer's schema, as JSON's objects: a record with the fields in their order, nested as their paths say.

    A kind is an enum (a string where its values are no names), a time a long with timestamp-micros, what is optional or on some
    kinds only a union with null. Raises ValueError for a Vector, and for a name that Avro does not allow.
    """
    return _record(schema, schema.name, _tree(schema))


def encode_avro(table: pa.Table, schema: Schema, keys: Sequence[str], id: int) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of each row: the first of the columns `keys` that is not null, and the row's fields as `avro_schema`
    says, behind a zero byte and the id that a registry has that schema by.

    Raises ValueError, naming row and field, for a null where the schema wants a value, a number that is not finite, and a row
    without a key.
    """
    found_keys: list[bytes] = []
    values: list[bytes] = []
    for start in range(0, table.num_rows, STEP):
        part = table.slice(start, STEP).combine_chunks()
        kinds = _kinds(part, schema)
        leaves = [_leaf(part, schema, name, kinds, start) for name in _leaves(_tree(schema))]
        head = pa.scalar(b"\0" + id.to_bytes(4), pa.large_binary())
        values += pc.binary_join_element_wise(head, *leaves, pa.scalar(b"", pa.large_binary())).to_pylist()
        key = pl.DataFrame(part.select(keys)).select(pl.coalesce(pl.col(name).cast(pl.String) for name in keys)).to_series()
        _refuse(schema, " or ".join(keys), key.is_null().to_numpy(), "a key, got null", start)
        found_keys += key.cast(pl.Binary).to_list()
    return found_keys, values


def register(address: str, subject: str, schema: Mapping[str, Any], login: str = "") -> int:
    """Adds a schema to a registry under a subject, if it is not there yet, and returns its id. login: USER:PASSWORD.

    Raises RuntimeError with the registry's address where it refuses or does not answer.
    """
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    if login:
        headers["Authorization"] = "Basic " + b64encode(login.encode()).decode()
    url = f"{address.rstrip('/')}/subjects/{quote(subject, safe='')}/versions"
    request = urllib.request.Request(url, json.dumps({"schema": json.dumps(schema)}).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return int(json.loads(answer.read())["id"])
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(300).decode(errors="replace")
        raise RuntimeError(f"the schema registry at {address} refuses subject {subject}: {error.code} {said}") from None
    except (OSError, ValueError, KeyError) as error:
        raise RuntimeError(f"the schema registry at {address}: expected an id for subject {subject}, got {error}") from None


def _tree(schema: Schema) -> dict[str, Any]:
    """The names of the fields as they are nested in a message."""
    tree: dict[str, Any] = {}
    for name, field in schema.fields.items():
        *above, last = (field.path or name).split(".")
        node = tree
        for step in above:
            node = node.setdefault(step, {})
        node[last] = name
    return tree


def _leaves(tree: Mapping[str, Any]) -> Iterator[str]:
    for below in tree.values():
        yield from [below] if isinstance(below, str) else _leaves(below)


def _record(schema: Schema, name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    for each in (name, *tree):
        if not NAME.match(each):
            raise ValueError(f"schema {schema.name}: expected a name of Avro (letters, digits and _), got {each!r}")
    return {
        "type": "record",
        "name": name,
        "fields": [
            {
                "name": each,
                "type": _record(schema, f"{name}_{each}", below) if isinstance(below, dict) else _type(schema, below),
            }
            for each, below in tree.items()
        ],
    }


def _type(schema: Schema, name: str) -> Any:
    field = schema.fields[name]
    made: Any
    match field:
        case Kind():
            made = (
                {"type": "enum", "name": f"{schema.name}_{name}", "symbols": list(field.values)} if _enum(field) else "string"
            )
        case Time():
            made = {"type": "long", "logicalType": "timestamp-micros"}
        case Integer():
            made = "long"
        case Number():
            made = "double"
        case Text():
            made = "string"
        case Vector():
            raise ValueError(f"schema {schema.name}: {name}: expected a field that can be written as Avro, got a Vector")
    return ["null", made] if _nullable(schema, field) else made


def _enum(field: Kind) -> bool:
    return all(NAME.match(value) for value in field.values)


def _nullable(schema: Schema, field: Field) -> bool:
    return field.optional or bool(field.on and set(field.on) != set(schema.kinds))


def _kinds(part: pa.Table, schema: Schema) -> npt.NDArray[np.object_] | None:
    return None if schema.kind is None else part[schema.kind].cast(pa.string()).to_numpy()


def _leaf(part: pa.Table, schema: Schema, name: str, kinds: npt.NDArray[np.object_] | None, first: int) -> pa.Array:
    """A field's bytes in each message. first: the number of the part's first row, for errors."""
    field, column = schema.fields[name], part[name].combine_chunks()
    belongs = np.isin(kinds, field.on) if field.on and kinds is not None else np.ones(len(column), np.bool_)
    absent = column.is_null().to_numpy(zero_copy_only=False)
    if not field.optional:
        _refuse(schema, name, absent & belongs, f"{type(field).__name__}, got null", first)
    there = belongs & ~absent
    body = _bytes(field, column, there)
    if isinstance(field, Number):
        _refuse(
            schema, name, there & ~np.isfinite(pc.fill_null(column.cast(pa.float64()), 0).to_numpy()), "a finite number", first
        )
    if not _nullable(schema, field):
        return body
    two, none = (pa.scalar(branch, pa.large_binary()) for branch in (b"\x02", b"\x00"))
    return pc.if_else(pa.array(there), pc.binary_join_element_wise(two, body, pa.scalar(b"", pa.large_binary())), none)


def _bytes(field: Field, column: pa.Array, there: npt.NDArray[np.bool_]) -> pa.Array:
    """The values in Avro's binary form, anything where there is none."""
    match field:
        case Kind() if _enum(field):
            codes = pc.index_in(column.cast(pa.string()), pa.array(field.values))
            return varints(codes.to_numpy(zero_copy_only=False).astype(np.int64))
        case Text() | Kind():
            text = pc.fill_null(column.cast(pa.string()), "").cast(pa.large_binary())
            sizes = varints(pc.binary_length(text).to_numpy())
            return pc.binary_join_element_wise(sizes, text, pa.scalar(b"", pa.large_binary()))
        case Number():
            return _fixed(pc.fill_null(column.cast(pa.float64()), 0).to_numpy().astype("<f8"))
        case _:
            whole = (
                column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()) if isinstance(field, Time) else column.cast(pa.int64())
            )
            return varints(pc.fill_null(whole, 0).to_numpy())


def varints(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """int64 [n] as Avro's zigzag numbers of variable length: large_binary [n]."""
    left = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    most = max(1, -(-int(left.max()).bit_length() // 7)) if len(left) else 1
    digits, used = np.empty((len(left), most), np.uint8), np.empty((len(left), most), np.bool_)
    for k in range(most):
        used[:, k] = (left > 0) if k else True
        digits[:, k] = left & np.uint64(127)
        left = left >> np.uint64(7)
        digits[:, k] |= np.where(left > 0, 128, 0).astype(np.uint8)
    return _large(digits[used], np.cumsum(used.sum(axis=1)))


def _fixed(numbers: npt.NDArray[Any]) -> pa.Array:
    return _large(numbers, np.arange(1, len(numbers) + 1) * numbers.itemsize)


def _large(data: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    return pa.Array.from_buffers(pa.large_binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _refuse(schema: Schema, name: str, wrong: npt.NDArray[np.bool_], expected: str, first: int) -> None:
    if wrong.any():
        raise ValueError(f"{schema.name}: row {first + int(np.argmax(wrong))}: {name}: expected {expected}")
