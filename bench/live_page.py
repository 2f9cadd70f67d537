"""What the live page costs a job while somebody looks at it.

python -m bench.live_page [--turns 10] [--json FILE]

A job empties a topic that was filled before, and somebody has its page open in every second slice of the time. The rate of
each slice with a reader is compared with the mean of the slices before and after it, which have none: what a machine does
slowly concerns both. A slice begins when the one before has had time to fade: the page goes on for three seconds after its last
reader has left, and has much to read when the first one comes. Beside it stands the time that the page's process takes, and how
long a worker takes to answer it, which it asks once a second, when the topic is empty and nobody else wants a core.
Exit code 1 if the throughput is less than 0.99 times that without a reader.
"""

import argparse
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from bench.brokers import broker, counting, drop, topics
from bench.figures import Figure, figure, shown
from bench.options import leave_on_sigterm
from bench.run import ChildError, Plan, places
from bench.show import made, say, settings_lines, write
from bench.systems import Running, System, SystemDiedError, is_ready, started
from bench.throughput import LINGER_MS, fill
from bench.workloads import load
from ops.broker import BrokerError
from ops.page.look import QUERY
from ops.progress import bar

MOST_COST = 0.01
WARM_SECONDS, FADE_SECONDS = 5.0, 4.5
ANSWERS = 50
RESAMPLES = 10_000


@dataclass(frozen=True)
class Slice:
    """A part of the time. looked: somebody had the page open; rate: decisions a second; cores: of the page's process."""

    looked: bool
    rate: float
    cores: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.live_page", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workload", default="flights")
    parser.add_argument("--broker", default="apache", help="apache, embedded or HOST:PORT")
    parser.add_argument("--messages", type=int, default=8_000_000, help="in the topic  [default: 8,000,000]")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured of a slice  [default: 4]")
    parser.add_argument("--turns", type=int, default=10, help="how often the topic is emptied  [default: 10]")
    parser.add_argument("--home", type=Path, default=Path(".headrace"), help="models, and what is prepared once")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    try:
        workload = load(options.workload)
        with bar() as progress:
            workload.ready(options.home, progress)
            prepared = workload.prepare(options.messages, progress)
        told = {"name": workload.name, "messages": prepared.messages, "bytes_mean": prepared.bytes_mean}
        head = made("live_page", told, {"partitions": options.partitions, "seconds": options.seconds, "turns": options.turns})
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker(options.broker) as served:
            plan = Plan(workload, prepared, served, Path(scratch), 0.0, partitions=options.partitions, linger_ms=LINGER_MS)
            source = f"bench-full-{time.monotonic_ns()}"
            say(f"{prepared.messages:,} messages in the topic after {fill(plan, source):.1f} s")
            turns = [turn(plan, source, number, options.seconds) for number in range(options.turns)]
            drop(served, [source])
    except (ValueError, LookupError, BrokerError, ChildError, SystemDiedError) as error:
        print(f"bench.live_page: {error}", file=sys.stderr)
        return 1
    figures, interval = compared([slices for slices, _ in turns], [answer for _, answers in turns for answer in answers])
    print(settings_lines(head))
    print("\n".join(map(shown, figures)))
    print(f"the mean of what it costs is {interval[0]:.2f} to {interval[1]:.2f}% with a confidence of 95%")
    kept = [[vars(one) for one in slices] for slices, _ in turns]
    write(head | {"figures": figures, "interval": interval, "slices": kept}, options.json)
    return int(any("goal" in one and one["median"] > one["goal"] for one in figures))


def turn(plan: Plan, source: str, number: int, seconds: float) -> tuple[list[Slice], list[float]]:
    """Lets a job empty the topic; its slices, and how long it then takes to answer /metrics, ms. Raises SystemDiedError,
    ChildError for a topic that is too small, or one whose events are not all decided."""
    system = System("headrace", settings={"epoch_seconds": 1.0, "recovery": "true"}, page=True)
    folder, expected = plan.scratch / f"turn-{number}", int((plan.prepared.ids() >= 0).sum())
    with ExitStack() as stack:
        _, sink = stack.enter_context(topics(plan.served, plan.partitions, plan.workload.job().topics, source))
        running = stack.enter_context(started(system, plan.workload, places(plan, source, sink, folder)))
        is_ready(running)
        count = stack.enter_context(counting(plan.served, sink))
        slices = sliced(running, count, expected, seconds)
        say(f"turn {number + 1}: " + ", ".join(f"{one.rate:,.0f}/s{' looked at' if one.looked else ''}" for one in slices))
        waited = time.monotonic() + 60
        while (now := count()) < expected:
            if (dead := running.died()) or time.monotonic() > waited:
                raise SystemDiedError(f"expected {expected:,} decisions, got {now:,}: {dead}")
            time.sleep(0.5)
        time.sleep(FADE_SECONDS)
        return slices, [answered(f"{running.metrics[0]}/metrics?{QUERY}") for _ in range(ANSWERS)]


def sliced(running: Running, count: Callable[[], int], expected: int, seconds: float) -> list[Slice]:
    """Slices without and with a reader in turns, until the topic is nearly empty; the first and the last are without."""
    assert running.reader
    running.reader.looks.clear()
    pages = [child for child in psutil.Process(running.process.pid).children(recursive=True) if "ops.page" in child.cmdline()]
    made: list[Slice] = []
    time.sleep(WARM_SECONDS)
    while True:
        looked = bool(len(made) % 2)
        (running.reader.looks.set if looked else running.reader.looks.clear)()
        time.sleep(FADE_SECONDS)
        began, before, used = time.monotonic(), count(), cpu(pages)
        time.sleep(seconds)
        took, done = time.monotonic() - began, count()
        if done >= expected:
            break
        made.append(Slice(looked, (done - before) / took, (cpu(pages) - used) / took))
        if dead := running.died():
            raise SystemDiedError(dead)
    running.reader.looks.clear()
    made = made[: len(made) - 1 + len(made) % 2]
    if len(made) < 3:
        raise ChildError(f"the topic was empty after {len(made)} slices: more --messages")
    return made


def cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of a core that they have used."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def answered(url: str) -> float:
    """How long an answer takes, ms."""
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=5) as answer:
        answer.read()
    return (time.perf_counter() - began) * 1e3


def compared(turns: Sequence[Sequence[Slice]], answers: Sequence[float]) -> tuple[list[Figure], tuple[float, float]]:
    """The figures; and between which costs (%) their mean lies with a confidence of 95%, by resampling."""
    costs = [
        (1 - 2 * looked.rate / (before.rate + after.rate)) * 100
        for slices in turns
        for before, looked, after in zip(slices[::2], slices[1::2], slices[2::2], strict=False)
    ]
    every = [one for slices in turns for one in slices]
    rng = np.random.default_rng(0)
    means = rng.choice(costs, (RESAMPLES, len(costs))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    figures = []
    for looked, said in ((False, "nobody looks"), (True, "somebody looks")):
        kind = [one for one in every if one.looked == looked]
        figures.append(figure("page", f"decisions, {said}", "/s", [one.rate for one in kind]))
        figures.append(figure("page", f"its process, {said}", "% of a core", [one.cores * 100 for one in kind]))
    figures.append(figure("page", "an answer of a worker to it, the job idle", "ms", answers))
    figures.append(figure("page", "less throughput while somebody looks", "%", costs, MOST_COST * 100))
    return figures, (float(low), float(high))


if __name__ == "__main__":
    sys.exit(main())
