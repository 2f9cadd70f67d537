"""Faults that are not kills of the job alone: rescaled, the broker stopped, leaders moved, partitions added, all under load."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from bench.brokers import HEAP, Served
from bench.proving.lives import Life, Stand, StuckError, living
from bench.proving.seen import caught_up, latencies, recovery, slow, watching
from bench.show import say
from ops.broker import Broker, BrokerError, apache, find_apache, free_port

REPLICATED = {
    "default.replication.factor": "2",
    "offsets.topic.replication.factor": "2",
    "transaction.state.log.replication.factor": "2",
    "min.insync.replicas": "1",
}
UP_SECONDS, WATCH_SECONDS, AWAY_SECONDS, LEADER_SECONDS = 6.0, 25.0, 10.0, 30.0
WARM_SECONDS, CATCH_UP_SECONDS = 15.0, 120.0


class Own:
    """A broker of the prover's own, or two, that it can stop and start again where it was."""

    def __init__(self, folder: Path, two: bool = False) -> None:
        """Raises BrokerError."""
        home = find_apache()
        if home is None:
            raise BrokerError("no Apache Kafka: set KAFKA_HOME to a Kafka 4 download")
        self._home, self._folder = home, folder
        self._ports = [free_port() for _ in range(2 if two else 1)]
        self._lives: list[ExitStack] = [ExitStack() for _ in self._ports]
        self._brokers: list[Broker | None] = [None for _ in self._ports]
        for number in range(len(self._ports)):
            self.start(number)

    @property
    def served(self) -> Served:
        """As the harness knows it."""
        broker = self._brokers[0]
        return Served("apache", ",".join(f"127.0.0.1:{port}" for port in self._ports), broker.process.pid if broker else None)

    def start(self, number: int = 0) -> None:
        """Starts a broker on its port and its data; returns when it answers."""
        more, first = (REPLICATED if len(self._ports) > 1 else {}), self._folder / "kafka-0"
        folder, joins = self._folder / f"kafka-{number}", first if number else None
        self._brokers[number] = self._lives[number].enter_context(
            apache(self._home, folder, self._ports[number], more=more, joins=joins, heap=HEAP)
        )

    def stop(self, number: int = 0, hard: bool = False) -> None:
        """Stops a broker, by SIGKILL if hard; returns when it is gone."""
        broker = self._brokers[number]
        if hard and broker is not None:
            broker.process.kill()
            broker.process.wait()
        self._lives[number].close()

    def signal(self, what: signal.Signals) -> None:
        """Sends a signal to the first broker."""
        broker = self._brokers[0]
        assert broker is not None
        os.kill(broker.process.pid, what)

    def close(self) -> None:
        """Stops all, the first at last."""
        for life in reversed(self._lives):
            life.close()


@contextmanager
def own(folder: Path, two: bool = False) -> Iterator[Own]:
    """An `Own` that is stopped at the end."""
    made = Own(folder, two)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Fault:
    """What is done to a broker. begin, end: return when it has begun, and when it is over; seconds: in between, at least."""

    what: str
    begin: Callable[[], None]
    end: Callable[[], None]
    seconds: float


def rescale(stand: Stand, workers: Sequence[int]) -> dict[str, Any]:
    """Each number of workers twice, one after another, ended by SIGTERM and SIGKILL in turns."""
    turns = [*workers, *workers]
    if len(workers) % 2 == 0:
        turns.append(workers[0])
    told = []
    for number, count in enumerate(turns):
        hard = bool(number % 2)
        with living(stand, count, number) as life:
            up(life)
            ready = time.monotonic() - life.began
            time.sleep(UP_SECONDS)
            if life.process.poll() is not None:
                raise StuckError(f"with {count} workers it died: {life.said()}")
            if hard:
                life.kill()
            elif died := life.leave():
                raise StuckError(f"SIGTERM with {count} workers: {died}")
        told.append({"workers": count, "ended_by": "SIGKILL" if hard else "SIGTERM", "start_s": round(ready, 1)})
        say(f"{count} workers, ready in {ready:.1f} s, ended by {told[-1]['ended_by']}")
    return {"turns": told}


def grow(stand: Stand, workers: Sequence[int]) -> dict[str, Any]:
    """Two partitions are added to the topic while the job runs, and one between two runs; it is killed and stopped."""
    told = []
    for number, (more, hard) in enumerate([(2, True), (1, False), (0, False)]):
        with living(stand, workers[number % len(workers)], number) as life:
            up(life)
            time.sleep(UP_SECONDS)
            if hard:
                add(stand, more)
                time.sleep(UP_SECONDS)
                life.kill()
            elif died := life.leave():
                raise StuckError(f"SIGTERM: {died}")
        if more and not hard:
            add(stand, more)
        told.append({"partitions": len(stand.load.due), "workers": life.workers, "ended_by": "SIGKILL" if hard else "SIGTERM"})
        say(f"{len(stand.load.due)} partitions after a life with {life.workers} workers")
    return {"turns": told}


