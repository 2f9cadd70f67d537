"""What the live page costs a job while somebody looks at it.

python -m bench.live_page [--turns 3] [--json FILE]

A job empties a topic that was filled before, as fast as it can, and somebody has its page open all the time. Two runs differ
by more than a page costs, so it is not their throughput that is compared. What is measured is the time on a core that the page
takes: its process, and the workers' answers to it, as many as there were looks, each as long as one takes when the topic is
empty. Of what the job and its broker take meanwhile this is the share by which throughput would fall if all of it was missing
to them; with a core to spare it is less. Exit code 1 if that is more than 1%.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench.brokers import broker, counting, drop, topics
from bench.figures import Figure, figure, shown, timed
from bench.options import leave_on_sigterm
from bench.run import ChildError, Plan, places
from bench.show import made, say, settings_lines, write
from bench.systems import Running, System, SystemDiedError, is_ready, started
from bench.throughput import LINGER_MS, fill
from bench.workloads import load
from ops.broker import BrokerError
from ops.page.look import asked
from ops.progress import bar

MOST_COST = 0.01
WARM_SECONDS, LOOK_SECONDS, REST_SECONDS, EMPTY_SECONDS = 10.0, 0.5, 2.0, 120.0
ANSWERS = 50


@dataclass(frozen=True)
class Turn:
    """The topic emptied once. rate: decisions a second; page, others: cores that the page's process, and the job with its
    broker, took; looks: a second; answers: how long the worker takes for one, s."""

    rate: float
    page: float
    others: float
    looks: float
    answers: list[float]

    @property
    def cost(self) -> float:
        """The share of what the job and its broker took that the page took."""
        return (self.page + self.looks * median(self.answers)) / self.others


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.live_page", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workload", default="flights")
    parser.add_argument("--messages", type=int, default=8_000_000, help="in the topic  [default: 8,000,000]")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3, help="how often the topic is emptied  [default: 3]")
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
        head = made("live_page", told, {"partitions": options.partitions, "turns": options.turns})
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker("apache") as served:
            plan = Plan(workload, prepared, served, Path(scratch), 0.0, partitions=options.partitions, linger_ms=LINGER_MS)
            source = f"bench-full-{time.monotonic_ns()}"
            say(f"{prepared.messages:,} messages in the topic after {fill(plan, source):.1f} s")
            turns = []
            for number in range(options.turns):
                turns.append(turn(plan, source, number))
                say(f"turn {number + 1}: {turns[-1].cost:.2%}")
            drop(served, [source])
    except (ValueError, LookupError, BrokerError, ChildError, SystemDiedError) as error:
        print(f"bench.live_page: {error}", file=sys.stderr)
        return 1
    figures = told_of(turns)
    print(settings_lines(head))
    print("\n".join(map(shown, figures)))
    write(head | {"figures": figures}, options.json)
    return int(any("goal" in one and one["median"] > one["goal"] for one in figures))


def turn(plan: Plan, source: str, number: int) -> Turn:
    """Lets a job empty the topic while somebody looks. Raises SystemDiedError, and ChildError for a topic that is too small."""
    system = System("headrace", settings={"epoch_seconds": 1.0, "recovery": "true"}, page=True)
    folder, expected = plan.scratch / f"turn-{number}", int((plan.prepared.ids() >= 0).sum())
    with ExitStack() as stack:
        _, sink = stack.enter_context(topics(plan.served, plan.partitions, plan.workload.job().topics, source))
        running = stack.enter_context(started(system, plan.workload, places(plan, source, sink, folder)))
        is_ready(running)
        count = stack.enter_context(counting(plan.served, sink))
        time.sleep(WARM_SECONDS)
        first = seen(running, plan, count)
        last = first
        while (now := seen(running, plan, count))[1] < expected:  # what was seen last is of a job that had more to do
            last = now
            if (dead := running.died()) or now[0] - first[0] > EMPTY_SECONDS:
                raise SystemDiedError(f"expected {expected:,} decisions, got {now[1]:,}: {dead or 'it takes too long'}")
            time.sleep(LOOK_SECONDS)
        took, decided, page, others, looks = (after - before for before, after in zip(first, last, strict=True))
        if took < WARM_SECONDS:
            raise ChildError(f"the topic was empty after {WARM_SECONDS + took:.0f} s: more --messages")
        time.sleep(REST_SECONDS)
        answers = [answered(running.metrics[0]) for _ in range(ANSWERS)]
    return Turn(decided / took, page / took, others / took, looks / took, answers)


def seen(running: Running, plan: Plan, count: Callable[[], int]) -> tuple[float, int, float, float, int]:
    """Monotonic seconds; decisions; seconds of a core that the page's process has used, and the job with the broker; looks."""
    with suppress(psutil.Error):
        job = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
        page = [each for each in job if "ops.page" in each.cmdline()]
        if len(page) == 1 and running.reader and plan.served.pid:
            rest = [*(each for each in job if each not in page), psutil.Process(plan.served.pid)]
            return time.monotonic(), count(), cpu(page), cpu(rest), running.reader.looked
    raise SystemDiedError(f"expected the job, its page and the broker to run: {running.died() or 'one of them does not'}")


def cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of a core that they have used."""
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def answered(worker: str) -> float:
    """How long a worker at http://HOST:PORT takes to answer the page, seconds. Raises SystemDiedError if it does not."""
    host, _, port = worker.removeprefix("http://").rpartition(":")
    took, said = timed(asked, host, int(port))
    if said is None:
        raise SystemDiedError(f"{worker} does not answer the page")
    return took


def told_of(turns: Sequence[Turn]) -> list[Figure]:
    """The figures."""
    answers = [each * 1e3 for one in turns for each in one.answers]
    return [
        figure("page", "decisions", "/s", [one.rate for one in turns]),
        figure("page", "its process", "% of a core", [one.page * 100 for one in turns]),
        figure("page", "looks", "/s", [one.looks for one in turns]),
        figure("page", "a worker's answer to a look, the topic empty", "ms", answers),
        figure("page", "the job and its broker", "cores", [one.others for one in turns]),
        figure("page", "less throughput, at most", "%", [one.cost * 100 for one in turns], MOST_COST * 100),
    ]


if __name__ == "__main__":
    sys.exit(main())
