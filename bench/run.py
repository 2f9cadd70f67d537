"""One measured run: topics, collector, system, generator; then everything is counted and checked."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.brokers import Served, topics
from bench.check import Answers, check, encoded, figures, histogram, lag
from bench.collect import blocks
from bench.load import linger_ms
from bench.over_time import first_and_last, per_minute
from bench.samples import Samples, sampling
from bench.schedule import schedule
from bench.systems import ROOT, Counters, Running, System, SystemDiedError, counters, is_ready, started
from bench.workloads import Prepared, Workload

I64 = npt.NDArray[np.int64]
FIRST_ANSWERS = 5
START_SECONDS = 0.5
READY_SECONDS = 120.0
SETTLE_SECONDS = 1.5
SAY_SECONDS = 60.0
CRAYFISH = "crayfish"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bounds:
    """How far behind its schedule the generator may fall in what is measured: lateness of messages, and the share of the
    intended rate. Beyond, it is not the intended load that was measured."""

    late_p99_ms: float = 5.0
    late_max_ms: float = 200.0
    least_rate: float = 0.99


@dataclass(frozen=True)
class Plan:
    """What a run is made with. rate: messages a second, by `schedule` (bench/schedule.py); after `warmup` seconds `seconds`
    are measured. linger_ms: of the systems' producers. generator: settings of it alone. stall: seconds without an answer after
    which no more are waited for. soak: keep memory and latency over time, too."""

    workload: Workload
    prepared: Prepared
    served: Served
    scratch: Path
    rate: float
    seconds: float = 30.0
    warmup: float = 15.0
    schedule: str = "constant"
    partitions: int = 1
    workers: int = 1
    linger_ms: float = 1
    generator: dict[str, Any] = field(default_factory=dict)
    bounds: Bounds = Bounds()
    stall: float = 15.0
    soak: bool = False

    @property
    def due(self) -> I64:
        """When each message is to be sent, ns from the start, warm-up included."""
        return schedule(self.schedule, self.rate, self.warmup + self.seconds)

    @property
    def ordered(self) -> bool:
        """Whether a system sees the messages in the order in which they were sent."""
        return self.partitions == 1


class ChildError(RuntimeError):
    """A process of the harness itself died or did not answer."""


class Child:
    """A process of the harness that says a JSON object a line."""

    def __init__(self, module: str, config: Mapping[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file, self._log = folder / f"{module}.json", folder / f"{module}.log"
        file.write_text(json.dumps(config))
        with self._log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(file)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                process_group=0,
            )
        self._module = module
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.last: dict[str, Any] = {}
        self._listener = threading.Thread(target=self._listen, name=module, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.last = json.loads(line)
                self._said.put(self.last)
        self._said.put(None)

    def tell(self, what: Mapping[str, Any]) -> None:
        """One line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, wait: float | None) -> dict[str, Any]:
        """What it says next. Raises ChildError if it dies, or says nothing for `wait` seconds."""
        try:
            said = self._said.get(timeout=wait)
        except queue.Empty:
            raise ChildError(f"{self._module} did not answer within {wait:.0f} s, see {self._log}") from None
        if said is None:
            words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ChildError(f"{self._module} died: {' | '.join(words)}")
        return said

    def close(self, wait: float = 60.0) -> None:
        """Ends its standard input, and kills it if it does not leave."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(wait)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join()


@contextmanager
def child(module: str, config: Mapping[str, Any], folder: Path) -> Iterator[Child]:
    """A process of the harness, from when it has said its first line."""
    made = Child(module, config, folder)
    try:
        made.hear(60)
        yield made
    finally:
        made.close(20)


def record(system: System, plan: Plan, turn: int, say: Say = lambda line: None) -> dict[str, Any]:
    """Runs a system at a rate and returns its `run` record; one that is not valid has no figures and says why."""
    folder = plan.scratch / f"{system.name}-{turn}-{plan.rate:g}-{time.monotonic_ns()}"
    with ExitStack() as stack:
        source, sink = stack.enter_context(topics(plan.served, plan.partitions, plan.workload.job().topics))
        common = {"brokers": plan.served.address, "partitions": plan.partitions}
        out = folder / "collected"
        collecting = {**common, "topic": sink, "out": str(out), "fetch_wait_ms": plan.served.fetch_wait_ms}
        sending = {
            **common,
            "topic": source,
            "payloads": str(plan.prepared.payloads),
            "messages": plan.prepared.messages,
            "linger_ms": linger_ms(plan.rate, plan.partitions),
        }
        collector = stack.enter_context(child("bench.collect", collecting, folder))
        generator = stack.enter_context(child("bench.load", sending | plan.generator, folder))
        try:
            running = stack.enter_context(started(system, plan.workload, places(plan, source, sink, folder)))
            is_ready(running)
            measured = Measured(plan, running, generator, collector, folder, say)
            measured.run(stack)
        except SystemDiedError as error:
            return invalid(system, plan, turn, f"{system.name}: {error}")
        collector.close()
        answers = check(
            plan.workload, plan.prepared, measured.sent, blocks(out), ordered=plan.ordered, passes_on=system.passes_on
        )
    result = measured.result(system, turn, answers)
    out.unlink()
    return result


def places(plan: Plan, source: str, sink: str, folder: Path) -> dict[str, str]:
    """The placeholders of a system's command line."""
    repo = plan.workload.repo()
    return {
        "workload": plan.workload.name,
        "brokers": plan.served.address,
        "input": source,
        "output": sink,
        "model": str(plan.workload.model()),
        "width": str(plan.workload.width),
        "linger": f"{plan.linger_ms:g}",
        "home": str((folder / "home").absolute()),
        "repo": str(repo.absolute()) if repo else "",
        "workers": str(plan.workers),
        "passes": plan.workload.passes,
    }


