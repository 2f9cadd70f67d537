"""A consumer of its own that reads what a job writes: what the demo counts and measures, it counts and measures here."""

import threading
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition


class Watcher:
    """Reads topics from their beginning on a thread, keeps each message's bytes, and when it came."""

    def __init__(self, brokers: str, topics: Sequence[str], config: Mapping[str, str]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "headrace-watch",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "fetch.wait.max.ms": 5,
                "fetch.message.max.bytes": 16 * 1024 * 1024,
                "log_level": 2,
                **config,
            }
        )
        there = self._consumer.list_topics(timeout=10).topics
        self._consumer.assign([TopicPartition(name, p, OFFSET_BEGINNING) for name in topics for p in there[name].partitions])
        self.values: dict[str, list[bytes]] = {name: [] for name in topics}
        self.came: dict[str, list[tuple[int, float]]] = {name: [] for name in topics}
        self._stop = threading.Event()
        self.failed: KafkaException | None = None
        self._thread = threading.Thread(target=self._read, name="watcher", daemon=True)
        self._thread.start()

    def count(self, topic: str) -> int:
        """Messages read from a topic so far."""
        return len(self.values[topic])

    def last_came(self, topic: str) -> float:
        """When the last message of a topic came (time.time); 0 before the first."""
        return self.came[topic][-1][1] if self.came[topic] else 0.0

    def when(self, topic: str, start: int) -> list[float]:
        """When each message of a topic from number `start` on came (time.time)."""
        times: list[float] = []
        before = 0
        for count, at in self.came[topic]:
            times += [at] * (count - max(before, start)) if count > start else []
            before = count
        return times

    def read_to_end(self, quiet: float = 0.5) -> None:
        """Returns when nothing has come for `quiet` seconds. Raises what the thread met."""
        seen = -1
        while seen != (seen := sum(map(len, self.values.values()))):
            time.sleep(quiet)
        if self.failed:
            raise self.failed

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            messages = self._consumer.consume(10_000, 0.002)
            now = time.time()
            for message in messages:
                if message.error() is not None:
                    self.failed = KafkaException(message.error())
                    return
                self.values[message.topic()].append(message.value())
            for topic in {message.topic() for message in messages}:
                self.came[topic].append((len(self.values[topic]), now))
