"""Latency at a rate: from when a message was to be sent to when another process holds its answer.

python -m bench.latency [--rate 1000 ...] [--peer relay] [--turns 5] [--json FILE]

The load is open-loop: a schedule fixed in advance, kept whatever comes back, so that a system which stalls is charged for every
message that waited. Systems take turns on one broker. A run that lost, doubled or wrongly answered a message, or whose
generator fell behind its schedule, has no figures.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.brokers import broker
from bench.load import linger_ms
from bench.options import common, settings, systems
from bench.run import ChildError, Plan, record
from bench.schedule import schedule
from bench.show import result, say, settings_lines, table, write
from bench.workloads import load
from ops.broker import BrokerError
from ops.progress import bar

SHOWN = ("p50", "p90", "p99", "p999", "max", "cpu", "memory_mb")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    common(parser)
    parser.add_argument("--rate", type=float, nargs="+", default=[1000.0], help="messages a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured")
    parser.add_argument("--warmup", type=float, default=15.0, help="seconds of load before, not measured")
    parser.add_argument("--schedule", default="constant", help="constant, poisson, bursts or a file of times in seconds")
    options = parser.parse_args(arguments)
    try:
        made = measure(options)
    except (ValueError, LookupError, BrokerError, ChildError) as error:
        print(f"bench.latency: {error}", file=sys.stderr)
        return 1
    print(settings_lines(made))
    print(table(made, SHOWN))
    write(made, options.json)
    return 0 if all(run["valid"] for run in made["runs"]) else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All turns at all rates."""
    workload, tested = load(options.workload), systems(options)
    with bar() as progress:
        workload.ready(options.home, progress)
        most = max(len(schedule(options.schedule, rate, options.warmup + options.seconds)) for rate in options.rate)
        prepared = workload.prepare(most + 1000, progress)
    linger = linger_ms(max(options.rate)) if options.linger is None else options.linger
    runs = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker(options.broker) as served:
        for rate in options.rate:
            linger = linger_ms(rate) if options.linger is None else options.linger
            plan = Plan(
                workload, prepared, served, Path(scratch), rate, options.seconds, options.warmup, options.schedule,
                options.partitions, options.workers, linger,
            )  # fmt: skip
            for turn in range(options.turns):
                for system in tested:
                    say(f"{system.name}, turn {turn + 1} of {options.turns}, {rate:,.0f} messages/s")
                    run = record(system, plan, turn, lambda line: say(f"  {line}"))
                    say(f"  {brief(run)}")
                    runs.append(run)
    beside = settings(options, options.broker, linger, tested)
    beside |= {"schedule": options.schedule, "warmup_s": options.warmup, "measured_s": options.seconds}
    return result("latency", workload, prepared, beside, tested, runs)


def brief(run: dict[str, Any]) -> str:
    """One run in a line."""
    if not run["valid"]:
        return f"NOT VALID: {run['why_not']}"
    took = run["latency_ms"]
    return f"p50 {took['p50']:g} ms, p99 {took['p99']:g} ms, {took['count']:,} answers, lag {run['lag']}"


if __name__ == "__main__":
    sys.exit(main())
