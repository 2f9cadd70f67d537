"""A consumer of decisions: acts once on each, whatever comes again.

    python decisions.py --brokers 127.0.0.1:9092 --topic flight-decisions --group my-service

Needs confluent-kafka. It remembers which decisions it has acted on by reading the last hours of each partition again when it
begins: what lies before the group's committed position has been acted on.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition


class NotAsDescribedError(ValueError):
    """A message that is not what docs/asyncapi.yaml says; the text names field, position, expected and got."""


@dataclass(frozen=True)
class Decision:
    """What this consumer needs of a decision; fields that it does not know are passed over."""

    decision_id: str
    decision: str
    score: float | None
    reasons: list[str]
    flags: list[str]
    model: str
    model_version: int


TYPES: dict[str, tuple[type, ...]] = {
    "decision_id": (str,), "decision": (str,), "score": (float, int, type(None)), "reasons": (list,),
    "flags": (list,), "model": (str,), "model_version": (int,),
}  # fmt: skip


def read(value: bytes | None, position: str) -> Decision:
    """The decision in a message. Raises NotAsDescribedError."""
    try:
        found = json.loads(value or b"")
    except ValueError as error:
        raise NotAsDescribedError(f"{position}: expected a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise NotAsDescribedError(f"{position}: expected a JSON object, got {found!r}")
    for name, types in TYPES.items():
        if name not in found or not isinstance(found[name], types) or isinstance(found[name], bool):
            expected, got = " or ".join(kind.__name__ for kind in types), found.get(name, "no such field")
            raise NotAsDescribedError(f"{position}: {name}: expected {expected}, got {got!r}")
    return Decision(**{name: found[name] for name in TYPES})


@dataclass
class Memory:
    """The decisions of one partition that were acted on, for `hours` of the messages' time."""

    hours: float
    acted_before: int  # the group's position when it began: what lies before it was acted on
    seen: dict[str, int] = field(default_factory=dict)  # decision_id -> milliseconds, oldest first

    def is_new(self, decision_id: str, at: int) -> bool:
        """Whether it was not there before; remembers it, and forgets what is too old."""
        new = decision_id not in self.seen
        if new:
            self.seen[decision_id] = at
        while self.seen and next(iter(self.seen.values())) < at - self.hours * 3_600_000:
            del self.seen[next(iter(self.seen))]
        return new


@dataclass
class Total:
    """What was acted on. A consumer of yours blocks a card or calls a passenger here."""

    decisions: int = 0
    repeats: int = 0
    millionths: int = 0
    flagged: int = 0
    by_decision: Counter[str] = field(default_factory=Counter)

    def act(self, decision: Decision) -> None:
        self.decisions += 1
        self.by_decision[decision.decision] += 1
        self.flagged += bool(decision.flags)
        if decision.score is not None:
            self.millionths += math.floor(decision.score * 1e6 + 0.5)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "by_decision": dict(sorted(self.by_decision.items()))}


def consume(brokers: str, topic: str, group: str, hours: float, idle: float) -> Total:
    """Acts on decisions until a signal, or until none has come for `idle` seconds (0: for ever)."""
    total, memories = Total(), dict[int, Memory]()
    running, last = [True], [math.inf]  # last: when one came, or partitions
    consumer = Consumer({
        "bootstrap.servers": brokers, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
        "isolation.level": "read_committed",
    })  # fmt: skip

    def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
        committed = consumer.committed(partitions, timeout=30)
        since = round((time.time() - hours * 3600) * 1000)
        starts = consumer.offsets_for_times([TopicPartition(p.topic, p.partition, since) for p in partitions], timeout=30)
        for done, start in zip(committed, starts, strict=True):
            memories[done.partition] = Memory(hours, max(done.offset, 0))
            if done.offset < 0:  # the group has no position yet
                start.offset = OFFSET_BEGINNING
            elif not 0 <= start.offset <= done.offset:
                start.offset = done.offset
        consumer.assign(starts)
        last[0] = time.monotonic()

    def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
        for each in partitions:
            memories.pop(each.partition, None)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: running.clear())
    consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked)
    try:
        while running and (not idle or time.monotonic() - last[0] < idle):
            messages: list[Message] = consumer.consume(1000, timeout=0.2)
            for message in messages:
                if message.error():
                    raise KafkaException(message.error())
                position = f"{topic}/{message.partition()}@{message.offset()}"
                decision = read(message.value(), position)
                memory = memories[message.partition()]
                new = memory.is_new(decision.decision_id, message.timestamp()[1])
                if message.offset() < memory.acted_before:
                    continue
                if new:
                    total.act(decision)
                else:
                    total.repeats += 1
            if messages:
                last[0] = time.monotonic()
                done = {m.partition(): m.offset() + 1 for m in messages if m.offset() >= memories[m.partition()].acted_before}
                if done:
                    consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in done.items()], asynchronous=False)
    finally:
        consumer.close()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--remember", type=float, default=24, metavar="HOURS", help="how long an outage may last")
    parser.add_argument("--idle", type=float, default=0, metavar="SECONDS", help="leave when none has come for so long")
    told = parser.parse_args()
    try:
        total = consume(told.brokers, told.topic, told.group, told.remember, told.idle)
    except NotAsDescribedError as error:
        sys.exit(str(error))
    print(json.dumps(total.as_dict()))


if __name__ == "__main__":
    main()
