"""Messages to Kafka, every delivery confirmed or the job stopped."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sinks.messages import DeliveryError, Messages

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
QUEUE_MESSAGES = 200_000
QUEUE_KBYTES = 1024 * 1024
SLACK_SECONDS = 5.0


class KafkaSink:
    """A sink (sinks/messages.py) that writes to Kafka through librdkafka, in order per key, idempotent, acknowledged by all.

    brokers: bootstrap servers. config: further librdkafka settings, which win over the sink's own; of note
    `delivery.timeout.ms` (120,000: how long a message is tried, and a full queue is waited for), `linger.ms` (1) and
    `queue.buffering.max.messages` / `.kbytes`. clock: seconds, monotonic.

    Nothing is opened here that could fail for want of a broker: an unreachable one shows as DeliveryError when the delivery
    time-out is over.
    """

    def __init__(
        self, brokers: str, config: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        settings: dict[str, Any] = {
            "bootstrap.servers": brokers,
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "delivery.timeout.ms": 120_000,
            "message.max.bytes": MAX_BYTES,
            "queue.buffering.max.messages": QUEUE_MESSAGES,
            "queue.buffering.max.kbytes": QUEUE_KBYTES,
            "log_level": 2,
            **(config or {}),
            "delivery.report.only.error": True,
            "error_cb": self._on_trouble,
        }
        self._seconds = float(settings.get("message.timeout.ms", settings["delivery.timeout.ms"])) / 1000
        self._messages = int(settings["queue.buffering.max.messages"])
        self._bytes = int(settings["queue.buffering.max.kbytes"]) * 1024
        self._clock = clock
        self._trouble = ""
        self._failure: DeliveryError | None = None
        self._handed = 0
        self._topic = ""
        self._closed = False
        self._producer = Producer(settings)

    def write(self, messages: Messages) -> None:
        """Takes messages over, and waits only where the producer's queue is full. Raises DeliveryError."""
        self._producer.poll(0)
        self._check()
        count = len(messages.values)
        size = sum(map(len, messages.values)) + sum(map(len, filter(None, messages.keys)))
        if count > 1 and (count > self._messages or size > self._bytes):
            half = count // 2
            self.write(Messages(messages.topic, messages.keys[:half], messages.values[:half]))
            self.write(Messages(messages.topic, messages.keys[half:], messages.values[half:]))
            return
        self._topic = messages.topic
        self._make_room(count, size)
        entries = [{"key": key, "value": value} for key, value in zip(messages.keys, messages.values, strict=True)]
        try:
            accepted = self._producer.produce_batch(messages.topic, entries, on_delivery=self._on_delivery)
        except (KafkaException, BufferError) as error:
            self._fail(messages.topic, count, str(error))
        else:
            if accepted < count:
                reason = next((str(entry["_error"]) for entry in entries if "_error" in entry), "not accepted")
                self._fail(messages.topic, count - accepted, reason)
        self._check()

    def flush(self) -> None:
        """Returns when every message taken over is confirmed. Raises DeliveryError, at the latest after the time-out."""
        left = self._producer.flush(self._seconds + SLACK_SECONDS)
        self._check()
        if left:
            self._fail(self._topic, left, f"not confirmed within {self._seconds + SLACK_SECONDS:g} s{self._hint()}")
            self._check()
        self._handed, self._trouble = 0, ""

    def close(self) -> None:
        """Gives up what is not confirmed and lets go of the connections."""
        if not self._closed:
            self._closed = True
            self._producer.purge()
            self._producer.close()

    def _make_room(self, count: int, size: int) -> None:
        """Waits until the batch fits whole: accepted in part, a later message could overtake an earlier one of its key."""
        deadline = self._clock() + self._seconds + SLACK_SECONDS
        while waiting := len(self._producer):
            if waiting + count <= self._messages and self._handed + size <= self._bytes:
                break
            if self._clock() > deadline:
                self._fail(self._topic, count, f"the queue stayed full with {waiting} messages{self._hint()}")
            self._producer.poll(0.01)
            self._check()
        else:
            self._handed = 0
        self._handed += size

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called from poll and flush, for failed messages only. What still waits then would overtake, and is given up too."""
        if error is not None:
            if self._failure is None:
                self._producer.purge(in_flight=False)
            hint = self._hint()
            if not hint and error.code() == KafkaError._MSG_TIMED_OUT:
                hint = " (no trouble with a broker seen: is there such a topic?)"
            self._fail(message.topic(), 1, error.str() + hint)

    def _on_trouble(self, error: KafkaError) -> None:
        """Called from poll and flush when a broker is in trouble, which librdkafka will try to overcome by itself."""
        if not self._trouble:
            log.warning("sink: %s", error.str())
        self._trouble = error.str()
        if error.fatal():
            self._fail(self._topic, 1, self._trouble)

    def _hint(self) -> str:
        return f" (the last trouble: {self._trouble})" if self._trouble else ""

    def _fail(self, topic: str, count: int, reason: str) -> None:
        if self._failure is not None:
            topic, count, reason = self._failure.topic, self._failure.count + count, self._failure.reason
        self._failure = DeliveryError(topic, count, reason)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
