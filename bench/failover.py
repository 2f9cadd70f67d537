"""One worker of three is killed under load: how long until there are decisions again, and until nothing waits any more?

    python -m bench.failover --kills 50 --json failover.json                 # a million entities, 10,000 events/s
    python -m bench.failover --kills 5 --entities 100000 --rate 2000

`headrace run --restart` on Apache Kafka. Every entity has an event first, so that the state holds all of them; then events of
random entities come at the given rate, and are decided on. A worker drawn at random is ended by SIGKILL, again and again, each
time a second or more after nothing has waited. **First new decision**: from the kill to the first decision that the broker has
appended 0.1 s or more after the last worker of the killed cluster was gone. **From every partition**: until each has one.
**Lag 0**: until the newest decision of every partition is of one of its events of the last 0.25 s.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from bench.brokers import Served, broker, counting, make
from bench.machine import commit, machine, versions
from bench.options import leave_on_sigterm
from bench.proving.job import event, make_model
from bench.show import say
from bench.systems import ROOT
from ops.broker import BrokerError
from ops.workers import as_environment, end
from streams.settings import JobSettings

NAME, WORKERS, PARTITIONS = "failover", 3, 3
SHARED = 1_000
GONE, SOON = 0.1, 0.25
LIMIT_SECONDS = 120.0
JOB = f"""
from bench.proving.job import pipeline

job = pipeline("{NAME}")
"""


@dataclass
class Load:
    """What is sent: so many messages to each partition."""

    entities: int
    rate: float
    sent: list[int] = field(default_factory=lambda: [0] * PARTITIONS)


def fill(served: Served, load: Load) -> None:
    """An event of each entity."""
    producer = Producer({"bootstrap.servers": served.address, "linger.ms": 50, "queue.buffering.max.messages": 2_000_000})
    for n in range(load.entities):
        partition = n % PARTITIONS
        producer.produce(f"{NAME}-in", event(f"k{n}", f"s{n % SHARED}", n), None, partition)
        load.sent[partition] += 1
        if n % 10_000 == 0:
            producer.poll(0)
    if producer.flush(120):
        raise BrokerError("the entities' first events were not delivered")


@contextmanager
def sending(served: Served, load: Load) -> Iterator[None]:
    """Sends events of random entities while this lasts; an entity always goes to the same partition."""
    producer = Producer({"bootstrap.servers": served.address, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    ended, rng = threading.Event(), random.Random(1)

    def send() -> None:
        began, count = time.monotonic(), 0
        while not ended.wait(0.01):
            due = int(load.rate * (time.monotonic() - began))
            while count < due:
                entity = rng.randrange(load.entities)
                partition = entity % PARTITIONS
                producer.produce(
                    f"{NAME}-in", event(f"k{entity}", f"s{entity % SHARED}", load.entities + count), None, partition
                )
                load.sent[partition] += 1
                count += 1
            producer.poll(0)

    thread = threading.Thread(target=send, name="load")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        producer.flush(30)


@contextmanager
def running(job: str, settings: JobSettings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run --restart`; killed at the end if it is still there."""
    command = [sys.executable, "-m", "ops", "run", job, "--restart", "--from", "earliest"]
    environment = os.environ | as_environment(settings) | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, process_group=0
        )
    try:
        yield process
    finally:
        end([process], 0)


def words(log: Path) -> str:
    """The last thing that the job said."""
    return (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]