def add(stand: Stand, more: int) -> None:
    """Adds partitions to the topic that is read, and sends to them."""
    wanted = len(stand.load.due) + more
    client = AdminClient({"bootstrap.servers": stand.served.address})
    client.create_partitions([NewPartitions(stand.load.source, wanted)])[stand.load.source].result(30)
    stand.load.due += [[] for _ in range(more)]


def outage(stand: Stand, broker: Own, workers: int, seconds: float) -> dict[str, Any]:
    """The broker stands still (SIGSTOP) for so long, and is stopped and started again after so long."""

    return under_load(
        stand,
        workers,
        [
            Fault("broker SIGSTOP", lambda: broker.signal(signal.SIGSTOP), lambda: broker.signal(signal.SIGCONT), seconds),
            Fault("broker stopped and started", broker.stop, broker.start, seconds),
        ],
    )


def leaders(stand: Stand, broker: Own, workers: int) -> dict[str, Any]:
    """The second of two brokers is stopped, killed, and the leaders of its partitions move, there and back."""
    topics = [stand.load.source, stand.load.target, f"headrace-{stand.load.name}-progress", "__transaction_state"]

    def gone(hard: bool) -> Callable[[], None]:
        def begin() -> None:
            before = leading(stand, topics)
            broker.stop(1, hard)
            moved.append({"what": "killed" if hard else "stopped", "moved": changed(stand, topics, before)})

        return begin

    def came_back() -> None:
        broker.start(1)
        before = leading(stand, topics)
        elect(stand)
        moved.append({"what": "back", "moved": changed(stand, topics, before)})

    moved: list[dict[str, Any]] = []
    found = under_load(
        stand,
        workers,
        [
            Fault("second broker stopped", gone(False), came_back, AWAY_SECONDS),
            Fault("second broker killed", gone(True), came_back, AWAY_SECONDS),
        ],
    )
    return found | {"leaders": moved}


def leading(stand: Stand, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """The leader of each partition of these topics, as far as they are there."""
    there = AdminClient({"bootstrap.servers": stand.served.address, "log_level": 0}).list_topics(timeout=20).topics
    return {(name, number): one.leader for name in topics if name in there for number, one in there[name].partitions.items()}


def changed(stand: Stand, topics: Sequence[str], before: dict[tuple[str, int], int]) -> int:
    """How many partitions have another leader than before; waits a while for one. Raises StuckError."""
    deadline = time.monotonic() + LEADER_SECONDS
    while time.monotonic() < deadline:
        now = leading(stand, topics)
        if moved := sum(now.get(place, leader) not in (leader, -1) for place, leader in before.items()):
            return moved
        time.sleep(0.5)
    raise StuckError(f"no leader of {', '.join(topics)} has moved within {LEADER_SECONDS:.0f} s")


def elect(stand: Stand) -> None:
    """The leaders that are preferred lead again, once they are in sync."""
    client = AdminClient({"bootstrap.servers": stand.served.address, "log_level": 0})
    deadline = time.monotonic() + LEADER_SECONDS
    while time.monotonic() < deadline:
        try:
            outcome = client.elect_leaders(ElectionType.PREFERRED, None).result()
        except KafkaException:
            outcome = {None: KafkaException()}
        if not any(outcome.values()):
            return
        time.sleep(1)


def under_load(stand: Stand, workers: int, faults: Sequence[Fault]) -> dict[str, Any]:
    """One life of the job with faults in it, and how each showed in latency."""
    moments: list[tuple[str, float, float, float]] = []
    with watching(stand.served.address, stand.load.target) as seen, living(stand, workers, 0) as life:
        up(life)
        steady(life, stand, seen)
        for fault in faults:
            began = time.monotonic()
            fault.begin()
            time.sleep(max(0.0, began + fault.seconds - time.monotonic()))
            fault.end()
            back = time.monotonic()
            say(f"{fault.what}: over after {back - began:.1f} s")
            time.sleep(WATCH_SECONDS)
            moments.append((fault.what, began, back, time.monotonic()))
            if life.process.poll() is not None:
                raise StuckError(f"{fault.what}: the job died: {life.said()}")
        if died := life.leave():
            raise StuckError(f"SIGTERM: {died}")
        due, took = latencies(stand.load, seen)
    found = [{"what": what} | recovery(due, took, began, back, until) for what, began, back, until in moments]
    for each in found:
        say(
            f"{each['what']}: p99 {each['normal_p99_ms']} ms before it, longest {each['longest_ms']} ms; once over, lag 0 "
            f"after {each['lag_0_s']} s, latency back to normal after {each['back_to_normal_s']} s"
        )
    return {"faults": found, "slow": slow(found, AWAY_SECONDS)}


def steady(life: Life, stand: Stand, seen: Mapping[str, float]) -> None:
    """Waits until the job has caught up, and some time more. Raises StuckError."""
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while not caught_up(stand.load, seen, 2.0):
        if time.monotonic() > deadline or life.process.poll() is not None:
            raise StuckError(f"it did not catch up with the load: {life.said()}")
        time.sleep(0.5)
    time.sleep(WARM_SECONDS)


def up(life: Life) -> None:
    """Waits until a life is ready. Raises StuckError if it dies before."""
    if not life.ready():
        raise StuckError(f"it died at its start: {life.said()}")
