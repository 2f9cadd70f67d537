"""Which results stand together on a chart: those of one kind, workload, machine, commit and settings, whatever their rates.

What grows with the rate by the harness's own rule (`linger_ms`) may differ between rates, but not at one rate.
"""

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.results import OURS, Kind, Result, Run, Summary, summarise

LOAD = {"rate", "rates", "slo", "turns"}
WITH_RATE = {"linger_ms"}
ORDER = (OURS, "relay")


@dataclass(frozen=True)
class Group:
    """Results that belong on the same charts. Runs are by rate (None: none was set), turns made distinct over the files."""

    name: str
    title: str
    kind: Kind
    results: list[Result]
    systems: list[str]
    runs: dict[float | None, list[Run]]
    summaries: dict[float | None, Summary]


def groups(results: Iterable[Result]) -> list[Group]:
    """The results put together by what must be the same for figures to stand on one chart, in the order they came."""
    held: dict[str, list[Result]] = {}
    for result in results:
        loose = result["kind"] == "latency"
        settings = {
            name: value for name, value in result["settings"].items() if name not in (LOAD | WITH_RATE if loose else LOAD)
        }
        sent = {name: value for name, value in result["workload"].items() if not (loose and name in ("messages", "bytes_mean"))}
        same = json.dumps([result["kind"], sent, result["machine"], result["commit"], settings], sort_keys=True)
        while same in held and _clash(held[same], result):
            same += "+"
        held.setdefault(same, []).append(result)
    alike: dict[tuple[str, str], list[list[Result]]] = {}
    for members in held.values():
        alike.setdefault((members[0]["kind"], members[0]["workload"]["name"]), []).append(members)
    found = []
    for (kind, workload), several in alike.items():
        apart = _apart(several)
        for number, members in enumerate(several):
            title = workload + "".join(f", {name} {value}" for name, value in apart[number].items())
            name = f"{kind}-{workload}" + (f"-{number + 1}" if len(several) > 1 else "")
            found.append(_group(name, title, members))
    return found


def _clash(members: Sequence[Result], new: Result) -> bool:
    """Whether the new result has a rate in common with one of the members, but not what may differ with the rate."""
    rates = {run.get("rate") for run in new.get("runs", [])}
    return any(
        rates & {run.get("rate") for run in member.get("runs", [])}
        and any(member["settings"].get(name) != new["settings"].get(name) for name in WITH_RATE)
        for member in members
    )


def _group(name: str, title: str, results: list[Result]) -> Group:
    runs: dict[float | None, list[Run]] = {}
    for number, result in enumerate(results):
        for run in result.get("runs", []):
            moved: Run = {**run, "turn": run["turn"] + 1_000_000 * number}
            runs.setdefault(run.get("rate"), []).append(moved)
    runs = dict(sorted(runs.items(), key=lambda item: item[0] or 0))
    ran = dict.fromkeys(run["system"] for at in runs.values() for run in at)
    systems = [*(one for one in ORDER if one in ran), *(one for one in ran if one not in ORDER)]
    return Group(name, title, results[0]["kind"], results, systems, runs, {rate: summarise(at) for rate, at in runs.items()})


def _apart(several: Sequence[Sequence[Result]]) -> list[dict[str, str]]:
    """For each list of results the settings (and messages, machine, commit) in which the lists are not all the same.

    A setting that a list does not have, being older than the setting, tells nothing apart.
    """
    flat = []
    for members in several:
        first = members[0]
        settings = {name: value for name, value in together(members).items() if name not in LOAD}
        sent = {name: said(value) for name, value in first["workload"].items() if name not in ("name", "bytes_mean")}
        sent = {} if first["kind"] == "latency" else sent
        flat.append({**settings, **sent, "cpu": first["machine"].get("cpu"), "commit": first["commit"][:10] or "unknown"})
    names = dict.fromkeys(name for one in flat for name in one)
    differ = [name for name in names if len({one[name] for one in flat if name in one}) > 1]
    return [{name: str(one[name]) for name in differ if name in one} for one in flat]


def said(value: object) -> str:
    """A setting's value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def together(results: Sequence[Result]) -> dict[str, str]:
    """The settings of all results for people; where they are not the same, each value, as "0 / 5"."""
    names = dict.fromkeys(name for result in results for name in result["settings"])
    return {name: " / ".join(dict.fromkeys(said(one["settings"].get(name)) for one in results)) for name in names}


def command(result: Result) -> str:
    """The result's command line as a user would type it."""
    words = list(result["command"])
    if words and Path(words[0]).name.startswith("python"):
        words[0] = "python"
    elif words and words[0].endswith(".py"):
        words[:1] = ["python", "-m", f"{Path(words[0]).parent.name}.{Path(words[0]).stem}"]
    return shlex.join(words)
