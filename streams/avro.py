"""A topic's messages in Avro, in the Confluent wire format, by the schemas of a schema registry."""

from dataclasses import dataclass

from features.schema import Schema
from kernels.avro.columns import Reader
from kernels.avro.naive import Find
from streams.decode import Ahead, Decoder, decoder_of, kernel_fields


@dataclass(frozen=True)
class Avro:
    """Messages are Avro in the Confluent wire format. registry: the schema registry's address; if not given, that of the
    settings (HEADRACE_SCHEMA_REGISTRY)."""

    registry: str = ""


def avro_decoder(
    schema: Schema,
    find: Find,
    *,
    max_bytes: int = 1_000_000,
    step: str = "decode",
    topic: str = "",
    whole: bool = False,
    ahead: Ahead | None = None,
) -> Decoder:
    """A decoder of Avro messages. It raises for no bytes whatever, only what `find` raises; a bad message costs only itself.

    find: the writer's schema with an id (streams/schema_registry.py). The other arguments are those of `json_decoder`. Codes:
    too_large, not_avro (no zero byte and id, bytes cut, changed or too many), unknown_schema, bad_schema, bad_utf8 (of a text
    that a field asks for), not_object (no record), and of the fields those of JSON. docs/formats.md says what goes with what.
    """
    reader = Reader(kernel_fields(schema), max_bytes, find)
    return decoder_of(reader, schema, step=step, topic=topic, whole=whole, ahead=ahead)
