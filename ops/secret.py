"""The commands around secret fields: a key, a file's columns hashed with it, dead letters opened."""

import base64
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from features.events import unread
from sinks.sealed import place_of
from streams.lookup import SecretError
from streams.secret import hash_of, seal_of
from streams.settings import JobSettings

KEY_BYTES = 32


def make_key(file: Path) -> None:
    """Writes a random key as hexadecimal digits to a new file that only its owner reads. Raises SecretError if there is one."""
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SecretError(f"{file}: expected to make a new file, got {error.strerror}") from None
    with os.fdopen(number, "w") as opened:
        opened.write(secrets.token_hex(KEY_BYTES) + "\n")


def hash_columns(file: Path, columns: Sequence[str], out: Path, settings: JobSettings) -> int:
    """Writes a Parquet or CSV file again with some columns hashed as a decoder does; returns its rows. Raises SecretError.

    Whole numbers are hashed as their digits; columns of a CSV file are taken as text, as they stand.
    """
    text = file.suffix == ".csv"
    hashed = hash_of(settings, f"column {columns[0]} of {file}")
    try:
        options = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True)
        table = csv.read_csv(file, convert_options=options) if text else pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise SecretError(f"{file}: expected a {'CSV' if text else 'Parquet'} file, got {unread(error)}") from None
    for name in columns:
        if name not in table.column_names:
            raise SecretError(f"{file}: expected a column {name}, got {', '.join(table.column_names)}")
        column = table[name]
        if not (pa.types.is_integer(column.type) or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise SecretError(f"{file}: column {name}: expected texts or whole numbers, got {column.type}")
        chunks = [hashed(chunk.cast(pa.string())) for chunk in column.chunks]
        table = table.set_column(table.column_names.index(name), name, pa.chunked_array(chunks, pa.string()))
    table = table.replace_schema_metadata()
    csv.write_csv(table, out) if text else pq.write_table(table, out)
    return int(table.num_rows)


def open_letter(letter: Mapping[str, Any], settings: JobSettings) -> dict[str, Any]:
    """A dead letter with its key and value decrypted; one that is not encrypted as it is. Raises SecretError, SealError."""
    if not letter.get("encrypted"):
        return dict(letter)
    seal = seal_of(settings)
    if seal is None:
        raise SecretError(
            "a dead letter is encrypted, and there is no key to open it: set HEADRACE_DEAD_LETTER_KEY to file:PATH"
        )
    opened = dict(letter) | {"encrypted": False}
    for what in ("key", "value"):
        if (sealed := letter[f"{what}_base64"]) is not None:
            place = place_of(letter["topic"], letter["partition"], letter["offset"], what)
            opened[f"{what}_base64"] = base64.b64encode(seal.open(base64.b64decode(sealed), place)).decode()
    return opened
