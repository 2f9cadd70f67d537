"""What the demo shows while it runs, and what it says at the end."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from ops.watch import Watcher
from streams.pipeline import Pipeline


@contextmanager
def live_view(
    watcher: Watcher, decisions: str, dead: str, drift: str, rows_read: Callable[[], float], messages: int
) -> Iterator[Callable[[], None]]:
    """Gives a function to call now and then: a table in its place on a terminal, a line every two seconds elsewhere."""
    started = time.monotonic()

    def facts() -> dict[str, str]:
        read = rows_read()
        seconds = max(time.monotonic() - started, 1e-3)
        return {
            "events": f"{read:,.0f} of {messages:,}",
            "events/s": f"{read / seconds:,.0f}",
            "decisions": f"{watcher.count(decisions):,}",
            "dead letters": f"{watcher.count(dead):,}",
            "drift reports": f"{watcher.count(drift):,}",
        }

    def table() -> Table:
        made = Table(*facts())
        made.add_row(*facts().values())
        return made

    if sys.stdout.isatty():
        with Live(table(), console=Console(), refresh_per_second=4) as live:
            yield lambda: live.update(table())
            live.update(table())
        return
    last = 0.0

    def line() -> None:
        nonlocal last
        if time.monotonic() - last >= 2:
            last = time.monotonic()
            print("  " + ", ".join(f"{value} {name}" for name, value in facts().items()), flush=True)

    yield line


def print_summary(result: dict[str, Any], pipeline: Pipeline, all_year: bool) -> None:
    """The demo's result for people."""
    console = Console(highlight=False)
    period = "the whole of 2013" if all_year else "October to December 2013"
    console.print(f"\n[bold]{pipeline.name}: {period}, decided as it happened[/bold]\n")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    total = sum(result["dead_letters"].values())
    kinds = len(result["dead_letters"])
    grid.add_row(
        "events", f"{result['events']:,} read from Kafka in {result['seconds']} s: {result['events_per_s']:,} a second"
    )
    by_decision = ", ".join(f"{count:,} {decision}" for decision, count in result["by_decision"].items())
    grid.add_row("decisions", f"{result['decisions']:,}, one for each scheduled flight ({by_decision})")
    repeats = f"{result['duplicates']:,} of them sent twice" if result["duplicates"] else "none lost, none sent twice"
    grid.add_row("", repeats if not any(result["unaccounted"].values()) else f"MISSING: {result['unaccounted']}")
    grid.add_row("dead letters", f"{total:,}: the malformed messages that were planted, of {kinds} kinds, each with its reason")
    latency = result["latency_ms"]
    grid.add_row("latency", f"half within {latency['p50']} ms, 99% within {latency['p99']} ms, at 1,000 events a second")
    grid.add_row("quality", f"AUC {result['auc']} from October on, on what came true later (0.5 is guessing, 1 is perfect)")
    alarms = sorted({(alarm["window"][:10], alarm["feature"]) for alarm in result["drift"]})
    days = len({day for day, _ in alarms})
    most = sorted({feature for _, feature in alarms}, key=lambda name: -sum(f == name for _, f in alarms))[:4]
    grid.add_row("drift", f"{days} days unlike the training data" + (f", most often in {', '.join(most)}" if most else ""))
    spent = sum(result["steps"].values()) or 1
    steps = ", ".join(f"{stage} {seconds:.1f} s ({seconds / spent:.0%})" for stage, seconds in result["steps"].items())
    grid.add_row("time per step", steps)
    console.print(grid)
    console.print(
        "\nNext: headrace train flights | headrace topics flights --brokers ... | headrace run flights --brokers ...; "
        "the pipeline is streams/flights.py\n"
    )
