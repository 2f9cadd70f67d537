"""The floor of latency: passes messages on, and nothing else.

python -m bench.peers.relay BROKERS INPUT OUTPUT LINGER_MS [CONTAINS]

Reads all partitions of INPUT from their beginning and writes it to OUTPUT with the same key, acks=all and idempotent;
with CONTAINS only messages that contain this text, so that as many come out as a system under test would answer. Says "ready"
when it reads. It waits in `poll`, which returns with the first message that comes, and takes what else is there by `consume`
with no time-out: `consume` alone waits out its time to fill a batch.
"""

import signal
import sys
from collections.abc import Sequence
from types import FrameType

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

MOST = 4096
WAIT_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = sys.argv[1:] if arguments is None else arguments
    if not 4 <= len(given) <= 5:
        print(__doc__, file=sys.stderr)
        return 2
    brokers, source, target, linger = given[:4]
    contains = given[4].encode() if len(given) == 5 else b""
    leaving: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        leaving.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "relay",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 5,
            "fetch.queue.backoff.ms": 50,
            "queued.min.messages": 200_000,
        }
    )
    failed: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": linger,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 1_000_000,
            "delivery.report.only.error": True,
            "log_level": 2,
        }
    )
    partitions = consumer.list_topics(source, timeout=10).topics[source].partitions
    consumer.assign([TopicPartition(source, number, OFFSET_BEGINNING) for number in partitions])
    print("ready", flush=True)
    while not leaving and not failed:
        first = consumer.poll(WAIT_SECONDS)
        messages = [] if first is None else [first, *consumer.consume(MOST, 0)]
        entries = []
        for message in messages:
            if message.error() is not None:
                raise KafkaException(message.error())
            value = message.value()
            if contains in value:
                entries.append({"key": message.key(), "value": value})
        if entries:
            producer.produce_batch(target, entries, on_delivery=lambda error, message: failed.append(str(error)))
        producer.poll(0)
    left = producer.flush(10)
    consumer.close()
    if failed or left:
        print(f"relay: {left or len(failed)} messages were not delivered: {failed[:1]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
