"""Which results stand together on a chart: those of one kind, workload, machine, commit and settings, whatever their rates."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.results import OURS, Kind, Result, Run, Summary, summarise

LOAD = {"rate", "rates", "slo"}
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
        same = [result[part] for part in ("kind", "workload", "machine", "commit")]
        key = json.dumps(
            [*same, {name: value for name, value in result["settings"].items() if name not in LOAD}], sort_keys=True
        )
        held.setdefault(key, []).append(result)
    alike: dict[tuple[str, str], list[list[Result]]] = {}
    for members in held.values():
        alike.setdefault((members[0]["kind"], members[0]["workload"]["name"]), []).append(members)
    found = []
    for (kind, workload), several in alike.items():
        apart = _apart([members[0] for members in several])
        for number, members in enumerate(several):
            title = workload + "".join(f", {name} {said(value)}" for name, value in apart[number].items())
            name = f"{kind}-{workload}" + (f"-{number + 1}" if len(several) > 1 else "")
            found.append(_group(name, title, members))
    return found


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


def _apart(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each result the settings (and machine, commit) in which they are not all the same."""
    flat = []
    for result in results:
        settings = {name: value for name, value in result["settings"].items() if name not in LOAD}
        sent = {name: value for name, value in result["workload"].items() if name != "name"}
        flat.append({**settings, **sent, "cpu": result["machine"].get("cpu"), "commit": result["commit"][:10]})
    names = dict.fromkeys(name for one in flat for name in one)
    differ = [name for name in names if len({json.dumps(one.get(name)) for one in flat}) > 1]
    return [{name: one.get(name) for name in differ} for one in flat]


def said(value: object) -> str:
    """A setting's value for people."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)
