"""The topics of a pipeline: made, listed, counted."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ops.broker import MAX_MESSAGE
from streams.door import NoAnswerError, topics_at

TIMEOUT = 5.0


class BrokerMissingError(ConnectionError):
    """No broker answers; the message says where and what to do."""


class TopicMissingError(LookupError):
    """The broker has no such topics; the message says how to make them."""


def require(brokers: str, topics: Sequence[str], config: Mapping[str, str], pipeline: str) -> None:
    """Raises BrokerMissingError, or TopicMissingError if any of the topics of `pipeline` is not there."""
    _, there = _answers(AdminClient, {"bootstrap.servers": brokers, **config}, TIMEOUT)
    if missing := [name for name in topics if name not in there]:
        make = f"headrace topics {pipeline} --brokers {brokers} --create"
        raise TopicMissingError(f"the broker at {brokers} has no topic {', '.join(missing)}: make it with {make}")


def create(brokers: str, topics: Sequence[str], partitions: int, config: Mapping[str, str]) -> list[str]:
    """Makes those topics that are not there, with messages to 16 MB; returns their names in order.

    Raises BrokerMissingError, or KafkaException for what the broker refuses.
    """
    client, _ = _answers(AdminClient, {"bootstrap.servers": brokers, **config}, TIMEOUT)
    settings = {"max.message.bytes": str(MAX_MESSAGE)}
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings) for name in topics]
    made = []
    for name, future in client.create_topics(wanted).items():
        try:
            future.result()
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return sorted(made, key=topics.index)


def counts(
    brokers: str, topics: Sequence[str], config: Mapping[str, str], timeout: float = TIMEOUT
) -> dict[str, list[int] | None]:
    """Messages in each partition of each topic, None where there is no such topic.

    An embedded broker says the offset after the first message of the last batch when asked for the end, so the tail is read:
    where it ends is right on every broker. Raises BrokerMissingError, or KafkaException for what the broker refuses.
    """
    own = {
        "bootstrap.servers": brokers,
        "group.id": "headrace-topics",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 5,
        "fetch.message.max.bytes": MAX_MESSAGE,
    }
    consumer, there = _answers(Consumer, own | dict(config), timeout)
    try:
        found = {name: sorted(there[name].partitions) if name in there else None for name in topics}
        places = [(name, partition) for name, partitions in found.items() for partition in partitions or ()]
        ends = _ends(consumer, places, timeout)
        return {name: None if parts is None else [ends[name, part] for part in parts] for name, parts in found.items()}
    finally:
        consumer.close()


def _ends(consumer: Consumer, places: Sequence[tuple[str, int]], timeout: float) -> dict[tuple[str, int], int]:
    """Messages by topic and partition."""
    marks = {place: consumer.get_watermark_offsets(TopicPartition(*place), timeout=timeout) for place in places}
    consumer.assign([TopicPartition(*place, max(low, high - 1)) for place, (low, high) in marks.items()])
    found = {place: high - low for place, (low, high) in marks.items()}
    reading = set(places)
    deadline = time.monotonic() + timeout
    while reading and time.monotonic() < deadline:
        for message in consumer.consume(10_000, 0.01):
            place = message.topic(), message.partition()
            if message.error() is None:
                found[place] = message.offset() + 1 - marks[place][0]
            elif message.error().code() == KafkaError._PARTITION_EOF:
                found[place] = message.offset() - marks[place][0]
                reading.discard(place)
            else:
                raise KafkaException(message.error())
    return found


def _answers(make: Callable[[Any], Any], config: Mapping[str, Any], timeout: float) -> tuple[Any, Mapping[str, Any]]:
    """A client, and the topics that are there."""
    try:
        client, topics = topics_at(make, {"log_level": 0, **config}, timeout)
    except NoAnswerError as error:
        raise BrokerMissingError(str(error)) from None
    return client, {name: topic for name, topic in topics.items() if topic.error is None}
