"""What is sent to the job that is proven, and what has to come of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from confluent_kafka import KafkaException, Producer

from bench.proving.job import event
from ops.broker import BrokerError

PARTITIONS, KEYS, SHARED, BROKEN_EVERY = 3, 7, 5, 97
TICK_SECONDS = 0.02


@dataclass
class Load:
    """Message n of each partition has key n mod KEYS of that partition, and a shared key that all partitions have; every so
    many are broken.

    name: of the job, and what its topics begin with. due: of each partition, when each message was to be sent, monotonic
    seconds.
    """

    name: str
    due: list[list[float]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])

    @property
    def source(self) -> str:
        """The topic that is read."""
        return f"{self.name}-in"

    @property
    def target(self) -> str:
        """The topic of decisions."""
        return f"{self.name}-out"

    @property
    def letters(self) -> str:
        """The topic of dead letters."""
        return f"{self.name}-in.dead"

    @property
    def sent(self) -> int:
        """How many messages have been sent."""
        return sum(map(len, self.due))

    @staticmethod
    def broken(n: int) -> bool:
        """Whether message n of a partition is."""
        return n % BROKEN_EVERY == BROKEN_EVERY - 1

    @staticmethod
    def key(partition: int, n: int) -> str:
        """The key of message n, which no other partition has."""
        return f"p{partition}-k{n % KEYS}"

    @staticmethod
    def shared(n: int) -> str:
        """The key of message n that all partitions have."""
        return f"s{n % SHARED}"

    def decided_on(self) -> Iterator[tuple[str, int, int]]:
        """(place "partition/offset", partition, n) of each message that has to get a decision."""
        for partition, due in enumerate(self.due):
            for n in range(len(due)):
                if not self.broken(n):
                    yield f"{partition}/{n}", partition, n

    def expected(self) -> dict[str, tuple[int, int]]:
        """By place: how many of its key came before, and their sum."""
        found: dict[str, tuple[int, int]] = {}
        held: dict[str, tuple[int, int]] = {}
        for place, partition, n in self.decided_on():
            key = self.key(partition, n)
            count, total = found[place] = held.get(key, (0, 0))
            held[key] = count + 1, total + n
        return found

    def dead(self) -> set[str]:
        """The places of the broken ones."""
        return {f"{p}/{n}" for p, due in enumerate(self.due) for n in range(len(due)) if self.broken(n)}


@contextmanager
def sending(brokers: str, load: Load, rate: float) -> Iterator[None]:
    """Sends `rate` messages a second while this lasts, by a schedule that waits for nobody, in order, each once.

    A partition that is added to `load.due` is sent to from then on. Raises BrokerError.
    """
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )
    ended, failed = threading.Event(), list[BaseException]()

    def send() -> None:
        began, done = time.monotonic(), 0
        partitions = len(load.due)
        while not ended.wait(TICK_SECONDS):
            while done < rate * (time.monotonic() - began):
                if partitions < len(load.due):
                    producer.list_topics(load.source, timeout=10)
                    partitions = len(load.due)
                partition = done % partitions
                n = len(load.due[partition])
                key = load.key(partition, n)
                value = b"{broken" if load.broken(n) else event(key, load.shared(n), n)
                producer.produce(load.source, value, key.encode(), partition)
                load.due[partition].append(began + done / rate)
                done += 1
            producer.poll(0)

    def kept() -> None:
        try:
            send()
        except (KafkaException, BufferError) as error:
            failed.append(error)

    thread = threading.Thread(target=kept, name="load")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        left = producer.flush(60)
        if left or failed:
            raise BrokerError(f"the load was not delivered: {failed[0] if failed else f'{left} messages are left'}")
