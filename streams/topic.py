"""A topic of events, as a pipeline describes it."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from features.schema import Integer, Kind, Schema, Text, Time
from features.spec import seconds
from streams.avro import Avro, avro_decoder
from streams.decode import APPENDED, BROKEN, CODES, Ahead, Decoder, json_decoder, with_append_time
from streams.poison import CODE as POISON
from streams.poison import Aside, letters_of, setting_aside
from streams.replays import naming_originals
from streams.schema_registry import SchemaRegistry
from streams.secret import hash_secrets, keyed, seal_of, without_secrets
from streams.settings import JobSettings

Order = Literal["arrival", "event"]


@dataclass(frozen=True)
class Topic:
    """Events on a Kafka topic.

    topic: its name. time: the field with the event's time; if not given, the time is when the broker appended the message, in a
    column `_time`. key: the field with the entity that the messages are keyed by, if they are by one (`other_keys`: where it is
    null, the first of these that is not). id: the field with the event's own id. order:
    "arrival" (each shard sees each partition in its own order) or "event" (a shard sees rows by time, then by `ties`,
    as soon as every partition with a backlog has passed that time; at most `held_rows` of a group wait in a shard).
    max_bytes: the largest message that is decoded. ahead: how far an event's time may be ahead of our clock when it is polled;
    what is further is a dead letter, as it would end windows and drift's days for all others. format: Avro(...), or JSON if not
    given. decoder: from raw batches to rows and dead letters, for a format of one's own.

    Raises ValueError for fields that the schema does not have.
    """

    topic: str
    schema: Schema
    id: str
    time: str = APPENDED
    key: str | None = None
    ties: tuple[str, ...] = ()
    other_keys: tuple[str, ...] = ()
    order: Order = "arrival"
    held_rows: int = 1_000_000
    max_bytes: int = 1_000_000
    ahead: str = "1d"
    format: Avro | None = None
    decoder: Decoder | None = None

    def __post_init__(self) -> None:
        seconds(self.ahead)
        times = [self.time] if self.time != APPENDED else []
        roles = {"time": times, "key": self.keys, "id": [self.id], "ties": self.ties}
        for role, names in roles.items():
            for name in names:
                if name not in self.schema.fields:
                    raise ValueError(f"topic {self.topic}: {role}: no field {name} in schema {self.schema.name}")
        for name in times:
            if not isinstance(self.schema.fields[name], Time) or self.schema.fields[name].optional:
                raise ValueError(f"topic {self.topic}: time: expected {name} to be a Time that every event has")
        for name in (*self.keys[:1], self.id):
            if not isinstance(self.schema.fields[name], Text | Integer):
                raise ValueError(f"topic {self.topic}: expected {name} to be a Text or an Integer")
        for name in self.ties:
            if name in self.schema.secrets or not isinstance(self.schema.fields[name], Integer | Kind):
                raise ValueError(f"topic {self.topic}: ties: expected {name} to be an Integer or a Kind that is not secret")

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields with the messages' key, the first of which that is not null is it."""
        return (*(() if self.key is None else (self.key,)), *self.other_keys)

    @property
    def columns(self) -> pa.Schema:
        """The columns of a decoded event."""
        columns = self.schema.arrow()
        return columns.append(pa.field(APPENDED, Time.arrow)) if self.time == APPENDED else columns

    @property
    def dead(self) -> str:
        """Where messages go that cannot be decoded."""
        return f"{self.topic}.dead"

    @property
    def codes(self) -> tuple[str, ...]:
        """What its dead letters may be counted by. Which codes a decoder of one's own has is not known."""
        if self.decoder is not None:
            return (POISON,)
        return (*(BROKEN if self.format else ("not_json",)), *CODES, POISON)

    def decode(self, step: str, settings: JobSettings, whole: bool = False, aside: Aside | None = None) -> Decoder:
        """The topic's decoder, whose errors name `step`. settings: where the schema registry is, if the format needs one.
        whole: the rows keep the messages themselves, as `_value`. aside: messages that become dead letters unseen. Raises
        ValueError if there is no registry's address, or no key for its secret fields."""
        decoder = self.decoder or self._by_format(step, settings, whole)
        made = self._dressed(decoder, settings, reasons=self.decoder is None)
        if not aside:
            return made
        return setting_aside(
            made, lambda seen: self._dressed(letters_of(seen, decoder, step, self.topic), settings, reasons=True), aside
        )

    def _dressed(self, decoder: Decoder, settings: JobSettings, reasons: bool) -> Decoder:
        """The decoder with what every one of the topic does beside decoding. reasons: whether its reasons quote no message."""
        if self.schema.secrets:
            hashed, seal = keyed(self.schema, settings, self.topic), seal_of(settings)
            decoder = without_secrets(decoder, self.schema, self.topic, hashed, seal, reasons=reasons)
        return naming_originals(with_append_time(decoder) if self.time == APPENDED else decoder)

    def hashed(self, events: pa.Table, settings: JobSettings) -> pa.Table:
        """Past events as the decoder would give them: with hashes in place of what is secret. Raises ValueError if there is no
        key."""
        return hash_secrets(events, self.schema, keyed(self.schema, settings, self.topic)) if self.schema.secrets else events

    def _by_format(self, step: str, settings: JobSettings, whole: bool) -> Decoder:
        if self.format is None:
            return json_decoder(self.schema, **self._told(step, whole))
        address = self.format.registry or settings.schema_registry.get_secret_value()
        if not address:
            raise ValueError(
                f"topic {self.topic}: expected the address of a schema registry for Avro, got none: "
                "set HEADRACE_SCHEMA_REGISTRY"
            )
        find = SchemaRegistry(address, settings.schema_registry_login.get_secret_value()).find
        return avro_decoder(self.schema, find, **self._told(step, whole))

    def _told(self, step: str, whole: bool) -> dict[str, Any]:
        """What a decoder is told, whatever the format."""
        ahead = None if self.time == APPENDED else Ahead(self.time, seconds(self.ahead) * 1_000_000)
        return {"max_bytes": self.max_bytes, "step": step, "topic": self.topic, "whole": whole, "ahead": ahead}
