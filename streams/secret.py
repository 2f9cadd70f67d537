"""Topics with secret fields: their keys, and the decoder that lets no secret through.

What is secret is replaced in the decoder, the first thing that sees a message, so that nothing behind it has anything to hide:
not the state, the record, a page, or an error.
"""

import re

import pyarrow as pa

from features.schema import Schema
from kernels.keyed_hash.cpu import KeyedHash
from sinks.sealed import Seal, place_of
from streams.decode import DEAD, Decoded, Decoder
from streams.lookup import SecretError, looked_up
from streams.settings import JobSettings

HEX = re.compile(r"[0-9a-fA-F]*")
HASH_BYTES, SEAL_BYTES = 16, 32


def key_of(said: str, setting: str, least: int, most: int) -> bytes:
    """A key of `least` to `most` bytes, kept as hexadecimal digits. Raises SecretError."""
    text = looked_up(said, setting)
    size = f"{2 * least}" if least == most else f"{2 * least} to {2 * most}"
    if not HEX.fullmatch(text) or len(text) % 2 or not 2 * least <= len(text) <= 2 * most:
        raise SecretError(
            f"setting {setting}: expected {size} hexadecimal digits, got {len(text)} characters (not shown): "
            "headrace secret key makes one"
        )
    return bytes.fromhex(text)


def hash_of(settings: JobSettings, needed_by: str) -> KeyedHash:
    """The keyed hash of the settings. needed_by: for the error. Raises SecretError where there is no key."""
    said = settings.secret_key.get_secret_value()
    if not said:
        raise SecretError(
            f"{needed_by} is secret, and there is no key to hash it with: set HEADRACE_SECRET_KEY "
            "to file:PATH or env:NAME of 32 to 128 hexadecimal digits; headrace secret key FILE makes one"
        )
    return KeyedHash(key_of(said, "secret_key", HASH_BYTES, 64))


def seal_of(settings: JobSettings) -> Seal | None:
    """What encrypts dead letters; None where there is no key to do it with. Raises SecretError for what is no key."""
    said = settings.dead_letter_key.get_secret_value()
    return Seal(key_of(said, "dead_letter_key", SEAL_BYTES, SEAL_BYTES)) if said else None


def keyed(schema: Schema, settings: JobSettings, topic: str) -> KeyedHash:
    """The hash of a topic's secret fields, of which there is one at least. Raises SecretError."""
    return hash_of(settings, f"topic {topic}: field {schema.secrets[0]} of schema {schema.name}")


def hash_secrets(columns: pa.Table, schema: Schema, hashed: KeyedHash) -> pa.Table:
    """Past events, as they were sent, with hashes in place of what is secret."""
    for name in schema.secrets:
        place, column = columns.schema.get_field_index(name), columns[name]
        chunks = [hashed(chunk.cast(pa.string())) for chunk in column.chunks]
        columns = columns.set_column(place, name, pa.chunked_array(chunks, pa.string()))
    return columns


def without_secrets(
    decoder: Decoder, schema: Schema, topic: str, hashed: KeyedHash, seal: Seal | None, reasons: bool
) -> Decoder:
    """A decoder whose rows have hashes in place of the secret fields and of the messages' keys.

    Its dead letters have key and value sealed, or not at all where there is no seal, and no digest, which tells what a short
    message is. reasons: whether the decoder's reasons are known to quote no message; else they are left out, too.
    """
    places = [list(schema.fields).index(name) for name in schema.secrets]
    hashed(pa.array(["", None]))

    def decode(batch: pa.RecordBatch) -> Decoded:
        decoded = decoder(batch)
        columns, names = list(decoded.rows.columns), decoded.rows.schema.names
        for place in (*places, names.index("_key")):
            columns[place] = hashed(columns[place])
        dead = _closed(decoded.dead, topic, seal, reasons) if decoded.dead.num_rows else decoded.dead
        return Decoded(pa.RecordBatch.from_arrays(columns, names), dead)

    return decode


def _closed(dead: pa.RecordBatch, topic: str, seal: Seal | None, reasons: bool) -> pa.RecordBatch:
    places = list(zip(dead.column("_partition").to_pylist(), dead.column("_offset").to_pylist(), strict=True))

    def sealed(name: str, what: str) -> pa.Array:
        plain = dead.column(name).to_pylist()
        return pa.array(
            [
                None if one is None or seal is None else seal.close(one, place_of(topic, *place, what))
                for one, place in zip(plain, places, strict=True)
            ],
            pa.binary(),
        )

    columns = {name: dead.column(name) for name in DEAD.names}
    if not reasons:
        said = [f"{topic}/{partition}@{offset} cannot be decoded" for partition, offset in places]
        columns["reason"] = pa.array(said, pa.string())
    columns |= {
        "value": sealed("value", "value"),
        "_key": sealed("_key", "key"),
        "sha256": pa.nulls(dead.num_rows, pa.string()),
        "closed": pa.array([True] * dead.num_rows),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=DEAD)
