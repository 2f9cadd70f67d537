"""The README's numbers from committed result files, between the two marker comments.

python -m bench.table RESULT.json... [--readme README.md] [--check] [--json FILE]

One table for each kind of measurement (latency, throughput, floor, features), with machine, commit and settings above it. A row
is what was measured, its median and range, and the command. A system is named only with what is in the files; where a ratio's
range holds 1 the row says that no difference was seen. --check writes nothing and exits with 1 if the README would change.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.charts import times
from bench.groups import LOAD, Group, command, groups, said
from bench.results import OURS, Kind, Measured, Result, ResultError, Run, Spread, read
from bench.show import number

BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
TITLES: dict[Kind, str] = {"latency": "Latency", "throughput": "Throughput", "floor": "Floor", "features": "Features"}
Row = tuple[str, str, str]


class ReadmeError(ValueError):
    """A README without its two markers, in order."""


def rows(group: Group) -> Iterator[Row]:
    """What, figure and command of everything measured in the group."""
    if group.kind == "floor":
        for result in group.results:
            yield f"{group.title}: efficiency", _floor(result), f"`{command(result)}`"
    for result in group.results:
        for each in result.get("figures", []):
            yield f"{each['part']}: {each['what']}", _measured(each), f"`{command(result)}`"
    for rate, runs in group.runs.items():
        summary = group.summaries[rate]
        from_file = next(result for result in group.results if any(run.get("rate") == rate for run in result.get("runs", [])))
        at = "" if rate is None else f", {rate:,.12g} messages/s"
        ran = {run["system"] for run in runs}
        for system in (one for one in group.systems if one in ran):
            metrics, ratios = summary["systems"].get(system, {}), summary["ratios"].get(system, {})
            if metrics:
                figure = _latency(system, metrics, ratios) if group.kind == "latency" else _throughput(system, metrics, ratios)
                figure += _cores(ran, [run for run in runs if run["system"] == system and run["valid"]])
            else:
                why = next(run.get("why_not") for run in runs if run["system"] == system and not run["valid"])
                figure = f"no valid run: {why}"
            yield f"{group.title}{at}: {system}", figure, f"`{command(from_file)}`"


def _latency(system: str, metrics: Mapping[str, Spread], ratios: Mapping[str, Spread]) -> str:
    figure = ", ".join(f"{name} {_reach(metrics[name], 'ms')}" for name in ("p50", "p99") if name in metrics)
    beside = ", ".join(f"{name} {_ratio(ratios[name])}" for name in ("p50", "p99") if name in ratios)
    return f"{figure}; {OURS} / {system}: {beside}" if beside else figure


def _throughput(system: str, metrics: Mapping[str, Spread], ratios: Mapping[str, Spread]) -> str:
    figure = _reach(metrics["messages_per_s"], "messages/s")
    if "crayfish_per_s" in metrics:
        figure += f"; by Crayfish's formula {_reach(metrics['crayfish_per_s'], 'messages/s')}"
    return figure + (f"; {OURS} / {system}: {_ratio(ratios['messages_per_s'])}" if "messages_per_s" in ratios else "")


def _cores(ran: Iterable[str], runs: Sequence[Run]) -> str:
    """What system and broker took of the cores, where numbers of workers are compared: it bounds what more workers can do."""
    if not any(name.startswith(f"{OURS}-") for name in ran):
        return ""
    used = [run["cpu"] or {} for run in runs if run.get("cpu")]
    held = {name: [value for cpu in used if (value := cpu.get(name)) is not None] for name in ("system", "broker")}
    told = ", ".join(f"{name} {median(values):.2f}" for name, values in held.items() if values)
    return f"; cores: {told}" if told else ""


def _floor(result: Result) -> str:
    total, actual, efficiency = result.get("sum_us"), result.get("actual_us"), result.get("efficiency")
    if actual is None or efficiency is None or total is None:
        return "only the parts were measured" + (f": {total:.2f} µs an event" if total is not None else "")
    return f"{efficiency:.2f}: the parts alone take {total:.2f} µs an event, the whole {actual:.2f} µs"


def _measured(figure: Measured) -> str:
    reach = f" ({number(figure['min'])} to {number(figure['max'])})" if figure["n"] > 1 else " (once)"
    goal = figure.get("goal")
    wanted = "" if goal is None else f"; at most {number(goal)} is the goal"
    return f"{number(figure['median'])}{figure['unit'] and ' ' + figure['unit']}{reach}{wanted}"


def _reach(held: Spread, unit: str) -> str:
    form = ".2f" if held["median"] < 10 else ".1f" if held["median"] < 100 else ",.0f"
    reach = f" ({held['min']:{form}} to {held['max']:{form}})" if held["n"] > 1 else " (one run)"
    return f"{held['median']:{form}} {unit}{reach}"


def _ratio(held: Spread) -> str:
    same = held["n"] > 1 and held["min"] <= 1 <= held["max"]
    return f"no difference seen, {times(held)}" if same else times(held)


def _conditions(of_kind: Sequence[Group]) -> str:
    results = [result for group in of_kind for result in group.results]
    first = results[0]
    common = [
        f"{name} {said(value)}"
        for name, value in first["settings"].items()
        if name not in LOAD and value is not None and all(other["settings"].get(name) == value for other in results)
    ]
    machines = dict.fromkeys(
        f"{one['machine'].get('cpu', '?')} with {one['machine'].get('cores', '?')} cores" for one in results
    )
    commits = dict.fromkeys(
        (one["commit"][:10] or "unknown") + (" with uncommitted changes" if one["dirty"] else "") for one in results
    )
    turns = [len({run["turn"] for run in runs}) for group in of_kind for runs in group.runs.values()]
    turns += [each["n"] for result in results for each in result.get("figures", []) if each["n"] > 1]
    pairs = ""
    if turns:
        pairs = f"; median and range of {min(turns)}" + (f" to {max(turns)}" if max(turns) > min(turns) else "") + " turns"
    return f"On {' and '.join(machines)}, commit {', '.join(commits)}{pairs}. Settings: {', '.join(common)}."


def markdown(results: Sequence[Result]) -> str:
    """The tables of all results, without the markers."""
    held = groups(results)
    blocks = []
    for kind, title in TITLES.items():
        of_kind = [group for group in held if group.kind == kind]
        if of_kind:
            lines = [f"**{title}.** {_conditions(of_kind)}", "", "| what | figure | command |", "|---|---|---|"]
            before = ""
            for row in (row for group in of_kind for row in rows(group)):
                what, figure, typed = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
                lines.append(f"| {what} | {figure} | {'the same' if typed == before else typed} |")
                before = typed
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def replaced(readme: str, tables: str) -> str:
    """The README with what is between its markers replaced; ReadmeError if it has not one pair of them."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ReadmeError(f"expected {BEGIN} and after it {END}, once each, got {readme.count(BEGIN)} and {readme.count(END)}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.table", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the README would change")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="the rows")
    options = parser.parse_args(arguments)
    try:
        results = [read(path) for path in options.results]
        held = options.readme.read_text(encoding="utf-8")
        wanted = replaced(held, markdown(results))
    except (ResultError, ReadmeError, OSError) as error:
        print(f"{options.readme}: {error}" if isinstance(error, ReadmeError) else error, file=sys.stderr)
        return 2
    if options.json:
        found = [dict(zip(("what", "figure", "command"), row, strict=True)) for group in groups(results) for row in rows(group)]
        options.json.write_text(json.dumps({"rows": found}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if wanted == held:
        print(f"{options.readme}: as the results say", file=sys.stderr)
        return 0
    if options.check:
        print(f"{options.readme}: not as the results say; write it with python -m bench.table", file=sys.stderr)
        return 1
    options.readme.write_text(wanted, encoding="utf-8")
    print(f"{options.readme}: numbers written", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
