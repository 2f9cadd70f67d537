"""Past events from a file of one's own, as the columns that the topic's decoder would give."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.schema import Field, Kind, Schema, Time


def read_events(path: Path, schema: Schema) -> pa.Table:
    """The events of a Parquet file as decoded columns, in the file's order.

    Columns that the schema does not have are left out; a field that may be absent, or that belongs to some kinds of event only,
    may have no column. Times without a zone are UTC. Raises ValueError, naming file and column, for a file that is none, a
    column that is missing, has nulls where every event has a value, or is of another type.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"events {path}: expected a Parquet file, got {unread(error)}") from None
    columns = {}
    for name, field in schema.fields.items():
        always = not field.optional and not field.on
        if name not in table.column_names:
            if always:
                raise ValueError(f"events {path}: expected a column {name}, got {', '.join(table.column_names)}")
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows, field.arrow)])
            continue
        column = table[name]
        if always and column.null_count:
            raise ValueError(f"events {path}: column {name}: expected a value in every row, got {column.null_count} nulls")
        columns[name] = _as(column, field, f"events {path}: column {name}")
    return pa.table(columns)


def unread(error: Exception) -> str:
    """Why a Parquet file could not be read, in a few words."""
    return "none" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())


def _as(column: pa.ChunkedArray, field: Field, what: str) -> pa.ChunkedArray:
    try:
        if isinstance(field, Time) and pa.types.is_timestamp(column.type) and column.type.tz is None:
            return column.cast(pa.timestamp("us")).cast(pa.int64()).cast(field.arrow)
        if not isinstance(field, Kind):
            return column.cast(field.arrow)
        words = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        wanted = type(field).__name__
        raise ValueError(f"{what}: expected {wanted}, got {column.type}: {' '.join(str(error).split())}") from None
    codes = pc.index_in(words, value_set=pa.array(field.values)).combine_chunks()
    if codes.null_count:
        other = words.filter(codes.is_null())[0].as_py()
        raise ValueError(f'{what}: expected one of {", ".join(field.values)}, got "{other}"')
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes.cast(pa.int8()), list(field.values))])
