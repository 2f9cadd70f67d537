"""Kafka as what a lane (sinks/staged.py) is committed to: a transaction holds the messages and the lane's progress record.

The progress records of a job are in a compacted topic of their own, in a partition for each lane, so that nobody else's open
transaction hides them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from sinks.kafka import MAX_BYTES, QUEUE_KBYTES, QUEUE_MESSAGES
from sinks.messages import DeliveryError, Messages
from sinks.staged import FencedError, InDoubtError

ANSWER_SECONDS = 30.0
TRANSACTION_MS = 120_000
TAIL = 64
AT_ONCE, AHEAD = 1000, 2000
"""Messages handed to the client in one call, which holds Python's lock and should stay in the cache; how many wait in it."""
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.bytes": str(4 * 1024 * 1024),
    "segment.ms": "600000",
    "min.cleanable.dirty.ratio": "0.1",
}
FENCED = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)
NEVER = (
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError._INVALID_ARG,
)


class KafkaLane:
    """One lane of a job (sinks/staged.py: Log): its transactional id is "{job}-{lane}", its progress partition `lane` of the
    topic `progress`, which is there (see `progress_topic`).

    config: further librdkafka settings. at: called with the name of each point passed.
    """

    def __init__(
        self,
        brokers: str,
        config: Mapping[str, str],
        job: str,
        lane: int,
        progress: str,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._brokers, self._config = brokers, dict(config)
        self._id, self._lane, self._topic, self._at = f"{job}-{lane}", lane, progress, at
        self._producer: Producer | None = None
        self._failed: KafkaError | None = None

    def open(self) -> dict[str, int]:
        """See Log. Takes about 60 ms, half a second where the broker has to find who coordinates the transactions."""
        self._give_up()
        settings: dict[str, Any] = {
            "bootstrap.servers": self._brokers,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "delivery.timeout.ms": 30_000,
            "message.max.bytes": MAX_BYTES,
            "queue.buffering.max.messages": QUEUE_MESSAGES,
            "queue.buffering.max.kbytes": QUEUE_KBYTES,
            "log_level": 0,
            **self._config,
            "transactional.id": self._id,
            "transaction.timeout.ms": TRANSACTION_MS,
            "delivery.report.only.error": True,
            "error_cb": lambda error: None,
        }
        tried = int(settings.pop("message.timeout.ms", settings["delivery.timeout.ms"]))
        settings["delivery.timeout.ms"] = min(tried, TRANSACTION_MS)  # librdkafka refuses more
        self._failed = None
        self._producer = Producer(settings)
        try:
            self._producer.init_transactions(ANSWER_SECONDS)
            return self._progress()
        except KafkaException as error:
            raise self._told(error.args[0], "open") from None

    def commit(self, messages: Sequence[Messages], progress: Mapping[str, int]) -> None:
        """See Log."""
        producer = self._producer
        if producer is None:
            raise InDoubtError(f"transaction {self._id}: not open")
        try:
            self._at("begin.before")
            producer.begin_transaction()
            self._at("begin.after")
            self._at("produce.before")
            until = time.monotonic() + ANSWER_SECONDS
            for each in messages:
                self._produce(producer, each, until)
            self._at("produce.after")
            self._at("progress.before")
            self._produce(producer, Messages(self._topic, [b"%d" % self._lane], [json.dumps(dict(progress)).encode()]), until)
            self._at("progress.after")
            self._at("commit.before")
            self._commit(producer)
            self._at("commit.after")
        except KafkaException as error:
            raise self._told(self._failed or error.args[0], "commit") from None

    def close(self) -> None:
        """See Log. A transaction that is open is left to the next owner of the lane."""
        self._give_up()

    def _produce(self, producer: Producer, messages: Messages, until: float) -> None:
        """Hands them over some at a time, no faster than they are sent, or the stream would have to share its processor; from
        `until` on, or once one has failed, at once."""
        for start in range(0, len(messages.values), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            self._produce_some(producer, Messages(messages.topic, messages.keys[some], messages.values[some]))
            while len(producer) > AHEAD and self._failed is None and time.monotonic() < until:
                producer.poll(0.001)

    def _produce_some(self, producer: Producer, messages: Messages) -> None:
        own = messages.topic == self._topic
        entries: list[dict[str, Any]] = [
            {"key": key, "value": value} for key, value in zip(messages.keys, messages.values, strict=True)
        ]
        while entries:
            part = self._lane if own else -1
            accepted = producer.produce_batch(messages.topic, entries, partition=part, on_delivery=self._on_delivery)
            producer.poll(0)
            if accepted == len(entries):
                return
            entries = [entry for entry in entries if "_error" in entry]
            errors = [entry.pop("_error") for entry in entries]
            if refused := [error for error in errors if error.code() != KafkaError._QUEUE_FULL]:
                raise KafkaException(refused[0])
            producer.poll(0.01)

    def _commit(self, producer: Producer) -> None:
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                producer.commit_transaction(max(0.1, until - time.monotonic()))
                return
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > until:
                    raise

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if (
            error is not None
            and self._failed is None
            and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        ):
            self._failed = error

    def _told(self, error: KafkaError, doing: str) -> Exception:
        self._give_up()
        told = f"transaction {self._id}, {doing}: {error.str()}"
        if error.code() in FENCED:
            return FencedError(self._id, told)
        if error.code() in NEVER:
            return DeliveryError(self._id, 1, told)
        return InDoubtError(told)

    def _give_up(self) -> None:
        """Throws the producer away, without its `close`: that aborts first, which takes long and raises where a broker was away
        for long. Who opens the lane next aborts."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()

    def _progress(self) -> dict[str, int]:
        """The newest record in the lane's partition, where no transaction is open now. Raises KafkaException, InDoubtError."""
        consumer = Consumer(
            {
                "bootstrap.servers": self._brokers,
                "group.id": self._id,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
                "log_level": 0,
                **self._config,
            }
        )
        try:
            place = TopicPartition(self._topic, self._lane)
            low, high = consumer.get_watermark_offsets(place, timeout=ANSWER_SECONDS)
            for begin in dict.fromkeys((max(low, high - TAIL), low)):
                value = _last(consumer, TopicPartition(self._topic, self._lane, begin), high)
                if value is not None:
                    return {stream: int(sequence) for stream, sequence in json.loads(value).items()}
            return {}
        finally:
            consumer.close()


def _last(consumer: Consumer, begin: TopicPartition, end: int) -> bytes | None:
    """The value of the last message from `begin` on, which is before `end`."""
    if begin.offset >= end:
        return None
    consumer.assign([begin])
    until = time.monotonic() + ANSWER_SECONDS
    value: bytes | None = None
    while time.monotonic() < until:
        for message in consumer.consume(10_000, 0.05):
            error = message.error()
            if error is None:
                value = message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                if message.offset() >= end:
                    return value
            else:
                raise KafkaException(error)
    raise InDoubtError(f"the broker did not send {begin.topic}/{begin.partition} from {begin.offset} to {end}")


def progress_topic(brokers: str, config: Mapping[str, str], topic: str, lanes: int, timeout: float = ANSWER_SECONDS) -> None:
    """Makes the topic of the progress records, or adds partitions to it, so that there is one for each lane.

    Raises DeliveryError.
    """
    client = AdminClient({"bootstrap.servers": brokers, "log_level": 0, **config})
    until = time.monotonic() + timeout
    try:
        while True:
            there = client.list_topics(timeout=timeout).topics.get(topic)
            if there is not None and there.error is None and len(there.partitions) >= lanes:
                return
            if time.monotonic() > until:
                raise DeliveryError(topic, 1, f"the broker does not show {lanes} partitions of it")
            if there is None or there.error is not None:
                wanted = NewTopic(topic, num_partitions=lanes, replication_factor=-1, config=COMPACTED)
                _done(client.create_topics([wanted])[topic], KafkaError.TOPIC_ALREADY_EXISTS)
            else:
                _done(client.create_partitions([NewPartitions(topic, lanes)])[topic], KafkaError.INVALID_PARTITIONS)
            time.sleep(0.05)
    except KafkaException as error:
        raise DeliveryError(topic, 1, f"cannot be made: {error.args[0].str()}") from None


def _done(future: Any, fine: int) -> None:
    try:
        future.result(ANSWER_SECONDS)
    except KafkaException as error:
        if error.args[0].code() != fine:
            raise
