"""One HTML page and PNGs from result files: latency by percentile and against load, throughput, stages, the floor.

python -m bench.report RESULT.json... --out FOLDER

The page stands alone (no network, light and dark by the reader's setting). Each chart is also written as NAME.png and
NAME-dark.png. Files of one kind, workload, machine, commit and settings are shown together, so that one file a rate gives one
chart against load.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from bench import charts
from bench.charts import DARK, LIGHT, Curve, Theme
from bench.groups import Group, groups
from bench.page import page
from bench.results import OURS, STAGES, Result, ResultError, Spread, read


@dataclass(frozen=True)
class Chart:
    """A chart of a group: `name` is its file's, `draw` makes it in a theme, `says` describes it to who cannot see it."""

    name: str
    title: str
    says: str
    draw: Callable[[Theme], Figure]


def drawings(group: Group) -> list[Chart]:
    """The charts that a group has figures for; ValueError where a run's histogram cannot be read."""
    if group.kind == "features":
        return []
    if group.kind == "floor":
        return [_floor(group, number) for number in range(len(group.results))]
    found = []
    if group.kind == "latency":
        curves = _curves(group)
        if curves:
            says = "Latency by percentile for each system; the line is the median of the runs, the band their range."
            found.append(
                Chart(
                    f"{group.name}-percentiles",
                    "Latency by percentile",
                    says,
                    lambda theme: charts.percentiles(curves, group.systems, theme),
                )
            )
        against = _against_load(group)
        if len({rate for held in against.values() for rate in held}) > 1:
            says = "p50 and p99 of each system at each rate; the bars are the range over the runs."
            found.append(
                Chart(
                    f"{group.name}-load", "Latency against load", says, lambda theme: charts.load(against, group.systems, theme)
                )
            )
    else:
        for metric, unit in (("messages_per_s", "messages/s"), ("crayfish_per_s", "messages/s by Crayfish's formula")):
            spreads, ratios = _metric(group, metric)
            if spreads:
                found.append(_bars(group, metric, unit, spreads, ratios))
    rows = _stages(group)
    if rows:
        says = "Microseconds per event in each of the seven stages, the median of headrace's runs."
        found.append(Chart(f"{group.name}-stages", "Where the time goes", says, lambda theme: charts.stages(rows, theme)))
    return found


def _bars(group: Group, metric: str, unit: str, spreads: Mapping[str, Spread], ratios: Mapping[str, Spread]) -> Chart:
    name = group.name if metric == "messages_per_s" else f"{group.name}-crayfish"
    says = f"{unit} of each system, the median of the runs and their range, and headrace's ratio to it turn by turn."
    title = "Throughput" if metric == "messages_per_s" else "Throughput by Crayfish's own formula"
    return Chart(name, title, says, lambda theme: charts.throughput(spreads, ratios, group.systems, theme, unit))


def _floor(group: Group, number: int) -> Chart:
    result = group.results[number]
    parts = {part["part"]: part["us_per_event"] for part in result.get("parts", [])}
    actual = result.get("actual_us")
    name = group.name + (f"-{number + 1}" if len(group.results) > 1 else "")
    says = "Microseconds per event that each part takes alone, their sum, and what the whole takes."
    return Chart(name, "The floor and what is reached", says, lambda theme: charts.floor(parts, actual, theme))


def _curves(group: Group) -> dict[float, dict[str, list[Curve]]]:
    found: dict[float, dict[str, list[Curve]]] = {}
    for rate, runs in group.runs.items():
        for run in runs:
            encoded = run.get("histogram")
            if run["valid"] and encoded:
                found.setdefault(rate or 0, {}).setdefault(run["system"], []).append(charts.curve(encoded))
    return found


def _against_load(group: Group) -> dict[str, dict[float, dict[str, Spread]]]:
    found: dict[str, dict[float, dict[str, Spread]]] = {}
    for rate, summary in group.summaries.items():
        for system, metrics in summary["systems"].items():
            if rate and metrics:
                found.setdefault(system, {})[rate] = metrics
    return found


def _metric(group: Group, metric: str) -> tuple[dict[str, Spread], dict[str, Spread]]:
    summary = next(iter(group.summaries.values()), None)
    if summary is None:
        return {}, {}
    spreads = {name: held[metric] for name, held in summary["systems"].items() if metric in held}
    return spreads, {name: held[metric] for name, held in summary["ratios"].items() if metric in held}


def _stages(group: Group) -> dict[str, dict[str, float]]:
    rows = {}
    for rate, runs in group.runs.items():
        held = [run.get("stages") or {} for run in runs if run["valid"] and run["system"] == OURS and run.get("stages")]
        if held:
            label = OURS if rate is None else f"{rate:,.12g}/s"
            rows[label] = {word: median(one.get(word, 0.0) for one in held) for word in STAGES}
    return rows


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """The page (index.html) and the PNGs in folder `out`, made if need be; their paths, the page first."""
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "index.html"]
    shown = []
    for group in groups(results):
        drawn = []
        for chart in drawings(group):
            for theme, ending in ((LIGHT, ""), (DARK, "-dark")):
                written.append(out / f"{chart.name}{ending}.png")
                written[-1].write_bytes(charts.png(chart.draw(theme)))
            drawn.append((chart.title, chart.says, charts.svg(chart.draw(charts.ON_PAGE), chart.name)))
        shown.append((group, drawn))
    written[0].write_text(page(shown), encoding="utf-8")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="the paths written, and what is shown together")
    options = parser.parse_args(arguments)
    try:
        results = []
        for number, path in enumerate(options.results, start=1):
            print(f"reading {number} of {len(options.results)}: {path}", file=sys.stderr, flush=True)
            results.append(read(path))
        written = write(results, options.out)
    except ValueError as error:
        print(error if isinstance(error, ResultError) else f"bench.report: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    if options.json:
        titles = [f"{group.kind}: {group.title}" for group in groups(results)]
        options.json.write_text(json.dumps({"written": [str(path) for path in written], "groups": titles}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
