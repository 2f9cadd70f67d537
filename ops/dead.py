"""The dead letters of a pipeline's topic: read, told, written to a file that people correct, and found again in the topic."""

import base64
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ops.broker import MAX_MESSAGE
from ops.secret import open_letter
from ops.topics import require
from streams.pipeline import Pipeline
from streams.replays import replayed
from streams.settings import JobSettings

Place = tuple[int, int]
"""Partition and offset of the message that a letter is about."""
ANSWER_SECONDS = 30.0
CLOCKS_APART_MS = 60_000


class DeadLetterError(ValueError):
    """Dead letters cannot be read or sent again; the message says which and what was expected."""


@dataclass(frozen=True)
class Letter:
    """The last letter about a message, as it is in the topic; written_at: when, in ms; times: how many there are about it.

    failed: the offsets of its replays that have come back as letters.
    """

    letter: Mapping[str, Any]
    written_at: int
    times: int = 1
    failed: frozenset[int] = frozenset()

    @property
    def place(self) -> Place:
        """The position that its decision will be named by."""
        return self.letter["partition"], self.letter["offset"]


@dataclass(frozen=True)
class Wanted:
    """Which letters: those with one of the codes, about one of the partitions (none named: all), written within a time."""

    codes: Sequence[str] = ()
    partitions: Sequence[int] = ()
    start: datetime | None = None
    end: datetime | None = None

    def __call__(self, letter: Letter) -> bool:
        """Whether a letter is one of them."""
        at = datetime.fromtimestamp(letter.written_at / 1000, UTC)
        return (
            (not self.codes or letter.letter["code"] in self.codes)
            and (not self.partitions or letter.letter["partition"] in self.partitions)
            and (self.start is None or at >= self.start)
            and (self.end is None or at < self.end)
        )


def letters(
    pipeline: Pipeline, settings: JobSettings, wanted: Callable[[Letter], bool], called: str, bodies: bool = True
) -> list[Letter]:
    """The letters that are wanted, the last about each message, by position. called: the pipeline on the command line. bodies:
    with keys and values. Raises BrokerMissingError, TopicMissingError, DeadLetterError.
    """
    topic = pipeline.events
    require(settings.brokers, [topic.topic, topic.dead], settings.client, called)
    found: dict[Place, Letter] = {}
    for messages in read(topic.dead, settings, {}):
        for message in messages:
            letter = _parsed(message)
            if letter.get("topic") != topic.topic:
                continue
            place = letter["partition"], letter["offset"]
            before = found.get(place)
            failed = frozenset({*(before.failed if before else ()), *({letter["replay"]} if letter.get("replay") else ())})
            made = Letter(letter, message.timestamp()[1], before.times + 1 if before else 1, failed)
            found[place] = made if bodies and wanted(made) else replace(made, letter=_without_body(letter))
    return [found[place] for place in sorted(found) if wanted(found[place])]


def sent_again(pipeline: Pipeline, settings: JobSettings, chosen: Sequence[Letter]) -> dict[Place, int]:
    """Those letters that were sent again and have not come back, and the offset of the message that stands for each.

    Reads the letters' partitions of the topic of events from when the first of the letters was written.
    """
    if not chosen:
        return {}
    since = min(letter.written_at for letter in chosen) - CLOCKS_APART_MS
    failed = {letter.place: letter.failed for letter in chosen}
    found: dict[Place, int] = {}
    for messages in read(pipeline.events.topic, settings, dict.fromkeys({place[0] for place in failed}, since)):
        stamps = np.fromiter((message.timestamp()[1] for message in messages), np.int64, len(messages))
        for index, offset in replayed(messages, stamps).items():
            place = messages[index].partition() or 0, offset
            if place in failed and messages[index].offset() not in failed[place]:
                found[place] = messages[index].offset() or 0
    return found


