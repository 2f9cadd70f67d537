"""The lives of a job: started by `headrace run`, ended by SIGKILL or SIGTERM, and drained at last."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from bench.brokers import Served, counting
from bench.proving.job import make_model
from bench.proving.load import Load
from bench.show import say
from bench.systems import ROOT
from ops.faults import KILL_AT, last_words
from ops.workers import as_environment
from streams.settings import JobSettings

JOB = """
from bench.proving.job import {plant}pipeline

{call}job = pipeline("{name}")
"""
RANDOM, STARTING = "random", "starting"
GUESSED_START_SECONDS = 4.0
SAY_SECONDS, START_SECONDS, REACH_SECONDS, GONE_SECONDS = 30.0, 600.0, 30.0, 10.0
DRAIN_SECONDS, QUIET_SECONDS, LEAVE_SECONDS = 180.0, 15.0, 90.0


class StuckError(RuntimeError):
    """The job did not do within a long time what it has to; the message says what."""


@dataclass(frozen=True)
class Stand:
    """Where a job is proven: the broker, what is sent, the job's file and settings, and a folder for logs."""

    served: Served
    load: Load
    file: Path
    base: JobSettings

    @classmethod
    def made(cls, served: Served, home: Path, name: str, plant: str, settings: dict[str, Any]) -> "Stand":
        """With a model and a job's file in `home`. plant: the function in bench/proving/job.py that makes a bug, or nothing."""
        settings = {"model_look_seconds": 0} | settings
        base = JobSettings(**settings, brokers=served.address, home=home, metrics_port=0)
        make_model(base, home / "model")
        file = home / f"{name}.py"
        text = JOB.replace("{plant}", f"{plant}, " if plant else "").replace("{call}", f"{plant}()\n" if plant else "")
        file.write_text(text.replace("{name}", name))
        return cls(served, Load(name), file, base)

    def log(self, number: int | str) -> Path:
        """Where a life's words go."""
        return self.file.with_name(f"{self.load.name}-{number}.log")


@dataclass
class Life:
    """A process of `headrace run` that has been started, in a process group of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    workers: int
    began: float

    def said(self) -> str:
        """The last thing it said."""
        return (self.log.read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]

    def ready(self, times: int = 1) -> bool:
        """Waits until all workers have said so often that they are ready; False if it has died before. Tells how long it takes.

        Raises StuckError after START_SECONDS.
        """
        began = time.monotonic()
        told = began + SAY_SECONDS
        while self.log.read_text(errors="replace").count(" ready") < times * self.workers:
            if self.process.poll() is not None:
                return False
            now = time.monotonic()
            if now - began > START_SECONDS:
                raise StuckError(f"{self.workers} workers were not ready within {START_SECONDS:.0f} s: {self.said()}")
            if now > told:
                told = now + SAY_SECONDS
                say(f"        not ready after {now - began:.0f} s, waiting on; it says: {self.said()}")
            time.sleep(0.02)
        return True

    def passed(self, point: str, times: int) -> bool:
        """Waits until its workers have killed themselves so often, the last time at `point`; False if that does not come."""
        deadline = time.monotonic() + REACH_SECONDS
        while True:
            said = [line for line in self.log.read_text(errors="replace").splitlines() if last_words("") in line]
            if len(said) >= times:
                return said[times - 1].endswith(last_words(point))
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.02)

    def revived(self) -> int:
        """How often it has been started again."""
        return self.log.read_text(errors="replace").count("; started again")

    def kill(self) -> None:
        """SIGKILL to all its processes; returns when they are gone."""
        try:
            workers = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            workers = []
        self.process.kill()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        self.process.wait()
        psutil.wait_procs(workers, GONE_SECONDS)

    def leave(self) -> str:
        """SIGTERM; what it died of, if it did not leave in order. Raises StuckError."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            raise StuckError(f"SIGTERM, and not gone within {LEAVE_SECONDS:.0f} s: {self.said()}") from None
        return f"code {code}: {self.said()}" if code else ""


@contextmanager
def living(stand: Stand, workers: int, number: int | str, kill_at: str = "", again: bool = False) -> Iterator[Life]:
    """The job, killed at the end if it is still there. kill_at: see ops/faults.py; again: it is started again when it dies."""
    settings = stand.base.model_copy(update={"workers": workers})
    environment = os.environ | as_environment(settings) | {KILL_AT: kill_at, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ops", "run", f"{stand.file}:job"]
    if again:
        command.append("--restart")
    if not (settings.home / "recovery" / stand.load.name / "made").exists():
        command += ["--from", "earliest"]
    log = stand.log(number)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, process_group=0
        )
    life = Life(process, log, workers, time.monotonic())
    try:
        yield life
    finally:
        if process.poll() is None:
            life.kill()