def invalid(system: System, plan: Plan, turn: int, why: str) -> dict[str, Any]:
    """A run that came to nothing."""
    return {"system": system.name, "turn": turn, "rate": plan.rate, "valid": False, "why_not": why}


@dataclass
class Measured:
    """A run while it lasts, and what was seen of it."""

    plan: Plan
    running: Running
    generator: Child
    collector: Child
    folder: Path
    say: Say
    sent: int = 0
    first: int = 0
    start_ns: int = 0
    due: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    said: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    counted: list[Counters | None] = field(default_factory=list)
    fault: str = ""

    def run(self, stack: ExitStack) -> None:
        """A few messages at once, until they are answered: the system is ready. Then the schedule. Raises SystemDiedError."""
        answered = self.plan.prepared.ids() >= 0
        self.due = self.plan.due
        self.first = int(np.searchsorted(np.cumsum(answered), FIRST_ANSWERS)) + 1
        self.generator.tell({"send": self.first})
        self.generator.hear(60)
        self.sent = self.first
        self.say("waiting for its first answers")
        if not self.wait_for(int(answered[: self.first].sum()), READY_SECONDS):
            raise SystemDiedError(f"not ready: no answers to the first {self.first} messages within {READY_SECONDS:.0f} s")
        pids = {
            "system": self.running.process.pid,
            "generator": self.generator.process.pid,
            "collector": self.collector.process.pid,
        }
        pids |= {"broker": self.plan.served.pid} if self.plan.served.pid else {}
        self.samples = stack.enter_context(sampling(pids))
        file = self.folder / "schedule.npy"
        np.save(file, self.due)
        self.start_ns = time.monotonic_ns() + int(START_SECONDS * 1e9)
        self.say(f"{self.plan.warmup:g} s of warm-up, {self.plan.seconds:g} s measured, at {self.plan.rate:,.0f} messages/s")
        self.generator.tell({"go": self.start_ns, "schedule": str(file), "judge": int(self.window[0] * 1e9)})
        for moment in self.window:
            self.until(moment)
            self.counted.append(counters(self.running))
        self.said = self.generator.hear(180)
        self.sent = self.first + len(self.due)
        self.wait_for(int(answered[: self.sent].sum()), None)
        if dead := self.running.died():
            raise SystemDiedError(dead)
        time.sleep(SETTLE_SECONDS)

    def until(self, moment: float) -> None:
        """Waits for a moment, monotonic seconds, and says each minute how far it is. Raises SystemDiedError."""
        while (left := moment - time.monotonic()) > 0:
            time.sleep(min(left, SAY_SECONDS))
            if dead := self.running.died():
                raise SystemDiedError(dead)
            if left > SAY_SECONDS:
                self.say(f"{self.collector.last.get('messages', 0):,} answers, {left - SAY_SECONDS:,.0f} s to go")

    @property
    def window(self) -> tuple[float, float]:
        """What is measured, monotonic seconds."""
        start = self.start_ns / 1e9 + self.plan.warmup
        return start, start + self.plan.seconds

    def wait_for(self, answers: int, limit: float | None) -> bool:
        """Waits until there are so many answers; gives up after `limit` seconds, or without it when nothing comes any more."""
        began = moved = time.monotonic()
        seen = -1
        while (count := self.collector.last.get("messages", 0)) < answers:
            now = time.monotonic()
            moved, seen = (now, count) if count != seen else (moved, seen)
            if self.collector.process.poll() is not None:
                raise ChildError("bench.collect died, see its log")
            if limit is None:
                if now - moved > self.plan.stall:
                    return False
            elif now - began > limit:
                return False
            if dead := self.running.died():
                raise SystemDiedError(dead)
            time.sleep(0.05)
        return True

    def result(self, system: System, turn: int, answers: Answers) -> dict[str, Any]:
        """The `run` record."""
        why = generator_fault(self.said, len(self.due), self.plan.bounds) or answers.fault
        run: dict[str, Any] = {
            "system": system.name,
            "turn": turn,
            "rate": self.plan.rate,
            "valid": not why,
            "why_not": why or None,
            "sent": self.sent,
            **{name: getattr(answers, name) for name in ("expected", "answers", "lost", "doubled", "wrong")},
            "checked": "answers" if self.plan.ordered else "one answer each; not what depends on the order",
            "generator": {name: self.said.get(name) for name in ("rate", "late_p99_ms", "late_max_ms")},
        }
        start, end = self.window
        sources = ("system", "broker", "generator", "collector")
        run["cpu"] = {name: self.samples.cores(name, start, end) for name in sources}
        run["cpu"]["others"] = self.samples.others(start, end)
        run["memory_mb"] = {"system": self.samples.memory_mb("system", start, end)}
        return run | (self.figures(answers) if not why else {})

    def figures(self, answers: Answers) -> dict[str, Any]:
        """What only a valid run has."""
        scheduled = answers.row >= self.first
        intended = self.due[answers.row[scheduled] - self.first] + self.start_ns
        held, appended = answers.held[scheduled], answers.appended[scheduled]
        start_ns, end_ns = (int(moment * 1e9) for moment in self.window)
        inside = intended >= start_ns
        took = histogram((held - intended)[inside])
        found = {
            "latency_ms": figures(took),
            "histogram": encoded(took),
            "lag": lag(intended, held, start_ns, end_ns),
            "throughput": self.throughput(intended, held, appended * 1_000_000, inside),
        }
        if self.plan.soak:
            found["soak"] = self.soak(intended[inside], (held - intended)[inside])
        if appended.any():
            wall = self.said["wall_ns"]
            found["broker_latency_ms"] = figures(histogram((appended * 1_000_000 - intended - wall)[inside]))
        before, after = self.counted
        if after:
            found["state"] = after.state(self.plan.workload.job().shards)
        return found | (after.since(before) if before and after else {"stages": None, "batch_rows": None})

    def soak(self, intended: I64, took: I64) -> dict[str, Any]:
        """Memory and latency over time, and their first hour beside the last."""
        start, end = self.window
        memory = self.samples.over_time("system", start, end)
        minutes = per_minute(intended, took, int(start * 1e9))
        return {
            "memory_mb": first_and_last(memory, self.plan.seconds),
            "p99_ms": first_and_last([(at, p99) for at, _, p99 in minutes], self.plan.seconds),
            "memory_over_time": memory,
            "latency_over_time": minutes,
        }

    def throughput(self, intended: I64, held: I64, appended: I64, inside: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Messages answered for a second over the window, by the broker's time where it has one; on the workload crayfish also
        by Crayfish's formula: the last 75% of the answers over the time from the first creation (here: when it was to be
        sent) to the last append. A message that gets no answer counts with those that do."""
        at = appended - self.said["wall_ns"] if appended.any() else held
        span = (int(at[inside].max()) - int(at[inside].min())) / 1e9
        each = len(self.due) / len(intended)
        made = {"messages_per_s": round(each * int(inside.sum()) / span, 2) if span else 0.0, "seconds": round(span, 3)}
        if self.plan.workload.name == CRAYFISH:
            last = np.argsort(at)[len(at) // 4 :]
            theirs = len(last) / ((int(at[last].max()) - int(intended[last].min())) / 1e9)
            made["crayfish_per_s"] = round(each * theirs, 2)
        return made


def generator_fault(said: Mapping[str, Any], messages: int, bounds: Bounds) -> str:
    """Why the load was not what was intended; empty if it was."""
    if said["failed"]:
        return f"generator: {said['failed']:,} messages not delivered: {said['reason']}"
    if said["sent"] != messages:
        return f"generator: expected {messages:,} messages sent, got {said['sent']:,}"
    behind = "generator behind its schedule"
    if said["late_p99_ms"] > bounds.late_p99_ms:
        return f"{behind}: expected p99 of lateness of at most {bounds.late_p99_ms:g} ms, got {said['late_p99_ms']:g}"
    if said["late_max_ms"] > bounds.late_max_ms:
        return f"{behind}: expected no message later than {bounds.late_max_ms:g} ms, got {said['late_max_ms']:g}"
    intended = said["intended_per_s"]
    if intended and said["rate"] < bounds.least_rate * intended:
        return f"{behind}: expected {intended:,.0f} messages/s, got {said['rate']:,.0f}"
    return ""
