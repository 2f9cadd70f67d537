"""The topics of a pipeline: made, listed, counted."""

from collections.abc import Mapping, Sequence

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from ops.broker import MAX_MESSAGE


def create(brokers: str, topics: Sequence[str], partitions: int, config: Mapping[str, str]) -> list[str]:
    """Makes those topics that are not there, with messages to 16 MB; returns their names. Raises KafkaException."""
    settings = {"max.message.bytes": str(MAX_MESSAGE)}
    client = AdminClient({"bootstrap.servers": brokers, **config})
    wanted = [NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings) for name in topics]
    made = []
    for name, future in client.create_topics(wanted).items():
        try:
            future.result()
            made.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return made


def counts(brokers: str, topics: Sequence[str], config: Mapping[str, str]) -> dict[str, list[int] | None]:
    """Messages in each partition of each topic, None where there is no such topic. Raises KafkaException."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "headrace-topics", "enable.auto.commit": False, **config})
    try:
        there = consumer.list_topics(timeout=10).topics
        found: dict[str, list[int] | None] = {}
        for name in topics:
            if name not in there or there[name].error is not None:
                found[name] = None
                continue
            marks = [
                consumer.get_watermark_offsets(TopicPartition(name, p), timeout=10) for p in sorted(there[name].partitions)
            ]
            found[name] = [high - low for low, high in marks]
        return found
    finally:
        consumer.close()