@dataclass(frozen=True)
class Turn:
    """A command `headrace run --restart` with so many workers, and at what its workers are killed, one after the other: at
    points of delivery, after each of which the job starts again by itself, or, as the last, RANDOM or STARTING."""

    workers: int
    points: tuple[str, ...]


@dataclass
class Kills:
    """What became of kills. hit: (point, workers) of those that were; missed: of those that were not, since a point was not
    passed in time; refused: what jobs said that ended or stood still by themselves. start_s: (workers, seconds) from the start
    of the command to all workers ready; again_s: from a kill to all ready again."""

    hit: list[tuple[str, int]] = field(default_factory=list)
    missed: list[tuple[str, int]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    start_s: list[tuple[int, float]] = field(default_factory=list)
    again_s: list[tuple[int, float]] = field(default_factory=list)

    def gave_up(self, turn: Turn, done: int, why: str = "") -> None:
        """No kill of a turn from number `done` on came to be; why: if it is the job's fault."""
        self.missed += [(point, turn.workers) for point in turn.points[done:]]
        if why:
            self.refused.append(f"{turn.points[done]}, {turn.workers} workers: {why}")

    def told(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "hit": [list(each) for each in self.hit],
            "missed": [list(each) for each in self.missed],
            "refused": self.refused,
            "start_s": [[workers, round(seconds, 2)] for workers, seconds in self.start_s],
            "again_s": [[workers, round(seconds, 2)] for workers, seconds in self.again_s],
        }


def kill(rng: random.Random, stand: Stand, turn: Turn, number: int, kills: Kills) -> None:
    """One turn. At a point of delivery one worker kills itself, and the job starts again; at the end all processes are killed:
    when the last point was passed, at any time after the job is ready (RANDOM) or while it starts (STARTING)."""
    workers = turn.workers
    plan = [
        f"{point}:{rng.randint(1, 40 if point.startswith('stage') else 5)}:{rng.randrange(workers)}"
        for point in turn.points
        if point not in (RANDOM, STARTING)
    ]
    wait, early = rng.uniform(0, 1.5), rng.uniform(0.3, 1.1)
    with living(stand, workers, number, ";".join(plan), again=True) as life:
        since = life.began
        for done, point in enumerate(turn.points):
            if point == STARTING:
                usual = kills.again_s if done else kills.start_s
                time.sleep(early * next((took for each, took in reversed(usual) if each == workers), GUESSED_START_SECONDS))
                there = True
            else:
                try:
                    ready = life.ready(done + 1)
                except StuckError as error:
                    kills.gave_up(turn, done, str(error))
                    return
                if ready:
                    (kills.again_s if done else kills.start_s).append((workers, time.monotonic() - since))
                time.sleep(wait if point == RANDOM else 0.0)
                there = point == RANDOM or life.passed(point, done + 1)
            if life.process.poll() is not None or life.revived() > done + (point not in (RANDOM, STARTING)):
                kills.gave_up(turn, done, f"it died by itself: {life.said()}")
                return
            if not there:
                kills.gave_up(turn, done)
                return
            kills.hit.append((point, workers))
            since = time.monotonic()
        if turn.points[-1] not in (RANDOM, STARTING):
            time.sleep(wait)
        life.kill()


def drain(stand: Stand, workers: int) -> str:
    """One last life without a fault, until nothing comes any more; what it died of, if it did."""
    with counting(stand.served, stand.load.target) as count, living(stand, workers, "last") as life:
        try:
            if not life.ready():
                return life.said()
            settle(life, count)
            return life.leave() if life.process.poll() is None else life.said()
        except StuckError as error:
            return str(error)


def settle(life: Life, count: Callable[[], int]) -> None:
    """Waits until the topic of decisions has stood still for a while, or the job has died. Raises StuckError."""
    deadline, seen, since = time.monotonic() + DRAIN_SECONDS, -1, time.monotonic()
    while life.process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            raise StuckError(f"decisions still come after {DRAIN_SECONDS:.0f} s without load")
        if (found := count()) != seen:
            seen, since = found, now
        elif now - since > QUIET_SECONDS:
            return
        time.sleep(0.1)


def medians(start_s: list[list[float]]) -> dict[str, float]:
    """The median start by number of workers, seconds."""
    return {
        f"{workers:g}": round(median(seconds for each, seconds in start_s if each == workers), 1)
        for workers in sorted({each for each, _ in start_s})
    }
