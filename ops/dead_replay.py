"""Dead letters sent again, corrected or as they are: new messages that are decided on under the ids of those that failed."""

import base64
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from ops.broker import MAX_MESSAGE
from ops.dead import DeadLetterError, Letter, Place, Wanted, compact, letters, sent_again, unkept
from ops.secret import open_letter
from sinks.sealed import SealError
from streams.log import KafkaLog
from streams.lookup import SecretError
from streams.pipeline import Pipeline
from streams.poison import CODE as POISON
from streams.reader import SourceError
from streams.replays import header_of, marked
from streams.settings import JobSettings
from streams.source import RAW

FLUSH_SECONDS = 120.0


@dataclass(frozen=True)
class Again:
    """A message that is to be sent again. said: where it comes from, for errors."""

    place: Place
    key: bytes | None
    value: bytes | None
    said: str = ""


@dataclass(frozen=True)
class Replayed:
    """What was sent; and what was left out: sent before and not come back, failing still (by code), not there any more."""

    sent: Sequence[Place]
    before: Sequence[Place] = ()
    failing: Mapping[str, int] = field(default_factory=dict)
    gone: Sequence[Place] = ()


def replay_file(pipeline: Pipeline, settings: JobSettings, file: Path, called: str, unchecked: bool = False) -> Replayed:
    """Sends the messages of a file that `headrace dead export` made and somebody corrected: all that can be decoded, or none.

    Those that were sent before and have not come back are left out. unchecked: without looking whether they were, or whether
    there is such a letter at all. Raises DeadLetterError, which names the lines that are wrong.
    """
    asked = parsed(file, pipeline.events.topic)
    before: dict[Place, int] = {}
    if unchecked:
        _expect_there(pipeline, settings, asked)
    else:
        wanted = {each.place for each in asked}
        found = letters(pipeline, settings, lambda letter: letter.place in wanted, called, bodies=False)
        known = {letter.place for letter in found}
        for each in asked:
            if each.place not in known:
                raise DeadLetterError(f"{each.said}: {_named(pipeline, each.place)} has no dead letter")
        before = sent_again(pipeline, settings, found)
    chosen = [each for each in asked if each.place not in before]
    wrong = failing(pipeline, settings, chosen)
    if wrong:
        error = DeadLetterError(f"{file}: {len(wrong)} of {len(chosen)} messages would fail again, so none was sent")
        for k, (_, reason) in list(wrong.items())[:20]:
            error.add_note(f"  {chosen[k].said}: {reason}")
        raise error
    send(pipeline, settings, chosen)
    return Replayed([each.place for each in chosen], [each.place for each in asked if each.place in before])


def replay_as_is(pipeline: Pipeline, settings: JobSettings, wanted: Wanted, called: str, unchecked: bool = False) -> Replayed:
    """Sends the letters that are wanted as they are: those that can be decoded by now, and those that killed the job only if
    their code is named. What a letter has not kept, or not in clear, is read from the topic of events."""
    found = letters(pipeline, settings, wanted, called)
    before = {} if unchecked else sent_again(pipeline, settings, found)
    log = KafkaLog(pipeline.events.topic, settings.brokers, settings.client, group="headrace-dead")
    chosen, gone, killers = [], [], 0
    try:
        for letter in found:
            if letter.letter["code"] == POISON and not wanted.codes:
                killers += 1
            elif letter.place not in before:
                message = _kept(letter, settings) or _original(letter, log)
                if message:
                    chosen.append(message)
                else:
                    gone.append(letter.place)
    finally:
        log.close()
    wrong = failing(pipeline, settings, chosen)
    good = [each for k, each in enumerate(chosen) if k not in wrong]
    send(pipeline, settings, good)
    codes = Counter(code for code, _ in wrong.values()) + Counter({POISON: killers})
    return Replayed([each.place for each in good], [*before], dict(codes.most_common()), gone)


