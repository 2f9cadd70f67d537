"""One decision, explained: what the record has of it, as it was served, and its event, as its topic has it: `headrace inspect`.

Nothing is computed again, and what the record does not hold is said not to be recorded.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from confluent_kafka.admin import AdminClient

from sinks.records import FILE, Told, explained, read
from sinks.segments import LOG, SEALED, RecordError, Segment, chains, in_order
from streams.decode import APPENDED, Decoded
from streams.door import NoAnswerError, topics_at
from streams.log import KafkaLog
from streams.pipeline import Pipeline
from streams.reader import SourceError
from streams.record import chosen
from streams.schema_registry import RegistryError
from streams.settings import JobSettings
from streams.topic import Topic

ANSWER_SECONDS = 5.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DIGITS = len(str(2**63 - 1))
TIMES = {
    "event_time": "as the event says",
    "appended_at": "the time stamp of its message",
    "polled_at": "",
    "decided_at": "",
    "delivered_at": "",
}
"""When each step took it. The record has neither when the job polled it nor when the sink was sure of the decision."""
UNSEEN = {
    "gone": "not in the topic",
    "other": "another one is at its position",
    "undecodable": "cannot be decoded",
    "unread": "not read",
}


class NotAnIdError(ValueError):
    """What was given is no decision_id; the message says what was expected."""


@dataclass(frozen=True)
class Place:
    """What a decision_id says: the pipeline, and where the event is that it decided on."""

    pipeline: str
    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.prefix}{self.partition}/{self.offset}"

    @property
    def prefix(self) -> str:
        """What all ids of the pipeline begin with."""
        return f"{self.pipeline}/{self.topic}/"

    @classmethod
    def of(cls, decision_id: str) -> "Place":
        """Takes an id apart. Raises NotAnIdError."""
        parts = decision_id.split("/")
        if len(parts) == 4 and all(parts) and all(map(_is_whole, parts[2:])):
            place = cls(parts[0], parts[1], int(parts[2]), int(parts[3]))
            if str(place) == decision_id and place.partition < 2**31 and place.offset < 2**63:
                return place
        raise NotAnIdError(
            f"expected a decision_id, PIPELINE/TOPIC/PARTITION/OFFSET as in flights/flight-events/0/70000, got {decision_id!r}"
        )


def _is_whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= DIGITS


@dataclass(frozen=True)
class Reach:
    """How far a record goes: when its first and its last decision were made, the days of its first and its last sealed file
    (empty: none is sealed), how many files before the first are gone, and of one partition the lowest and highest offset (None:
    it has none of it)."""

    oldest: datetime
    newest: datetime
    days: tuple[str, ...]
    gone: int
    offsets: tuple[int, int] | None

    @classmethod
    def of(cls, folder: Path, prefix: str, partition: int) -> "Reach":
        """Reads a record, of whose files only the rows at the ends are kept, of decisions whose ids begin so."""
        at, offset = pl.col("decided_at"), pl.when(pl.col("partition") == partition).then(pl.col("offset"))
        ends = (at == at.min()) | (at == at.max()) | (offset == offset.min()) | (offset == offset.max())
        rows = read(folder, lambda every: every.filter(pl.col("decision_id").str.starts_with(prefix)).filter(ends)).table
        decided: Any = rows["decided_at"]
        offsets: Any = rows.filter(pl.col("partition") == partition)["offset"]
        days, gone = set[str](), 0
        for chain in chains(folder):
            sealed = [Segment.of(path) for path in in_order(chain, SEALED)]
            logs = [Segment.of(path) for path in in_order(chain, LOG)]
            days |= {segment.day for segment in sealed}
            gone += min(segment.number for segment in (*sealed, *logs)) - 1
        between = (int(offsets.min()), int(offsets.max())) if len(offsets) else None
        return cls(decided.min(), decided.max(), (min(days), max(days)) if days else (), gone, between)


@dataclass(frozen=True)
class Event:
    """The event of a decision. state: it is there; gone: the topic has it no more; other: another event is at its position;
    undecodable; or unread. said: why, or what else there is to say. fields: as decoded, with hashes of what is secret.
    appended_at: the time stamp of its message."""

    state: Literal["there", "gone", "other", "undecodable", "unread"]
    said: str = ""
    fields: Mapping[str, Any] | None = None
    appended_at: datetime | None = None


def recorded(place: Place, folder: Path) -> dict[str, Any]:
    """What the record says of a decision, and of itself. Raises RecordError; where it has no such decision that says how far it
    goes."""
    try:
        chains(folder)
    except RecordError:
        raise RecordError(
            f"pipeline {place.pipeline} has no record in {folder}: record=Record() in the pipeline makes one (docs/record.md); "
            "--record or --home names another place"
        ) from None
    records = read(folder, lambda rows: rows.filter(pl.col("decision_id") == str(place)))
    if records.table.is_empty():
        raise RecordError(absent(place, folder, records.told))
    found = dict(explained(records, str(place)))
    told = records.by_file[records.table[FILE][0]]
    itself = {
        "folder": str(folder),
        "share": told.share,
        "age_by": told.age_by,
        "counts": records.told.counts,
        "repeats": records.repeats,
    }
    single = {name for name, kind in records.table.schema.items() if kind == pl.Float32 or kind.is_nested()}
    found["score"] = shortest(found["score"])
    found["features"] = [
        one | {"value": shortest(one["value"]) if feature.column in single else one["value"], "age": shortest(one["age"])}
        for feature, one in zip(told.features, found["features"], strict=True)
    ]
    return {**found, "pipeline": place.pipeline, "topic": place.topic, "record": itself}


def absent(place: Place, folder: Path, told: Told) -> str:
    """Why a record may not have a decision: how far it goes, and which are left out."""
    if told.prefix != place.prefix:
        return f"the record in {folder} is of {told.prefix}..., expected one of {place.prefix}...: --record names another"
    far = Reach.of(folder, place.prefix, place.partition)
    parts = f", a share of {told.share:g} of them" if told.share < 1 else ""
    days = f"in sealed files of {' to '.join(dict.fromkeys(far.days))}" if far.days else "none of them sealed yet"
    files = "1 file" if far.gone == 1 else f"{far.gone:,} files"
    gone = f"; before those it has lost {files}" if far.gone else ""
    first, last = far.offsets or (0, 0)
    has = f"offsets {first} to {last}" if far.offsets else "nothing"
    if told.share < 1 and not _in_sample(place, told):
        why = "the share leaves this one out"
    elif far.offsets is None or place.offset < first:
        why = "what is older is gone, or was never recorded"
    elif place.offset > last:
        why = "this one is not decided yet, or not on disk yet"
    else:
        why = "this event was not one to decide on, or is a dead letter (headrace dead list)"
    return (
        f"no decision {place} in the record {folder}: it has decisions made from {instant(far.oldest)} to "
        f"{instant(far.newest)}{parts}, {days}{gone}; of partition {place.partition} it has {has}: {why}"
    )


def _in_sample(place: Place, told: Told) -> bool:
    """Whether a decision belongs to the share, as the job chooses it."""
    partition, offset = np.array([place.partition], np.int32), np.array([place.offset], np.int64)
    return bool(chosen(partition, offset, told.prefix, told.share)[0])


def event_of(place: Place, row: Mapping[str, Any], pipeline: Pipeline, settings: JobSettings) -> Event:
    """The event of a recorded decision as its topic has it now. row: of the record.

    It is read by the pipeline's decoder and in no other way, since that is what hashes secrets. A broker or a key that is
    missing is said, not raised: the record has the rest.
    """
    topic = pipeline.events
    if topic.topic != place.topic:
        return Event("unread", f"pipeline {pipeline.name} reads topic {topic.topic}, expected {place.topic}")
    try:
        decode = topic.decode(f"{pipeline.name}/inspect", settings)
        raw = _message(place, settings)
    except (NoAnswerError, SourceError, ValueError) as error:  # no key for what is secret, no registry named: ValueErrors
        return Event("unread", str(error))
    if isinstance(raw, Event):
        return raw
    try:
        decoded = decode(raw)
    except RegistryError as error:
        return Event("unread", str(error))
    return _seen(decoded, row, topic)


def _message(place: Place, settings: JobSettings) -> pa.RecordBatch | Event:
    """The raw message at a place, or that it is gone. Raises NoAnswerError, SourceError, SecretError."""
    here = f"{place.topic}/{place.partition}"
    _, topics = topics_at(
        AdminClient, {"bootstrap.servers": settings.brokers, "log_level": 0, **settings.client}, ANSWER_SECONDS
    )
    there = topics.get(place.topic)
    if there is None or there.error is not None or place.partition not in there.partitions:
        return Event("gone", f"the broker at {settings.brokers} has no {here}")
    log = KafkaLog(place.topic, settings.brokers, settings.client, group="headrace-inspect")
    try:
        first, end = log.marks(place.partition)
        if place.offset < first:
            return Event("gone", f"{here} begins at offset {first:,} now, what was before is deleted")
        try:
            raw = log.read(place.partition, place.offset)
        except SourceError:
            if place.offset < end:
                raise
            return Event("gone", f"{here} ends at offset {end:,} now: the topic was made anew")
    finally:
        log.close()
    if not raw.num_rows or raw.column("_offset")[0].as_py() != place.offset:
        return Event("gone", f"{here} has no message at offset {place.offset:,}: compacted, or the topic was made anew")
    return raw.slice(0, 1)


def _seen(decoded: Decoded, row: Mapping[str, Any], topic: Topic) -> Event:
    """What became of the one message at the event's position."""
    if not decoded.rows.num_rows:
        code, reason = (decoded.dead.column(name)[0].as_py() for name in ("code", "reason"))
        again = "what was decided on was sent again for it (headrace dead replay), or the schema has changed since"
        return Event("undecodable", f"{code}, {reason}: {again}")
    fields = {name: decoded.rows.column(name)[0].as_py() for name in topic.columns.names}
    found, known = (fields[topic.id], fields[topic.time]), (row["event_id"], row["event_time"])
    if found != known:
        now, then = (f"{topic.id} {id!r} of {instant(at)}" for id, at in (found, known))
        return Event("other", f"the topic has {now}, the record {then}: the topic was made anew, or secrets have another key")
    fields.pop(APPENDED, None)
    milliseconds = decoded.rows.column("_appended_at")[0].as_py()
    at = EPOCH + timedelta(milliseconds=milliseconds) if milliseconds > 0 else None
    hashes = f"hashes: {', '.join(topic.schema.secrets)}" if topic.schema.secrets else ""
    return Event("there", hashes, fields, at)


