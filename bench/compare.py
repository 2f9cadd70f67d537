"""Two result files side by side: what changed from A to B, and whether more than chance did it.

python -m bench.compare A.json B.json [--worse 1.1] [--json FILE]

Compares per system and metric the medians and ranges over the valid runs. Where the ranges overlap no difference was seen.

Exit code 0: B is not worse. 1: B is worse than A by more than --worse in a latency, a throughput or the floor's efficiency,
with ranges apart, or a system has no valid run in B any more. 2: workload or settings differ, so that there is nothing to
compare (--anyway does it nevertheless), or a file cannot be read.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from bench.results import LATENCY, Result, ResultError, Spread, read, spread, summarise

HIGHER_IS_BETTER = {"messages_per_s", "crayfish_per_s", "efficiency"}
JUDGED = {name for name in LATENCY if name != "max"} | HIGHER_IS_BETTER | {"actual_us"}
UNITS = {
    "messages_per_s": "/s",
    "crayfish_per_s": "/s",
    "cpu": " cores",
    "memory_mb": " MB",
    "efficiency": "",
    "actual_us": " µs",
}
FLOOR = "headrace"


class Line(TypedDict):
    """One metric of one system in both files; `change` is B over A (medians), `verdict` what may be said about it."""

    system: str
    metric: str
    a: Spread
    b: Spread
    change: float | None
    overlap: bool
    verdict: str
    worse: bool


def differences(a: Result, b: Result) -> list[str]:
    """What of workload and settings (of the whole, and of the systems in both) is not the same."""
    found = [f"kind: {a['kind']} and {b['kind']}"] if a["kind"] != b["kind"] else []
    found += _unlike("workload", _sent(a), _sent(b)) + _unlike("settings", _set(a), _set(b))
    mine, other = a.get("systems", {}), b.get("systems", {})
    for name in mine:
        if name in other:
            found += _unlike(f"systems.{name}.settings", mine[name].get("settings") or {}, other[name].get("settings") or {})
    return found


def notes(a: Result, b: Result) -> list[str]:
    """What else is not the same and bears on the change: machine, versions, systems in one file only, uncommitted code."""
    found = _unlike("machine", a["machine"], b["machine"]) + _unlike("versions", a["versions"], b["versions"])
    found += [f"{name} is in {file} only" for name, file in _alone(a, b)]
    for file, result in (("A", a), ("B", b)):
        if result["dirty"]:
            found.append(f"{file} was measured with uncommitted changes on {result['commit'][:10]}")
    return found


def compare(a: Result, b: Result, worse: float = 1.1) -> list[Line]:
    """One line for each metric that both files have, systems in the order of A."""
    mine, other = _spreads(a), _spreads(b)
    lines = []
    for system, metrics in mine.items():
        for metric, before in metrics.items():
            after = other.get(system, {}).get(metric)
            if after is not None:
                judged = a["kind"] == "features" or metric.partition("@")[0].removeprefix("broker_") in JUDGED
                lines.append(_line(system, metric, before, after, worse, judged))
    return lines


def gone(a: Result, b: Result) -> list[str]:
    """Systems, at their rates, with valid runs in A and none, though they ran, in B; each with why the first failed."""
    found = []
    done = {(run["system"], run.get("rate")) for run in a.get("runs", []) if run["valid"]}
    held = {(run["system"], run.get("rate")) for run in b.get("runs", []) if run["valid"]}
    said: set[tuple[str, float | None]] = set()
    for run in b.get("runs", []):
        which = (run["system"], run.get("rate"))
        if which in done and which not in held and which not in said:
            said.add(which)
            at = f" at {which[1]:,.12g}/s" if which[1] is not None else ""
            found.append(f"{which[0]}{at}: valid in A, no valid run in B: {run.get('why_not')}")
    return found


def _line(system: str, metric: str, a: Spread, b: Spread, worse: float, judged: bool) -> Line:
    overlap = a["min"] <= b["max"] and b["min"] <= a["max"]
    change = b["median"] / a["median"] if a["median"] else None
    name = metric.partition("@")[0].removeprefix("broker_")
    better = (b["median"] > a["median"]) == (name in HIGHER_IS_BETTER)
    factor = None if not change else max(change, 1 / change)
    bad = not overlap and not better and judged and (factor is None or factor > worse)
    if overlap:
        verdict = "no difference seen"
    else:
        verdict = ("better" if better else "worse") + ("" if factor is None else f" by {factor:.2f}x")
        if min(a["n"], b["n"]) < 3:
            verdict += " (fewer than 3 runs: chance parts ranges too)"
    return {
        "system": system,
        "metric": metric,
        "a": a,
        "b": b,
        "change": change,
        "overlap": overlap,
        "verdict": verdict,
        "worse": bad,
    }


def _spreads(result: Result) -> Mapping[str, Mapping[str, Spread]]:
    if result["kind"] == "features":
        parts: dict[str, dict[str, Spread]] = {}
        for figure in result.get("figures", []):
            held: Spread = {"median": figure["median"], "min": figure["min"], "max": figure["max"], "n": figure["n"]}
            parts.setdefault(figure["part"], {})[f"{figure['what']} [{figure['unit']}]"] = held
        return parts
    if result["kind"] != "floor":
        return summarise(result.get("runs", []))["systems"]
    alone = {f"floor {part['part']}": spread([part["us_per_event"]]) for part in result.get("parts", [])}
    for name in ("sum_us", "actual_us", "efficiency"):
        value = result.get(name)
        if isinstance(value, int | float):
            alone[name] = spread([value])
    return {FLOOR: alone}


def _sent(result: Result) -> Mapping[str, Any]:
    """The workload, of a latency only what does not follow from rate and time."""
    kept = ("name", "seed") if result["kind"] == "latency" else tuple(result["workload"])
    return {name: value for name, value in result["workload"].items() if name in kept}


def _set(result: Result) -> Mapping[str, Any]:
    return {name: value for name, value in result["settings"].items() if name != "turns"}


def _unlike(where: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    keys = [*a, *(key for key in b if key not in a)]
    return [
        f"{where}.{key}: {json.dumps(a.get(key), ensure_ascii=False)} and {json.dumps(b.get(key), ensure_ascii=False)}"
        for key in keys
        if a.get(key) != b.get(key)
    ]


def _alone(a: Result, b: Result) -> Iterator[tuple[str, str]]:
    ran_a, ran_b = ({run["system"] for run in result.get("runs", [])} for result in (a, b))
    yield from ((name, "A") for name in sorted(ran_a - ran_b))
    yield from ((name, "B") for name in sorted(ran_b - ran_a))


def _show(held: Spread, metric: str) -> str:
    name = metric.partition("@")[0]
    unit = " µs" if name.startswith("floor ") or name == "sum_us" else "" if name.endswith("]") else UNITS.get(name, " ms")
    form = ",.0f" if abs(held["median"]) >= 100 else ".3g" if abs(held["median"]) < 10 else ".1f"
    alone = held["n"] == 1
    return f"{held['median']:{form}}{unit}" + ("" if alone else f" ({held['min']:{form}} to {held['max']:{form}})")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("--worse", type=float, default=1.1, help="the factor beyond which worse is too much (1.1)")
    parser.add_argument("--anyway", action="store_true", help="compare although workload or settings differ")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    if options.worse < 1:
        parser.error(f"--worse: expected a factor of at least 1, got {options.worse}")
    try:
        a, b = read(options.a), read(options.b)
    except ResultError as error:
        print(error, file=sys.stderr)
        return 2
    differ = differences(a, b)
    if differ:
        print("workload or settings differ (A and B):", *differ, sep="\n  ", file=sys.stderr)
        if not options.anyway:
            return 2
    said, lines, missing = notes(a, b), compare(a, b, options.worse), gone(a, b)
    for note in said:
        print(f"note: {note}")
    rows = [("system", "metric", "A", "B", "B/A", "")] + [
        (
            line["system"],
            line["metric"],
            _show(line["a"], line["metric"]),
            _show(line["b"], line["metric"]),
            "" if line["change"] is None else f"{line['change']:.2f}",
            line["verdict"] + (" <- beyond --worse" if line["worse"] else ""),
        )
        for line in lines
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for line in missing:
        print(line)
    failed = bool(missing) or any(line["worse"] for line in lines)
    if options.json:
        found = {"a": str(options.a), "b": str(options.b), "worse_than": options.worse, "differ": differ, "notes": said}
        options.json.write_text(json.dumps({**found, "gone": missing, "lines": lines, "worse": failed}, indent=2) + "\n")
    if not lines:
        print("the two files have no metric of a valid run in common", file=sys.stderr)
        return 1 if failed else 2
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