def _expect_there(pipeline: Pipeline, settings: JobSettings, asked: Sequence[Again]) -> None:
    """Raises DeadLetterError for a position that the topic has not come to: a message sent for it would be one of its own."""
    log = KafkaLog(pipeline.events.topic, settings.brokers, settings.client, group="headrace-dead")
    try:
        for each in asked:
            try:
                end = log.bounds(each.place[0])[1]
            except SourceError as error:
                raise DeadLetterError(f"{each.said}: {error}") from None
            if each.place[1] >= end:
                raise DeadLetterError(f"{each.said}: {_named(pipeline, each.place)}: expected an offset before {end}, its end")
    finally:
        log.close()


def parsed(file: Path, topic: str) -> list[Again]:
    """The lines of a file. Raises DeadLetterError for what is no letter about a message of the topic, or has not its value."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # a text may hold what else ends a line elsewhere
    except (OSError, UnicodeDecodeError) as error:
        raise DeadLetterError(f"{file}: expected a file of JSON lines, got {error}") from None
    made: dict[Place, Again] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            each = _parsed(line, topic, f"line {number}")
            if each.place in made:
                raise DeadLetterError(f"{each.said}: the same message as {made[each.place].said}")
            made[each.place] = each
    return list(made.values())


def _parsed(line: str, topic: str, said: str) -> Again:
    try:
        letter = json.loads(line)
    except ValueError as error:
        raise DeadLetterError(f"{said}: expected JSON, got what is none: {error}") from None
    if not isinstance(letter, dict):
        raise DeadLetterError(f"{said}: expected an object, got {type(letter).__name__}")
    place = []
    for name, least in (("partition", 0), ("offset", 0)):
        number = letter.get(name)
        if type(number) is not int or number < least:
            raise DeadLetterError(f"{said}: {name}: expected a whole number of at least {least}, got another")
        place.append(number)
    if letter.get("topic") != topic:
        raise DeadLetterError(f"{said}: topic: expected {topic}, got {letter.get('topic')!r}")
    if letter.get("encrypted"):
        raise DeadLetterError(f"{said}: it is encrypted, or was not kept: headrace dead export --open, or replay --as-is")
    if letter.get("truncated") and "value" not in letter:
        raise DeadLetterError(f"{said}: it has only the first bytes of its message: give it a value")
    return Again((place[0], place[1]), _bytes(letter, "key", said), _bytes(letter, "value", said), said)


def _bytes(letter: Mapping[str, Any], name: str, said: str) -> bytes | None:
    if name in letter:
        value = letter[name]
        if name == "value" and isinstance(value, dict | list):
            return compact(value).encode()
        if value is None or isinstance(value, str):
            return None if value is None else value.encode()
        wanted = "a text or an object" if name == "value" else "a text"
        raise DeadLetterError(f"{said}: {name}: expected {wanted}, got {type(value).__name__}")
    if f"{name}_base64" not in letter:
        raise DeadLetterError(f"{said}: expected {name} or {name}_base64, got neither")
    value = letter[f"{name}_base64"]
    try:
        return None if value is None else base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        raise DeadLetterError(f"{said}: {name}_base64: expected base64, got what is none") from None


def failing(pipeline: Pipeline, settings: JobSettings, messages: Sequence[Again]) -> dict[int, tuple[str, str]]:
    """Which of the messages the pipeline cannot decode: index → (code, reason)."""
    if not messages:
        return {}
    n, now = len(messages), time.time_ns()
    columns = [
        pa.array([each.key for each in messages], pa.binary()),
        pa.array([each.value for each in messages], pa.binary()),
        pa.array([each.place[0] for each in messages], pa.int32()),
        pa.array([each.place[1] for each in messages], pa.int64()),
        pa.array([now // 1_000_000] * n, pa.int64()),
        pa.array(now + np.arange(n), pa.int64()),
    ]
    dead = pipeline.events.decode(f"{pipeline.name}/replay", settings)(pa.RecordBatch.from_arrays(columns, schema=RAW)).dead
    found = zip(dead["_polled_at"].to_pylist(), dead["code"].to_pylist(), dead["reason"].to_pylist(), strict=True)
    return {polled_at - now: (code, reason) for polled_at, code, reason in found}


def send(pipeline: Pipeline, settings: JobSettings, messages: Sequence[Again]) -> None:
    """Sends each to its partition, in the order of their positions. Raises DeadLetterError unless all are confirmed."""
    if not messages:
        return
    topic, failed = pipeline.events.topic, list[str]()

    def confirmed(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failed.append(error.str())

    config: dict[str, Any] = {
        "bootstrap.servers": settings.brokers,
        "enable.idempotence": True,
        "message.max.bytes": MAX_MESSAGE,
        "log_level": 0,
    }
    producer = Producer({**config, **settings.client})
    try:
        for each in sorted(messages, key=lambda each: each.place):
            partition, offset = each.place
            while True:
                try:
                    producer.produce(
                        topic, each.value, each.key, partition, confirmed,
                        timestamp=marked(time.time_ns() // 1_000_000), headers=[header_of(topic, partition, offset)],
                    )  # fmt: skip
                    break
                except BufferError:  # its queue is full: what is in it has its own time-out
                    producer.poll(0.1)
            producer.poll(0)
        left = producer.flush(FLUSH_SECONDS)
    except KafkaException as error:
        raise DeadLetterError(f"{topic}: {error}") from None
    if failed or left:
        why = failed[0] if failed else f"not confirmed within {FLUSH_SECONDS:g} s"
        raise DeadLetterError(f"{topic}: {len(failed) + left} of {len(messages)} messages were not taken: {why}: run it again")


def _original(letter: Letter, log: KafkaLog) -> Again | None:
    """The message that failed last, from the topic of events; None where it is not there any more."""
    at = letter.letter.get("replay") or letter.place[1]
    try:
        found = log.read(letter.place[0], at)
    except SourceError:
        return None
    if not found.num_rows or found["_offset"][0].as_py() != at:
        return None
    value, said = found["_value"][0].as_py(), letter.letter["sha256"]
    if said is not None and hashlib.sha256(value or b"").hexdigest() != said:
        return None
    return Again(letter.place, found["_key"][0].as_py(), value)


def _kept(letter: Letter, settings: JobSettings) -> Again | None:
    """The message as its letter has kept it; None where it has not, or has it locked away."""
    if unkept(letter.letter):
        return None
    try:
        opened = open_letter(letter.letter, settings)
    except (SecretError, SealError):
        return None
    if opened["truncated"]:
        return None
    key, value = (None if said is None else base64.b64decode(said) for said in (opened["key_base64"], opened["value_base64"]))
    return Again(letter.place, key, value)


def _named(pipeline: Pipeline, place: Place) -> str:
    return f"{pipeline.events.topic}/{place[0]}@{place[1]}"


def lines(pipeline: Pipeline, done: Replayed) -> list[str]:
    """What was done, for people."""
    topic = pipeline.events.topic
    some = ", ".join(f"{pipeline.name}/{topic}/{partition}/{offset}" for partition, offset in done.sent[:3])
    more = f" and {len(done.sent) - 3:,} more" if len(done.sent) > 3 else ""
    said = [f"{len(done.sent):,} sent again to {topic}" + (f", to be decided as {some}{more}" if some else "")]
    if done.before:
        said.append(f"{len(done.before):,} left out: sent before, and not come back (--unchecked sends them all the same)")
    if done.failing:
        codes = ", ".join(f"{code} {count:,}" for code, count in done.failing.items())
        said.append(f"{sum(done.failing.values()):,} left out: they would fail again: {codes}")
    if done.gone:
        first = _named(pipeline, done.gone[0])
        said.append(f"{len(done.gone):,} left out: neither the topic nor the letter has the message: {first}")
    return said
