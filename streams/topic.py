"""A topic of events, as a pipeline describes it."""

from dataclasses import dataclass
from typing import Literal

from features.schema import Integer, Kind, Schema, Text, Time
from streams.decode import Decoder, json_decoder

Order = Literal["arrival", "event"]


@dataclass(frozen=True)
class Topic:
    """Events on a Kafka topic.

    topic: its name. time: the field with the event's time. key: the field with the entity that the messages are keyed
    by (`other_keys`: where it is null, the first of these that is not). id: the field with the event's own id. order:
    "arrival" (each shard sees each partition in its own order) or "event" (a shard sees rows by time, then by `ties`,
    as soon as every partition with a backlog has passed that time; at most `held_rows` of a group wait in a shard).
    max_bytes: the largest message that is decoded. decoder: from raw batches to rows and dead letters; JSON by the
    schema if not given.

    Raises ValueError for fields that the schema does not have.
    """

    topic: str
    schema: Schema
    time: str
    key: str
    id: str
    ties: tuple[str, ...] = ()
    other_keys: tuple[str, ...] = ()
    order: Order = "arrival"
    held_rows: int = 1_000_000
    max_bytes: int = 1_000_000
    decoder: Decoder | None = None

    def __post_init__(self) -> None:
        roles = {"time": [self.time], "key": [self.key, *self.other_keys], "id": [self.id], "ties": self.ties}
        for role, names in roles.items():
            for name in names:
                if name not in self.schema.fields:
                    raise ValueError(f"topic {self.topic}: {role}: no field {name} in schema {self.schema.name}")
        if not isinstance(self.schema.fields[self.time], Time) or self.schema.fields[self.time].optional:
            raise ValueError(f"topic {self.topic}: time: expected {self.time} to be a Time that every event has")
        for name in (self.key, self.id):
            if not isinstance(self.schema.fields[name], Text | Integer):
                raise ValueError(f"topic {self.topic}: expected {name} to be a Text or an Integer")
        for name in self.ties:
            if not isinstance(self.schema.fields[name], Integer | Kind):
                raise ValueError(f"topic {self.topic}: ties: expected {name} to be an Integer or a Kind")

    @property
    def dead(self) -> str:
        """Where messages go that cannot be decoded."""
        return f"{self.topic}.dead"

    def decode(self, step: str) -> Decoder:
        """The topic's decoder, whose errors name `step`."""
        return self.decoder or json_decoder(self.schema, max_bytes=self.max_bytes, step=step, topic=self.topic)
