"""Latency at a rate: from when a message was to be sent to when another process holds its answer.

python -m bench.latency [--rate 1000 ...] [--peer relay] [--turns 5] [--json FILE]
python -m bench.latency --slo p99=15ms [--rate 1000]    the highest rate that holds it, from --rate on
python -m bench.latency --soak 180                      memory and latency over three hours

The load is open-loop: a schedule fixed in advance, kept whatever comes back, so that a system which stalls is charged for every
message that waited. Systems take turns on one broker. A run that lost, doubled or wrongly answered a message, or whose
generator fell behind its schedule, has no figures.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.brokers import broker
from bench.load import linger_ms
from bench.options import common, in_turn, leave_on_sigterm, of_ours, settings, systems
from bench.over_time import verdict
from bench.run import ChildError, Plan, record
from bench.schedule import schedule
from bench.show import result, say, settings_lines, table, write
from bench.slo import bound, highest
from bench.systems import System
from bench.workloads import load
from ops.broker import BrokerError
from ops.progress import bar

FIRST_MESSAGES = 10_000
HEATED_SECONDS = 30.0
SHOWN = ("p50", "p90", "p99", "p999", "max", "cpu", "memory_mb")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    common(parser)
    parser.add_argument("--rate", type=float, nargs="+", default=[1000.0], help="messages a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured")
    parser.add_argument("--warmup", type=float, default=40.0, help="seconds of load before, not measured  [default: 40]")
    parser.add_argument("--schedule", default="constant", help="constant, poisson, bursts or a file of times in seconds")
    parser.add_argument(
        "--load-linger", type=float, default=None, help="of the generator's producer, ms  [default: by the rate]"
    )
    parser.add_argument("--slo", default=None, metavar="p99=15ms", help="find the highest rate that holds it")
    parser.add_argument("--soak", type=float, default=None, metavar="MINUTES", help="measured, instead of --seconds")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    try:
        made = measure(options)
    except (ValueError, LookupError, BrokerError, ChildError) as error:
        print(f"bench.latency: {error}", file=sys.stderr)
        return 1
    print(settings_lines(made))
    print(table(made, SHOWN))
    for name, found in made.get("slo", {}).get("systems", {}).items():
        print(f"{name} holds {made['slo']['bound']} to {rates(found)}")
    for run in made["runs"]:
        if "soak" in run:
            print(f"{run['system']}: {verdict(run['soak'])}")
    write(made, options.json)
    return 0 if options.slo or all(run["valid"] for run in made["runs"]) else 1


def rates(found: dict[str, Any]) -> str:
    """What a search came to."""
    held = "no rate that was tried" if found["rate"] is None else f"{found['rate']:,.0f} messages/s"
    return held + (f"; at {found['failed_at']:,.0f}: {found['why']}" if found["failed_at"] else "")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All turns at all rates, or the search for the highest."""
    limit = bound(options.slo) if options.slo else None
    if options.soak:
        options.seconds = options.soak * 60
    workload, tested = load(options.workload), systems(options)
    for rate in options.rate:
        schedule(options.schedule, rate, 1.0)
    with bar() as progress:
        workload.ready(options.home, progress)
        prepared = workload.prepare(needed(options, max(options.rate)), progress)
    runs: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker(options.broker) as served:

        def planned(rate: float, seconds: float, warmup: float) -> Plan:
            with bar() as progress:
                ready = workload.prepare(needed(options, rate), progress)
            return Plan(
                workload, ready, served, Path(scratch), rate, seconds, warmup, options.schedule,
                options.partitions, options.workers[0], linger_of(options, rate), soak=bool(options.soak),
                generator={} if options.load_linger is None else {"linger_ms": options.load_linger},
            )  # fmt: skip

        def once(system: System, rate: float, turn: int) -> dict[str, Any]:
            plan = planned(rate, options.seconds, options.warmup)
            say(f"{system.name}, turn {turn + 1}, {rate:,.0f} messages/s")
            run = record(system, plan, turn, lambda line: say(f"  {line}"))
            say(f"  {brief(run)}")
            runs.append(run)
            return run

        seconds = min(HEATED_SECONDS, options.warmup + options.seconds)
        say(f"the broker is warmed by {seconds:.0f} s of the relay")
        warm = record(of_ours("relay", options.workload), planned(max(options.rate), seconds, 0.0), 0)
        if not warm["valid"]:
            say(f"  {brief(warm)}")
        if limit:
            for system in tested:
                found[system.name] = highest(search(system, once), limit, options.rate[0])
        else:
            for rate in options.rate:
                for turn in range(options.turns):
                    for system in in_turn(tested, turn):
                        once(system, rate, turn)
    beside = settings(options, served.kind, lingers(options), tested)
    if options.load_linger is not None:
        beside["load_linger_ms"] = options.load_linger
    beside |= {"schedule": options.schedule, "warmup_s": options.warmup, "measured_s": options.seconds}
    made = result("latency", workload, prepared, beside, tested, runs)
    return made | ({"slo": {"bound": str(limit), "systems": found}} if limit else {})


def search(system: System, once: Callable[[System, float, int], dict[str, Any]]) -> Callable[[float], dict[str, Any]]:
    """Measures a system at a rate; a rate that comes again is its next turn."""
    turns: Counter[float] = Counter()

    def measure(rate: float) -> dict[str, Any]:
        turns[rate] += 1
        return once(system, rate, turns[rate] - 1)

    return measure


def needed(options: argparse.Namespace, rate: float) -> int:
    """Messages for one run, those before the schedule included."""
    return len(schedule(options.schedule, rate, options.warmup + options.seconds)) + FIRST_MESSAGES


def linger_of(options: argparse.Namespace, rate: float) -> float:
    """The systems' linger at a rate, ms."""
    return linger_ms(rate, options.partitions) if options.linger is None else float(options.linger)


def lingers(options: argparse.Namespace) -> float | str:
    """The systems' linger, ms; by rate where it differs, as "1 at 1,000/s, 5 at 50,000/s"."""
    by_rate = {rate: linger_of(options, rate) for rate in sorted(options.rate)}
    if len(set(by_rate.values())) == 1 and not options.slo:
        return by_rate[min(by_rate)]
    if options.slo:
        return "by the rate (bench/load.py)" if options.linger is None else float(options.linger)
    return ", ".join(f"{linger:g} at {rate:,.0f}/s" for rate, linger in by_rate.items())


def brief(run: dict[str, Any]) -> str:
    """One run in a line."""
    if not run["valid"]:
        return f"NOT VALID: {run['why_not']}"
    took = run["latency_ms"]
    return f"p50 {took['p50']:g} ms, p99 {took['p99']:g} ms, {took['count']:,} answers, lag {run['lag']}"


if __name__ == "__main__":
    sys.exit(main())