class Watched:
    """The newest decision of each partition: of which event, and when the broker appended it (s)."""

    def __init__(self, served: Served) -> None:
        self._consumer = Consumer({"bootstrap.servers": served.address, "group.id": NAME, "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(f"{NAME}-out", number, OFFSET_END) for number in range(PARTITIONS)])
        self.decided = [-1] * PARTITIONS
        self.first: dict[int, float] = {}
        self._after = float("inf")

    def since(self, moment: float) -> None:
        """Looks from here on for the first decision of each partition appended after this moment (epoch seconds)."""
        self.first, self._after = {}, moment

    def look(self) -> None:
        """Takes what has come."""
        newest = {}
        for message in self._consumer.consume(20_000, 0.01):
            if message.error() is None:
                newest[message.partition()] = message
                appended = message.timestamp()[1] / 1e3
                if appended > self._after:
                    self.first.setdefault(message.partition(), appended)
        for message in newest.values():
            partition, offset = json.loads(message.value())["decision_id"].split("/")[-2:]
            self.decided[int(partition)] = max(self.decided[int(partition)], int(offset))

    def lag(self, load: Load) -> int:
        """How many events wait, at most."""
        return max(sent - 1 - decided for sent, decided in zip(load.sent, self.decided, strict=True))


def settled(watched: Watched, load: Load, job: psutil.Process, log: Path, seconds: float = 0.0) -> float:
    """Waits until nothing waits, and for some seconds more; when that was (epoch seconds)."""
    deadline, since = time.time() + LIMIT_SECONDS, 0.0
    while not since or time.time() < since + seconds:
        watched.look()
        now = time.time()
        if not since and watched.lag(load) <= load.rate * SOON / PARTITIONS:
            since = now
        if now > deadline or not job.is_running() or job.status() == psutil.STATUS_ZOMBIE:
            raise TimeoutError(f"{watched.lag(load):,} events still wait; the job said: {words(log)}")
    return since


def kill(watched: Watched, load: Load, job: psutil.Process, log: Path, rng: random.Random) -> dict[str, float]:
    """Kills a worker; the seconds until the first decision, all partitions' first, and lag 0."""
    workers = job.children()
    victim = rng.choice(workers)
    before = sum(load.sent)
    killed = time.time()
    victim.send_signal(signal.SIGKILL)
    psutil.wait_procs(workers, timeout=20)
    gone = time.time()
    watched.since(gone + GONE)
    deadline = time.time() + LIMIT_SECONDS
    while len(watched.first) < PARTITIONS:
        watched.look()
        if time.time() > deadline:
            raise TimeoutError(f"no decisions for {LIMIT_SECONDS:.0f} s: {words(log)}")
    lagging = settled(watched, load, job, log)
    return {
        "gone_s": gone - killed,
        "first_s": min(watched.first.values()) - killed,
        "all_s": max(watched.first.values()) - killed,
        "lag_0_s": lagging - killed,
        "rate": (sum(load.sent) - before) / (time.time() - killed),
    }


def measured(options: argparse.Namespace, served: Served, home: Path) -> list[dict[str, float]]:
    """Every kill."""
    rng, load = random.Random(options.seed), Load(options.entities, options.rate)
    make(served, [f"{NAME}-in", f"{NAME}-in.dead"], PARTITIONS)
    make(served, [f"{NAME}-out"], PARTITIONS, appended=True)
    values: dict[str, Any] = {"brokers": served.address, "home": home, "metrics_port": 0, "delivery": options.mode}
    settings = JobSettings(
        **values, model_look_seconds=0, epoch_seconds=options.epoch, workers=WORKERS, restart_deaths=options.kills + 10
    )
    make_model(settings, home / "model")
    file, log = home / "job.py", options.log or home / "log"
    file.write_text(JOB)
    fill(served, load)
    say(f"{options.entities:,} entities")
    seen = []
    with counting(served, f"{NAME}-out") as count, running(f"{file}:job", settings, log) as process:
        deadline = time.monotonic() + 600
        while count() < options.entities:
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{count():,} of {options.entities:,} decided; the job said: {words(log)}")
            time.sleep(0.2)
        say(f"all decided; {options.rate:,.0f} events/s from now on")
        watched, job = Watched(served), psutil.Process(process.pid)
        with sending(served, load):
            for number in range(options.kills):
                settled(watched, load, job, log, seconds=rng.uniform(1, 3))
                seen.append(kill(watched, load, job, log, rng))
                say(f"kill {number + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in seen[-1].items()))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.failover", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=10_000, help="events a second")
    parser.add_argument("--epoch", type=float, default=0.25)
    parser.add_argument("--mode", choices=["at_least_once", "exactly_once"], default="at_least_once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broker", default="apache", help="apache or HOST:PORT")
    parser.add_argument("--log", type=Path, default=None, help="a file for what the job says")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="headrace-failover-") as home, broker(options.broker) as served:
        kills = measured(options, served, Path(home))
    names = {"first_s": "first new decision", "all_s": "from every partition", "lag_0_s": "lag 0"}
    for name, what in names.items():
        values = [one[name] for one in kills]
        print(f"{what}: p50 {np.quantile(values, 0.5):.2f} s, p95 {np.quantile(values, 0.95):.2f} s of {len(values)} kills")
    if options.json:
        settings = {name: getattr(options, name) for name in ("entities", "rate", "epoch", "mode", "seed")}
        head, dirty = commit()
        told = {"kind": "failover", "settings": settings | {"workers": WORKERS}, "kills": kills, "commit": head, "dirty": dirty}
        options.json.write_text(json.dumps(told | {"machine": machine(), "versions": versions()}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
