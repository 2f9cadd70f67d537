"""What the demo shows while it runs, and what it says at the end."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ops.watch import Watcher


@contextmanager
def live_view(watcher: Watcher, decisions: str, dead: str, drift: str, messages: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call now and then with how many messages were read: a table in its place on a terminal, a line every
    two seconds elsewhere."""
    started = time.monotonic()
    unlike: set[str] = set()
    reports = 0

    def facts(read: int) -> dict[str, str]:
        nonlocal reports
        fresh = [orjson.loads(value) for value in watcher.values[drift][reports:]]
        reports += len(fresh)
        unlike.update(report["window_start"][:10] for report in fresh if report["alarmed"])
        return {
            "events": f"{read:,} of {messages:,}",
            "events/s": f"{read / max(time.monotonic() - started, 1e-3):,.0f}",
            "decisions": f"{watcher.count(decisions):,}",
            "dead letters": f"{watcher.count(dead):,}",
            "days unlike the training data": f"{len(unlike):,}",
        }

    def table(read: int) -> Table:
        row = facts(read)
        made = Table(*row)
        made.add_row(*row.values())
        return made

    if sys.stdout.isatty():
        with Live(table(0), console=Console(), refresh_per_second=4) as live:
            yield lambda read: live.update(table(read))
        return
    last = started

    def line(read: int) -> None:
        nonlocal last
        if time.monotonic() - last >= 2 or read == messages:
            last = time.monotonic()
            print("  " + ", ".join(f"{value} {name}" for name, value in facts(read).items()), flush=True)

    yield line


def print_summary(result: dict[str, Any], name: str, period: str, registry: str, wrong: str) -> None:
    """The demo's result for people who have not seen headrace before. wrong: what does not add up, if anything."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(f"\n[bold]{name}: {period}, decided as it happened[/bold]\n")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    events, seconds, rate = result["events"], result["seconds"], result["events_per_s"]
    grid.add_row("events", f"{events:,} through the whole way in {seconds} s, {rate:,} a second from Kafka to Kafka")
    kinds = ", ".join(f"{count:,} {decision}" for decision, count in result["by_decision"].items())
    grid.add_row("decisions", f"{result['decisions']:,}: {kinds}")
    grid.add_row("", f"[red]{wrong}[/red]" if wrong else "one for each scheduled flight: none lost, none twice")
    letters = result["dead_letters"]
    codes = ", ".join(f"{count} {code}" for code, count in letters.items())
    grid.add_row("dead letters", f"{sum(letters.values())} malformed messages set aside, each with its reason: {codes}")
    grid.add_row("quality", f"AUC {result['auc']} from October on, by what came true later (0.5 is guessing, 1 is perfect)")
    p50, p99 = result["latency_ms"]["p50"], result["latency_ms"]["p99"]
    if p50 is not None:
        grid.add_row("latency", f"half of the decisions within {p50} ms, 99% within {p99} ms, at 1,000 events a second")
    grid.add_row("drift", drift_line(result["drift"]))
    console.print(grid)
    console.print("\n[bold]where the time went[/bold] (drift is counted beside the way of an event, on a thread of its own)")
    console.print(step_table(result["steps"]))
    console.print(
        f"""
[bold]what to try next[/bold] (the commands are in .venv/bin)
  headrace train flights                            train the model again; it becomes the champion
  mlflow ui --backend-store-uri {registry}
                                                    look at the models and how they did
  headrace demo --workers 2 --partitions 2 --order event --brokers HOST:PORT
                                                    the same, in two processes, on a broker of yours
  headrace topics flights --brokers HOST:PORT --create
  headrace run flights --brokers HOST:PORT          the same on a broker of yours; feed it with
  python -m ops.replay flights --brokers HOST:PORT
  streams/flights.py                                is the whole pipeline; one of your own, which runs at once, makes
  headrace init my-fraud
"""
    )


def drift_line(alarms: Sequence[Mapping[str, Any]]) -> str:
    """On how many days what the model saw was unlike its training data, and which features most often."""
    pairs = {(alarm["window"][:10], alarm["feature"]) for alarm in alarms}
    often = Counter(feature for _, feature in sorted(pairs)).most_common(4)
    named = ", ".join(f"{feature} ({days})" for feature, days in often)
    return f"{len({day for day, _ in pairs})} days unlike the training data" + (f", most often {named}" if named else "")


def step_table(steps: Mapping[str, float]) -> Table:
    """Seconds of each step, and its share as a bar."""
    total = sum(steps.values()) or 1.0
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, seconds in steps.items():
        share = seconds / total
        table.add_row(f"  {name}", f"{seconds:.2f} s", f"{share:.0%}", "█" * round(share * 40))
    return table
