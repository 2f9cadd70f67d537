"""Throughput: how fast a system empties a topic that was filled before it started.

python -m bench.throughput [--workload flights] [--peer relay] [--turns 5] [--json FILE]

The topic is filled once for all systems, which take turns on it, each with a new output topic. The rate is that of the
broker's append times over the last part of the answers (from 60% to 100% of them), when everything is warm, counted in
messages of the input. A system that is not done `--limit` seconds after its first answer is stopped; then the messages up
to the last that it answered are checked, and the run says so.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.brokers import broker, counting, drop, make, topics
from bench.check import Answers, check
from bench.collect import read
from bench.options import common, in_turn, leave_on_sigterm, settings, systems
from bench.run import CRAYFISH, ChildError, Plan, child, invalid, places
from bench.samples import Samples, sampling
from bench.show import result, say, settings_lines, table, write
from bench.systems import Counters, Running, System, SystemDiedError, counters, is_ready, started
from bench.workloads import load
from ops.broker import BrokerError
from ops.progress import bar

MESSAGES = {"flights": 2_000_000, "crayfish": 400_000, "crayfish_short": 400_000, "vector": 3_000_000}
LINGER_MS = 5
START_SECONDS = 120.0
STALL_SECONDS = 20.0
WARM = 0.6
LOOK_SECONDS = 0.25
SHOWN = ("messages_per_s", "crayfish_per_s", "cpu", "memory_mb")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.throughput", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    common(parser)
    parser.add_argument("--messages", type=int, default=None, help=f"in the topic  [default: {MESSAGES}]")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds from a system's first answer until it is stopped")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    try:
        made = measure(options)
    except (ValueError, LookupError, BrokerError, ChildError) as error:
        print(f"bench.throughput: {error}", file=sys.stderr)
        return 1
    print(settings_lines(made))
    print(table(made, SHOWN))
    write(made, options.json)
    return 0 if all(run["valid"] for run in made["runs"]) else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fills the topic, and lets the systems empty it in turns."""
    workload, tested = load(options.workload), systems(options)
    with bar() as progress:
        workload.ready(options.home, progress)
        prepared = workload.prepare(options.messages or MESSAGES.get(options.workload, 1_000_000), progress)
    linger = LINGER_MS if options.linger is None else options.linger
    runs = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker(options.broker) as served:
        plan = Plan(
            workload, prepared, served, Path(scratch), 0.0,
            partitions=options.partitions, workers=options.workers[0], linger_ms=linger,
        )  # fmt: skip
        source = f"bench-full-{time.monotonic_ns()}"
        seconds = fill(plan, source)
        say(f"{prepared.messages:,} messages in the topic after {seconds:.1f} s")
        for turn in range(options.turns):
            for system in in_turn(tested, turn):
                say(f"{system.name}, turn {turn + 1} of {options.turns}")
                run = drain(system, plan, source, turn, options.limit)
                say(f"  {brief(run)}")
                runs.append(run)
        drop(served, [source])
    beside = settings(options, served.kind, linger, tested)
    beside |= {"limit_s": options.limit, "rate_over": f"the answers from {WARM:.0%} to 100%"}
    return result("throughput", workload, prepared, beside, tested, runs)


def brief(run: dict[str, Any]) -> str:
    """One run in a line."""
    if not run["valid"]:
        return f"NOT VALID: {run['why_not']}"
    done = "" if run["finished"] else " (stopped before it was done)"
    return f"{run['throughput']['messages_per_s']:,.0f} messages/s, {run['answers']:,} answers{done}"


def fill(plan: Plan, topic: str) -> float:
    """Makes and fills the input topic, as fast as it goes; returns the seconds it took."""
    make(plan.served, [topic], plan.partitions)
    config = {
        "brokers": plan.served.address,
        "topic": topic,
        "payloads": str(plan.prepared.payloads),
        "messages": plan.prepared.messages,
        "linger_ms": 20,
        "producer": {"batch.size": 1_000_000},
    }
    with child("bench.load", config, plan.scratch / "fill") as generator:
        generator.tell({"send": plan.prepared.messages})
        said = generator.hear(600)
    if said["failed"] or said["sent"] != plan.prepared.messages:
        raise ChildError(f"fill: expected {plan.prepared.messages:,} messages, got {said}")
    return float(said["seconds"])


@dataclass
class Drain:
    """A system emptying the topic. count: says how many answers there are. seen: (monotonic seconds, answers there)."""

    running: Running
    count: Callable[[], int]
    expected: int
    limit: float
    seen: list[tuple[float, int]] = field(default_factory=list)
    counted: list[Counters | None] = field(default_factory=list)

    def run(self) -> bool:
        """Watches until every answer is there, or nothing comes any more, or the time is up; whether it was the first or the
        second. Raises SystemDiedError."""
        began = moved = time.monotonic()
        first = 0.0
        while True:
            time.sleep(LOOK_SECONDS)
            now, count = time.monotonic(), self.count()
            if not self.seen or count != self.seen[-1][1]:
                moved = now
            if not first and count:
                first = now
                self.counted.append(counters(self.running))
            self.seen.append((now, count))
            if count >= self.expected:
                return True
            if dead := self.running.died():
                raise SystemDiedError(dead)
            if not first:
                if now - began > START_SECONDS:
                    raise SystemDiedError(f"no answer within {START_SECONDS:.0f} s, see {self.running.log}")
            elif now - first > self.limit:
                return False
            elif now - moved > STALL_SECONDS:
                return True

    def when(self, share: float) -> float:
        """Monotonic seconds when this share of what is there now was there."""
        times, counts = zip(*self.seen, strict=True)
        return float(np.interp(share * counts[-1], counts, times))