def whole(row: Mapping[str, Any], event: Event) -> dict[str, Any]:
    """All of it as plain data; null among TIMES is what is not recorded."""
    seen = {"state": event.state, "said": event.said, "fields": event.fields}
    found: dict[str, Any] = plain({**dict.fromkeys(TIMES), **row, "appended_at": event.appended_at, "event": seen})
    return found


def plain(value: Any) -> Any:
    """The same with times as texts, and none in place of numbers that are not finite."""
    match value:
        case datetime():
            return instant(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {name: plain(one) for name, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
    return value


def shortest(value: Any) -> Any:
    """A float32, or a list of them, as the shortest decimals that are read as them, as in decisions; what is none as it is."""
    if isinstance(value, list):
        return [shortest(one) for one in value]
    return float(str(np.float32(value))) if isinstance(value, float) else value


def instant(at: datetime) -> str:
    """A time as decisions have it."""
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What `whole` says, for people."""
    event, record = found["event"], found["record"]
    yield _line("decision", f"{shown(found['decision'])}, score {shown(found['score'])}")
    yield _line("model", f"{found['model']}, version {found['model_version']}, digest {found['model_digest']}")
    yield _line("reasons", shown(found["reasons"]))
    yield _line("flags", shown(found["flags"]))
    yield _line("event_id", shown(found["event_id"]))
    yield _line("position", f"topic {found['topic']}, partition {found['partition']}, offset {found['offset']}")
    for name, what in TIMES.items():
        yield _line(name, "not recorded" if found[name] is None else ", ".join(filter(None, (found[name], what))))
    clock = "its event" if record["age_by"] == "event" else "the decision"
    yield f"features as the model was given them, with the age of stored ones at the time of {clock}:"
    width = max((len(one["name"]) for one in found["features"]), default=0)
    for one in found["features"]:
        yield f"  {one['name']:{width}}  {shown(one['value']):>12}  {one['source']}{_aged(one['age'])}"
    if event["state"] == "there":
        hashes = f" ({event['said']})" if event["said"] else ""
        yield f"fields of the event as its topic has them{hashes}:"
        width = max(map(len, event["fields"]))
        yield from (f"  {name:{width}}  {shown(value)}" for name, value in event["fields"].items())
    else:
        yield _line("event", f"{UNSEEN[event['state']]}: {shown(event['said'])}")
    share = f", of a share of {record['share']:g}" if record["share"] < 1 else ""
    of = f"; of {record['repeats'] + 1} rows of this decision the {record['counts']} counts" if record["repeats"] else ""
    yield _line("record", f"{record['folder']}{share}{of}")


def _line(what: str, said: str) -> str:
    return f"{what:15} {said}"


def _aged(age: float | None) -> str:
    if age is None:
        return ""
    span = timedelta(seconds=abs(round(age)))
    return f", {span} old" if age >= 0 else f", from {span} after the event"


def shown(value: Any) -> str:
    """A plain value on a line. A text that would do something to the terminal is quoted."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)
