"""What the commands print and write: settings, tables, the result file."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import commit, machine, versions
from bench.results import summarise
from bench.systems import System
from bench.workloads import Prepared, Workload

OTHERS = 0.3
NAMES = {
    "p50": "p50 ms", "p90": "p90 ms", "p99": "p99 ms", "p999": "p99.9 ms", "max": "max ms", "messages_per_s": "messages/s",
    "crayfish_per_s": "by Crayfish's formula", "cpu": "cores", "memory_mb": "memory MB",
}  # fmt: skip


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def command_of(arguments: Sequence[str]) -> list[str]:
    """A command (`sys.argv`) as others can give it: files in folders of this machine by their names alone."""
    script, *words = arguments
    return [f"bench/{Path(script).name}", *(re.sub("^(--[a-z-]+=)?/.*/", r"\1", word) for word in words)]


def made(kind: str, workload: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What every result file begins with: what was measured, when, by which command, and on what."""
    head, dirty = commit()
    return {
        "format": 1,
        "kind": kind,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_of(sys.argv),
        "machine": machine(),
        "versions": versions(),
        "commit": head,
        "dirty": dirty,
        "workload": dict(workload),
        "settings": dict(settings),
    }


def result(
    kind: str,
    workload: Workload,
    prepared: Prepared,
    settings: Mapping[str, Any],
    systems: Sequence[System],
    runs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A result file's content (bench/results.py)."""
    told = {
        "name": workload.name,
        "messages": prepared.messages,
        "bytes_mean": prepared.bytes_mean,
        "seed": prepared.seed,
    }
    return {
        **made(kind, told, settings),
        "systems": {
            system.name: {"command": system.command or "headrace run", "settings": system.settings} for system in systems
        },
        "runs": list(runs),
        "summary": summarise(runs),  # type: ignore[arg-type]
    }


def write(made: Mapping[str, Any], file: Path | None) -> None:
    """Writes a result file, if one is wanted."""
    if file:
        file.write_text(json.dumps(made, indent=1) + "\n")


def settings_lines(made: Mapping[str, Any]) -> str:
    """The settings that stand beside the figures."""
    box = made["machine"]
    told = ", ".join(f"{name} {value}" for name, value in made["settings"].items() if value not in (None, "", {}))
    work = made["workload"]
    return (
        f"{made['kind']}, workload {work['name']} ({work['bytes_mean']:g} bytes a message)\n"
        f"on {box['cpu']}, {box['cores']} cores, commit {made['commit'][:12]}{' and changes' if made['dirty'] else ''}\n"
        f"{told}"
    )


def table(made: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """Median and range of each system, and headrace over each other; the runs that are not valid with why not."""
    lines = []
    summary = made["summary"]
    for word, groups, digits in (("", summary["systems"], None), ("headrace / ", summary["ratios"], 3)):
        for name, figures in groups.items():
            for metric, spread in figures.items():
                if metric.partition("@")[0] in metrics:
                    label, _, rate = metric.partition("@")
                    at = f" at {float(rate):,.0f}/s" if rate else ""
                    middle, low, high = (number(spread[part], digits) for part in ("median", "min", "max"))
                    shown = f"{middle:>12}   {low} to {high}"
                    lines.append(f"{word + name:24} {NAMES.get(label, label) + at:28} {shown}   (n {spread['n']})")
    lines += [
        f"{run['system']}, turn {run['turn'] + 1}: NOT VALID: {run['why_not']}" for run in made["runs"] if not run["valid"]
    ]
    return "\n".join(lines + stages(made["runs"]) + states(made["runs"]) + disturbed(made["runs"]))


def stages(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the time went in systems that say so: µs an event, the median over the runs, and rows in a batch."""
    lines = []
    for name in dict.fromkeys(run["system"] for run in runs):
        for rate in dict.fromkeys(run["rate"] for run in runs):
            said = [run for run in runs if run["system"] == name and run["rate"] == rate and run.get("stages")]
            if said:
                middle = {stage: median(run["stages"][stage] for run in said) for stage in said[0]["stages"]}
                rows = [run["batch_rows"]["mean"] for run in said if run.get("batch_rows")]
                at = f" at {rate:,.0f}/s" if rate else ""
                told = ", ".join(f"{stage} {value:.3g}" for stage, value in middle.items())
                lines.append(f"{name}{at}, µs an event: {told}; rows in a batch {median(rows):,.4g}" if rows else told)
    return lines


def states(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a system that says so held of each entity at the end of its last run."""
    last = {run["system"]: run["state"] for run in runs if run.get("state")}
    return [
        f"{name}, state by {entity}: {held['entities']:,} entities, {held['mb']:,.1f} MB, {held['mb_a_shard']:,.2f} MB a shard"
        for name, by_entity in last.items()
        for entity, held in by_entity.items()
    ]


def disturbed(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else ran on the machine, where it was enough to doubt the figures."""
    most = max((float((run.get("cpu") or {}).get("others") or 0.0) for run in runs), default=0.0)
    return [f"DISTURBED: up to {most:.2g} cores went to other processes meanwhile"] if most > OTHERS else []


def number(value: float, digits: int | None = None) -> str:
    """A figure with as many digits as it deserves."""
    if digits is not None:
        return f"{value:.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
