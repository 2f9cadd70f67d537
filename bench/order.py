"""What arrival order costs: the share of decisions whose features differ from those in event order, by feature.

python -m bench.order [--partitions 3] [--days 7] [--json FILE]

The events of a week of October in one topic of several partitions, keyed by plane, drained by one worker in memory: with
order="arrival" each partition goes at its own pace, and a window over an airport sees the others' events late or early.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from prometheus_client import CollectorRegistry

from ops.replay import between, encode
from sinks.memory import MemorySink
from streams.flights import flights
from streams.pipeline import Decisions
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource

START = datetime(2013, 10, 7, tzinfo=UTC)
Log = list[tuple[bytes | None, bytes]]


def served(logs: Sequence[Log], order: str) -> pl.DataFrame:
    """The features each decision was made on, by event_id."""
    settings = JobSettings()
    sink = MemorySink()
    with tempfile.TemporaryDirectory() as home:
        job = settings.model_copy(
            update={"home": Path(home), "registry": settings.registry_uri, "recovery": False, "order": order}
        )
        pipeline = replace(flights, sinks=[Decisions("decisions", features=True)])
        run(pipeline, job, registry=CollectorRegistry(), source=MemorySource(logs), sink=sink)
    decisions = pl.read_ndjson(b"\n".join(sink.values("decisions")), infer_schema_length=None)
    return decisions.select("event_id", "features").unnest("features").sort("event_id")


def differing(one: pl.DataFrame, other: pl.DataFrame) -> dict[str, float]:
    """The share of rows that differ by more than 1e-6, by feature."""
    shares = {}
    for name in one.columns[1:]:
        a, b = one[name], other[name]
        same = a.eq_missing(b) if a.dtype == pl.String else (a.eq_missing(b) | ((a - b).abs() <= 1e-6).fill_null(False))
        shares[name] = 1 - int(same.sum()) / max(1, len(same))
    return shares


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.order", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    assert flights.model.history is not None
    table = between(flights.model.history(), "at", START, START + timedelta(days=options.days))
    keys, values = encode(table, flights.events.schema, flights.events.keys)
    logs: list[Log] = [[] for _ in range(options.partitions)]
    for key, value in zip(keys, values, strict=True):
        logs[sum(key) % options.partitions].append((key, value))
    print(f"{len(values):,} events in {options.partitions} partitions: event order", file=sys.stderr, flush=True)
    by_event = served(logs, "event")
    print("arrival order", file=sys.stderr, flush=True)
    by_arrival = served(logs, "arrival")
    if by_event["event_id"].to_list() != by_arrival["event_id"].to_list():
        print("the two runs did not decide the same events", file=sys.stderr)
        return 1
    shares = differing(by_event, by_arrival)
    result: dict[str, Any] = {
        "events": len(values),
        "decisions": by_event.height,
        "partitions": options.partitions,
        "differs": shares,
    }
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"{share:7.1%}  {name}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
