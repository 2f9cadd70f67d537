"""The prover: a job on Apache Kafka is killed again and again, and then every message of its topics is counted.

    python -m bench.faults --kills 60 --workers 1,2,3 --mode exactly_once --json faults.json
    python -m bench.faults --kills 9 --plant commit-in-snapshot      # a bug that it has to find: ends with code 1

Each kill starts `headrace run` with one of the numbers of workers, so that the job is rescaled all along, and ends it by
SIGKILL: at a point of delivery (ops/faults.py), of one worker, or at any time, of all. Messages come in meanwhile, some of them
broken. Then the topics are read with read_committed: each message must have one decision or one dead letter, and what the
decision says of its key (how many messages before, and their sum) must be what the messages say.
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
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from bench.brokers import Served, broker, counting, make
from bench.faults_job import COUNT, PLANTS, SUM, event, make_model
from bench.machine import commit, machine, versions
from bench.show import say
from bench.systems import ROOT
from ops.broker import BrokerError
from ops.faults import KILL_AT, POINTS
from ops.workers import as_environment
from streams.settings import JobSettings

PARTITIONS, KEYS, BROKEN_EVERY = 3, 7, 97
JOB = """
from bench.faults_job import {plant}pipeline

{call}job = pipeline("{name}")
"""
START_SECONDS, REACH_SECONDS, DRAIN_SECONDS = 150.0, 25.0, 120.0


@dataclass
class Load:
    """What is sent: message n of each partition has key n mod KEYS of that partition; every so many are broken.

    name: of the job, and what its topics begin with.
    """

    name: str
    sent: list[int] = field(default_factory=lambda: [0] * PARTITIONS)

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

    @staticmethod
    def broken(n: int) -> bool:
        """Whether message n of a partition is."""
        return n % BROKEN_EVERY == BROKEN_EVERY - 1

    @staticmethod
    def key(partition: int, n: int) -> str:
        """The key of message n."""
        return f"p{partition}-k{n % KEYS}"

    def expected(self) -> dict[str, tuple[int, int]]:
        """By the place "partition/offset" of what is decided on: how many of its key came before, and their sum."""
        found: dict[str, tuple[int, int]] = {}
        for partition, sent in enumerate(self.sent):
            held: dict[str, tuple[int, int]] = {}
            for n in range(sent):
                if not self.broken(n):
                    count, total = held.get(self.key(partition, n), (0, 0))
                    found[f"{partition}/{n}"] = count, total
                    held[self.key(partition, n)] = count + 1, total + n
        return found

    def dead(self) -> set[str]:
        """The places of the broken ones."""
        return {f"{p}/{n}" for p, sent in enumerate(self.sent) for n in range(sent) if self.broken(n)}


@contextmanager
def sending(served: Served, load: Load, rate: float) -> Iterator[None]:
    """Sends `rate` messages a second while this lasts, in order, each once."""
    producer = Producer({"bootstrap.servers": served.address, "enable.idempotence": True, "linger.ms": 5})
    ended = threading.Event()

    def send() -> None:
        began = time.monotonic()
        while not ended.wait(0.02):
            while sum(load.sent) < rate * (time.monotonic() - began):
                partition = sum(load.sent) % PARTITIONS
                n = load.sent[partition]
                key = load.key(partition, n)
                producer.produce(load.source, b"{broken" if load.broken(n) else event(key, n), key.encode(), partition)
                load.sent[partition] += 1
            producer.poll(0)

    thread = threading.Thread(target=send, name="load")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if producer.flush(30):
            raise BrokerError("the load was not delivered")


@contextmanager
def running(job: str, settings: JobSettings, kill_at: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`headrace run` in a process group of its own; what is left of it at the end is killed."""
    environment = os.environ | as_environment(settings) | {KILL_AT: kill_at, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ops", "run", job, "--from", "earliest"]
    if any((settings.home / "recovery").glob("*/made")):
        command = command[:-2]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ready(process: subprocess.Popen[bytes], log: Path, workers: int) -> bool:
    """Waits until all workers say that they are ready; False if the job has died before."""
    deadline = time.monotonic() + START_SECONDS
    while log.read_text().count(" ready") < workers:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TimeoutError(f"the job was not ready within {START_SECONDS:.0f} s: {words(log)}")
        time.sleep(0.02)
    return True


def words(log: Path) -> str:
    """The last thing a job said."""
    return (log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]


@dataclass
class Kills:
    """What became of the kills: by point and by number of workers; not_reached: points that the job did not pass in time."""

    points: Counter[str] = field(default_factory=Counter)
    workers: Counter[int] = field(default_factory=Counter)
    not_reached: int = 0
    refused: list[str] = field(default_factory=list)


def kill(rng: random.Random, job: str, settings: JobSettings, point: str, log: Path, kills: Kills) -> None:
    """One life of the job, from its start to its end by SIGKILL."""
    victim = rng.randrange(settings.workers)
    times = rng.randint(1, 40) if point.startswith("stage") else rng.randint(1, 5)
    with running(job, settings, f"{point}:{times}:{victim}" if point != "random" else "", log) as process:
        alive = ready(process, log, settings.workers)
        if point == "random" and alive:
            time.sleep(rng.uniform(0, 1.5))
            os.killpg(process.pid, signal.SIGKILL)
        try:
            process.wait(REACH_SECONDS)
        except subprocess.TimeoutExpired:
            kills.not_reached += 1
            return
    said = words(log)
    if point != "random" and "SIGKILL" not in said and process.returncode != -signal.SIGKILL:
        kills.refused.append(f"{point}, {settings.workers} workers: {said}")
        return
    kills.points[point] += 1
    kills.workers[settings.workers] += 1


def drain(served: Served, load: Load, job: str, settings: JobSettings, log: Path) -> str:
    """One last life without a kill, until nothing comes any more; what it died of, if it did."""
    with counting(served, load.target) as count, running(job, settings, "", log) as process:
        if not ready(process, log, settings.workers):
            return words(log)
        deadline, seen, since = time.monotonic() + DRAIN_SECONDS, -1, time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < 5:
            if (now := count()) != seen:
                seen, since = now, time.monotonic()
            if process.poll() is not None:
                return words(log)
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            return words(log)
    return ""


def committed(served: Served, topic: str) -> list[dict[str, Any]]:
    """All that a consumer with read_committed gets of a topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": served.address,
            "group.id": "faults",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    found, left = [], set(partitions)
    deadline = time.monotonic() + 60
    while left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{topic}: partitions {sorted(left)} have no end: a transaction is open")
        for message in consumer.consume(10_000, 0.1):
            if message.error() is None:
                found.append(json.loads(message.value()))
            elif message.error().code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            else:
                raise KafkaException(message.error())
    consumer.close()
    return found


def audit(load: Load, decisions: Sequence[dict[str, Any]], dead: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a consumer sees. contradict: repeats that say something else than the first message of their id."""
    expected, first = load.expected(), dict[str, dict[str, Any]]()
    contradict = 0
    for decision in decisions:
        place = decision["decision_id"].removeprefix(f"{load.name}/{load.source}/")
        said = first.setdefault(place, decision)
        contradict += any(said[name] != decision[name] for name in ("features", "score", "decision"))
    state = [
        f"{place}: expected {expected[place]}, got {(said['features'][COUNT], said['features'][SUM])}"
        for place, said in first.items()
        if place in expected and (said["features"][COUNT], said["features"][SUM] or 0) != expected[place]
    ]
    letters = Counter(f"{letter['partition']}/{letter['offset']}" for letter in dead)
    return {
        "messages": sum(load.sent),
        "decided": len(first),
        "lost": len(expected.keys() - first.keys()),
        "unknown": len(first.keys() - expected.keys()),
        "repeats": len(decisions) - len(first),
        "contradict": contradict,
        "state_wrong": len(state),
        "first_wrong": state[:1],
        "dead": len(letters),
        "dead_lost": len(load.dead() - letters.keys()),
        "dead_repeats": len(dead) - len(letters),
    }


def faults(audited: dict[str, Any], kills: Kills, mode: str, died: str) -> list[str]:
    """What is not as promised."""
    wrong = ["lost", "unknown", "state_wrong", "dead_lost"]
    if mode == "exactly_once":
        wrong += ["repeats", "dead_repeats"]
    found = [f"{name}: {audited[name]:,}" for name in wrong if audited[name]]
    found += [f"the job did not go on: {said}" for said in kills.refused[:3]]
    return found + ([f"the last run died: {died}"] if died else [])


def prove(options: argparse.Namespace, served: Served, home: Path) -> tuple[dict[str, Any], list[str]]:
    """Kills, drains and audits; returns what was seen, and what is not as promised."""
    rng, load, kills = random.Random(options.seed), Load(options.name), Kills()
    make(served, [load.source, load.target], PARTITIONS)
    make(served, [load.letters], 1)
    values: dict[str, Any] = {"brokers": served.address, "home": home, "metrics_port": 0, "delivery": options.mode}
    base = JobSettings(**values, epoch_seconds=options.epoch)
    make_model(base, home / "model")
    plant = PLANTS.get(options.plant, "")
    file = home / "job.py"
    text = JOB.replace("{plant}", f"{plant}, " if plant else "").replace("{call}", f"{plant}()\n" if plant else "")
    file.write_text(text.replace("{name}", load.name))
    points = options.points if options.mode == "exactly_once" else []
    began = time.monotonic()
    with sending(served, load, options.rate):
        for number in range(options.kills):
            turn = [*points, *["random"] * (len(points) // 4 or not points)]
            point, workers = turn[number % len(turn)], options.workers[number % len(options.workers)]
            settings = base.model_copy(update={"workers": workers})
            kill(rng, f"{file}:job", settings, point, home / f"kill-{number}.log", kills)
            say(f"{time.monotonic() - began:6.0f} s  kill {number + 1} of {options.kills}: {point}, {workers} workers")
    died = drain(served, load, f"{file}:job", base.model_copy(update={"workers": options.workers[-1]}), home / "last.log")
    audited = audit(load, committed(served, load.target), committed(served, load.letters))
    told: dict[str, Any] = {"points": dict(kills.points), "workers": {str(k): n for k, n in kills.workers.items()}}
    told |= {"not_reached": kills.not_reached, "refused": kills.refused}
    return {"kills": told, **audited, "seconds": round(time.monotonic() - began)}, faults(audited, kills, options.mode, died)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if anything was lost, doubled or wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=lambda text: [int(each) for each in text.split(",")], default=[1, 2, 3])
    parser.add_argument("--mode", choices=["exactly_once", "at_least_once"], default="exactly_once")
    parser.add_argument("--rate", type=float, default=500, help="messages a second")
    parser.add_argument("--epoch", type=float, default=0.25)
    parser.add_argument("--points", type=lambda text: text.split(","), default=list(POINTS), help="exactly once: where to kill")
    parser.add_argument("--name", default="faults", help="of the job, and what its topics begin with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plant", choices=sorted(PLANTS), default="", help="a bug that has to be found")
    parser.add_argument("--broker", default="apache", help="apache or HOST:PORT")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as home, broker(options.broker) as served:
        seen, wrong = prove(options, served, Path(home))
    settings = {"mode": options.mode, "epoch_seconds": options.epoch, "rate": options.rate, "seed": options.seed}
    settings |= {"partitions": PARTITIONS, "workers": options.workers, "plant": options.plant}
    head, dirty = commit()
    whole = {"kind": "faults", "settings": settings, "seen": seen, "wrong": wrong, "commit": head, "dirty": dirty}
    if options.json:
        options.json.write_text(json.dumps(whole | {"machine": machine(), "versions": versions()}, indent=1) + "\n")
    print(json.dumps(seen, indent=1))
    print(f"{seen['repeats']:,} repeats, of which {seen['contradict']:,} contradict the first message of their id")
    print("WRONG: " + "; ".join(wrong) if wrong else "as promised: nothing lost, nothing doubled, state right")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