def read(topic: str, settings: JobSettings, since: Mapping[int, int]) -> Iterator[list[Message]]:
    """A topic's messages up to its end as it is now, some at a time. since: the partitions that are read, each from a time (ms)
    on; none named: all, from their beginning. Raises DeadLetterError if the broker does not answer."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.brokers,
            "group.id": "headrace-dead",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 5,
            "fetch.message.max.bytes": MAX_MESSAGE,
            "log_level": 0,
            **settings.client,
        }
    )
    try:
        there = consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic].partitions
        places = [TopicPartition(topic, number, since.get(number, 0)) for number in since or there]
        if unknown := [place.partition for place in places if place.partition not in there]:
            raise DeadLetterError(f"{topic}: expected partitions 0 to {len(there) - 1}, got {unknown[0]}")
        at = {place.partition: _start(consumer, place, bool(since)) for place in places}
        consumer.assign([TopicPartition(topic, number, offset) for number, offset in at.items()])
        reading, answered = set(at), time.monotonic()
        while reading:
            got = consumer.consume(10_000, 0.1)
            if got:
                answered = time.monotonic()
            elif time.monotonic() - answered > ANSWER_SECONDS:
                raise DeadLetterError(f"{topic}: the broker at {settings.brokers} has said nothing for {ANSWER_SECONDS:g} s")
            for message in got:
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    raise DeadLetterError(f"{topic}/{message.partition()}: {error.str()}")
                if error is not None:
                    reading.discard(message.partition())
            yield [message for message in got if message.error() is None]
    except KafkaException as error:
        raise DeadLetterError(f"{topic}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _start(consumer: Consumer, place: TopicPartition, by_time: bool) -> int:
    low, high = consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
    if not by_time:
        return int(low)
    found = consumer.offsets_for_times([place], timeout=ANSWER_SECONDS)[0]
    return int(found.offset if found.offset >= 0 else high)


def _without_body(letter: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in letter.items() if name not in ("key_base64", "value_base64")}


def _parsed(message: Message) -> dict[str, Any]:
    try:
        return dict(json.loads(message.value() or b""))
    except (ValueError, TypeError):
        place = f"{message.topic()}/{message.partition()}@{message.offset()}"
        raise DeadLetterError(f"{place}: expected a dead letter, got what is no JSON object") from None


def counted(found: Iterable[Letter]) -> dict[str, int]:
    """How many by code, the most first."""
    return dict(Counter(letter.letter["code"] for letter in found).most_common())


def table(found: Sequence[Letter], most: int) -> Iterator[str]:
    """The last of the letters written, a line each, and how many there are by code."""
    shown = sorted(found, key=lambda letter: letter.written_at)[-most:]
    rows = [("written (UTC)", "code", "message", "bytes", "came", "reason")]
    for each in shown:
        letter = each.letter
        at = datetime.fromtimestamp(each.written_at / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        size, came = f"{letter['size']:,}", f"{each.times}x" if each.times > 1 else ""
        rows.append((at, letter["code"], f"{letter['partition']}@{letter['offset']}", size, came, letter["reason"]))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    if shown:
        yield from ("  ".join([*(f"{row[k]:{widths[k]}}" for k in range(5)), row[5]]).rstrip() for row in rows)
    if len(shown) < len(found):
        yield f"the last {len(shown)} of {len(found):,}: --most N shows more"
    plural = "" if len(found) == 1 else "s"
    yield f"{len(found):,} dead letter{plural}" + "".join(f", {code} {count:,}" for code, count in counted(found).items())


def told(each: Letter) -> dict[str, Any]:
    """A letter for machines: as it is in the topic, and when it was written and how often it came."""
    at = datetime.fromtimestamp(each.written_at / 1000, UTC).isoformat()
    return {**each.letter, "written_at": at, "times": each.times}


def export(found: Sequence[Letter], file: Path, settings: JobSettings, opened: bool) -> int:
    """Writes a line for each letter to a new file that only its owner reads; returns how many. opened: those that are encrypted
    are decrypted. Raises DeadLetterError, SecretError, SealError."""
    lines = [editable(_in_clear(each.letter, settings, opened)) for each in found]
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise DeadLetterError(f"{file}: expected to make a new file, got {error.strerror}") from None
    with os.fdopen(number, "w", encoding="utf-8") as made:
        made.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return len(lines)


def _in_clear(letter: Mapping[str, Any], settings: JobSettings, opened: bool) -> Mapping[str, Any]:
    if unkept(letter):
        return {**letter, "encrypted": True}
    return open_letter(letter, settings) if opened else letter


def unkept(letter: Mapping[str, Any]) -> bool:
    """Whether a letter of a topic with secrets has not its message, as there was no key to encrypt it with, or nothing to."""
    return letter["sha256"] is None and not letter["encrypted"]


def editable(letter: Mapping[str, Any]) -> dict[str, Any]:
    """A letter as people correct it: `key` and `value` as text, and the value as an object where that says its very bytes."""
    line = {name: letter[name] for name in ("topic", "partition", "offset", "code", "reason")}
    if letter["encrypted"] or letter["truncated"]:
        kept = {name: letter[name] for name in ("encrypted", "truncated", "size", "key_base64", "value_base64")}
        return line | kept
    for name in ("key", "value"):
        said = letter[f"{name}_base64"]
        plain = None if said is None else base64.b64decode(said)
        try:
            text = None if plain is None else plain.decode()
        except UnicodeDecodeError:
            line[f"{name}_base64"] = said
            continue
        line[name] = _as_object(text) if name == "value" and text is not None else text
    return line


def _as_object(text: str) -> Any:
    """The object that a text is the JSON of, where writing it gives the same text but for spaces; else the text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    same = isinstance(value, dict) and text in (json.dumps(value, ensure_ascii=False), compact(value))
    return value if same else text


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
