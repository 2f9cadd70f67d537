"""What a consumer sees of a job that was killed, against what was sent."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from bench.proving.job import ALL, COUNT, SUM
from bench.proving.load import Load
from streams.poison import CODE

READ_SECONDS = 90.0
NEVER = ("lost", "unknown", "disordered", "state_wrong", "contradict_own", "dead_lost", "dead_unknown")
NEVER_TWICE = ("repeats", "shared_wrong", "dead_repeats", "decided_too")


def committed(brokers: str, topic: str) -> list[dict[str, Any]]:
    """All that a consumer with read_committed gets of a topic. Raises TimeoutError where a transaction is left open."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "faults",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    found, left = [], set(partitions)
    deadline = time.monotonic() + READ_SECONDS
    while left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{topic}: partitions {sorted(left)} have no end: a transaction is open")
        for message in consumer.consume(10_000, 0.1):
            error = message.error()
            if error is None:
                found.append(json.loads(message.value() or b""))
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            elif not error.retriable():
                raise KafkaException(error)
    consumer.close()
    return found


def audit(load: Load, decisions: Sequence[dict[str, Any]], dead: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is lost, doubled and wrong; decisions and dead letters in the order in which each partition has them.

    repeats: decisions under an id that had one. disordered: first decisions that come after one of a later message of their own
    key. contradict_own: repeats that say something else of a key that is in one partition than the first of their id does;
    contradict_shared: the other repeats whose score, decision or shared key differs.
    state_wrong: first decisions that know something else of their own key than the messages before say. shared_wrong: of each
    shared key's N first decisions, those whose count of events before is not another one of 0 to N - 1.
    set_aside: messages that were killed at four times in a row, twice alone, by chance, so that the job takes them to be what
    kills it: dead letters with code poison, as promised. What their keys count is not compared. decided_too: those that have a
    decision as well, from before they were set aside.
    """
    expected, first = load.expected(), dict[str, dict[str, Any]]()
    letters = Counter(f"{letter['partition']}/{letter['offset']}" for letter in dead)
    aside = {f"{letter['partition']}/{letter['offset']}" for letter in dead if letter["code"] == CODE} - load.dead()
    places = [tuple(map(int, place.split("/"))) for place in aside]
    without = {load.key(partition, n) for partition, n in places}, {load.shared(n) for _, n in places}
    own = shared = 0
    for decision in decisions:
        place = decision["decision_id"].removeprefix(f"{load.name}/{load.source}/")
        said = first.setdefault(place, decision)
        if any(said["features"][name] != decision["features"][name] for name in ("n", COUNT, SUM)):
            own += key_of(load, place) not in without[0]
        elif any(said[name] != decision[name] for name in ("features", "score", "decision")):
            shared += 1
    newest, disordered = dict[str, int](), 0
    for partition, n in (map(int, place.split("/")) for place in first):
        key = load.key(partition, n)
        disordered += n < newest.get(key, -1)
        newest[key] = max(n, newest.get(key, -1))
    state = [
        f"{place}: expected {expected[place]}, got {(said['features'][COUNT], said['features'][SUM])}"
        for place, said in first.items()
        if place in expected
        and key_of(load, place) not in without[0]
        and (said["features"][COUNT], said["features"][SUM] or 0) != expected[place]
    ]
    counts: defaultdict[str, set[int]] = defaultdict(set)
    turns: Counter[str] = Counter()
    for place, _, n in load.decided_on():
        if place in first and load.shared(n) not in without[1]:
            turns[load.shared(n)] += 1
            counts[load.shared(n)].add(int(first[place]["features"][ALL]))
    return {
        "messages": load.sent,
        "decided": len(first),
        "lost": len(expected.keys() - first.keys() - aside),
        "unknown": len(first.keys() - expected.keys()),
        "repeats": len(decisions) - len(first),
        "disordered": disordered,
        "contradict_own": own,
        "contradict_shared": shared,
        "state_wrong": len(state),
        "shared_wrong": sum(turns[key] - len(seen & set(range(turns[key]))) for key, seen in counts.items()),
        "first_wrong": state[:1],
        "dead": len(letters),
        "dead_lost": len(load.dead() - letters.keys()),
        "dead_unknown": len(letters.keys() - load.dead() - aside),
        "set_aside": len(aside),
        "decided_too": len(aside & first.keys()),
        "dead_repeats": len(dead) - len(letters),
    }


def key_of(load: Load, place: str) -> str:
    """The key of the message at a place."""
    partition, n = map(int, place.split("/"))
    return load.key(partition, n)


def wrong(audited: dict[str, Any], mode: str) -> list[str]:
    """What is not as promised, in words."""
    names = [*NEVER, *(NEVER_TWICE if mode == "exactly_once" else ())]
    return [f"{name}: {audited[name]:,}" for name in names if audited[name]]


def added(many: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several audits as one."""
    names = [name for name in many[0] if isinstance(many[0][name], int)]
    return {name: sum(each[name] for each in many) for name in names}