def drain(system: System, plan: Plan, source: str, turn: int, limit: float) -> dict[str, Any]:
    """Lets a system empty the topic, and returns its `run` record; one that is not valid has no figures and says why."""
    folder = plan.scratch / f"{system.name}-{turn}-{time.monotonic_ns()}"
    expected = int((plan.prepared.ids() >= 0).sum())
    with ExitStack() as stack:
        _, sink = stack.enter_context(topics(plan.served, plan.partitions, plan.workload.job().topics, source))
        try:
            with started(system, plan.workload, places(plan, source, sink, folder)) as running:
                is_ready(running)
                pids = {"system": running.process.pid} | ({"broker": plan.served.pid} if plan.served.pid else {})
                with sampling(pids, 0.25) as samples, counting(plan.served, sink) as count:
                    drained = Drain(running, count, expected, limit)
                    finished = drained.run()
                    drained.counted.append(counters(running))
                    stopped = time.time_ns() // 1_000_000
        except SystemDiedError as error:
            return invalid(system, plan, turn, f"{system.name}: {error}") | {"rate": None}
        say("  checking its answers")
        answers = check(
            plan.workload,
            plan.prepared,
            plan.prepared.messages,
            read(plan.served.address, sink, plan.partitions),
            ordered=plan.ordered,
            unfinished=not finished,
            passes_on=system.passes_on,
        )
    return record(system, plan, turn, drained, answers, samples, finished, stopped)


def record(
    system: System,
    plan: Plan,
    turn: int,
    drained: Drain,
    answers: Answers,
    samples: Samples,
    finished: bool,
    stopped_ms: int,
) -> dict[str, Any]:
    """The `run` record."""
    run: dict[str, Any] = {
        "system": system.name,
        "turn": turn,
        "rate": None,
        "valid": not answers.fault,
        "why_not": answers.fault or None,
        "sent": plan.prepared.messages,
        **{name: getattr(answers, name) for name in ("expected", "answers", "lost", "doubled", "wrong")},
        "finished": finished,
        "checked": "answers" if plan.ordered else "one answer each; not what depends on the order",
    }
    start, end = drained.when(WARM), drained.when(1.0)
    run["cpu"] = {name: samples.cores(name, start, end) for name in ("system", "broker")}
    run["cpu"]["others"] = samples.others(start, end)
    run["memory_mb"] = {"system": samples.memory_mb("system", start, end)}
    if answers.fault:
        return run
    each = plan.prepared.messages / max(1, int((plan.prepared.ids() >= 0).sum()))
    try:
        run["throughput"] = rates(answers.appended, stopped_ms, drained.seen, each)
    except ValueError as error:
        return run | {"valid": False, "why_not": str(error)}
    if plan.workload.name != CRAYFISH:
        del run["throughput"]["crayfish_per_s"]
    before, after = (drained.counted[0], drained.counted[-1]) if len(drained.counted) == 2 else (None, None)
    if after:
        run["state"] = after.state(plan.workload.job().shards)
    return run | (after.since(before) if before and after else {"stages": None, "batch_rows": None})


def rates(
    appended_ms: npt.NDArray[np.int64], stopped_ms: int, seen: Sequence[tuple[float, int]], each: float
) -> dict[str, Any]:
    """messages_per_s over the answers from 60% to 100%, of those appended before the system was told to stop; crayfish_per_s
    by Crayfish's formula: the last 75% over the time from the first creation to the last append, where everything was created
    before, so the creation is taken to be when the first answer came. each: messages for an answer. Without the broker's
    times, by when the answers were seen. Raises ValueError where they are too few."""
    if appended_ms.any():
        at = np.sort(appended_ms[appended_ms <= stopped_ms]) / 1e3
        counts = np.arange(1, len(at) + 1)
    else:
        at, counts = np.array([moment for moment, _ in seen]), np.array([count for _, count in seen])
    kept = counts > 0
    at, counts = at[kept], counts[kept]
    if not len(at):
        raise ValueError("no answers before the system was stopped")
    start = int(np.searchsorted(counts, WARM * counts[-1]))
    span = float(at[-1] - at[start])
    whole = float(at[-1] - at[0])
    if span <= 0:
        raise ValueError(
            f"throughput: {counts[-1]:,} answers in {whole:.3f} s are too few to take a rate from: more --messages"
        )
    return {
        "messages_per_s": round(float(each * (counts[-1] - counts[start]) / span), 2),
        "crayfish_per_s": round(float(each * 0.75 * counts[-1] / whole), 2),
        "seconds": round(span, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
