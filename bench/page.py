"""The report's HTML page: self-contained, light and dark, each table with the conditions its figures were taken under."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench.charts import DARK, LIGHT, css, times
from bench.groups import Group, command, said, together
from bench.results import OURS, STAGES, Run, Spread, spread

Drawn = tuple[str, str, str]
TITLES = {"latency": "Latency", "throughput": "Throughput", "floor": "Floor", "features": "Features"}
COUNTS = ("sent", "expected", "answers", "lost", "doubled", "wrong")
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
CELLS = "Each cell: the median over the valid runs, below it their range."
RATIOS = "Ratios are headrace's figure over the system's, turn by turn"
NOTES = {
    "latency": "Latency runs from the moment a message was due to be sent, by a schedule fixed before the run, to the moment a"
    f" consumer in another process held the answer. {CELLS} {RATIOS}: below 1 headrace is faster. Where a range holds 1, no"
    " difference was seen.",
    "throughput": "A topic filled beforehand is drained; the rate is taken from the broker's append times after warm-up."
    f" {CELLS} {RATIOS}: above 1 headrace is faster. Where a range holds 1, no difference was seen.",
    "floor": "What each part takes alone, on one core. Efficiency is the sum of the parts over what the whole takes.",
    "features": "Each part alone, its results checked first. Below each median its range over the turns; the less the better.",
}


def page(shown: Sequence[tuple[Group, Sequence[Drawn]]]) -> str:
    """The whole page; `shown` holds each group with its charts as (title, what it shows, SVG element)."""
    made = sorted({result["made_at"][:10] for group, _ in shown for result in group.results})
    when = made[0] if len(set(made)) == 1 else f"{made[0]} to {made[-1]}"
    links = "".join(f'<a href="#{escape(group.name)}">{_heading(group)}</a>' for group, _ in shown)
    sections = "".join(_section(group, drawn) for group, drawn in shown)
    theme = f":root {{ {css(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {css(DARK)} }} }}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>headrace: measurements of {escape(when)}</title>\n<style>\n{theme}\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>headrace, measured</h1><p>{escape(when)}</p><nav>{links}</nav></header>\n"
        f"{sections}</main>\n</body>\n</html>\n"
    )


def _heading(group: Group) -> str:
    return f"{TITLES[group.kind]}: {escape(group.title)}"


def _section(group: Group, drawn: Sequence[Drawn]) -> str:
    figures = "".join(
        f'<figure><figcaption><b>{escape(title)}</b> {escape(says)}</figcaption><div class="wide chart" role="img"'
        f' aria-label="{escape(says)}">{svg}</div></figure>\n'
        for title, says, svg in drawn
    )
    table = {"latency": _latency, "throughput": _throughput, "floor": _floor, "features": _features}[group.kind](group)
    return (
        f'<section id="{escape(group.name)}">\n<h2>{_heading(group)}</h2>\n<p class="note">{escape(NOTES[group.kind])}</p>\n'
        f"{figures}{table}{_stages(group)}{_invalid(group)}{_conditions(group)}{_runs(group)}</section>\n"
    )


def _latency(group: Group) -> str:
    columns = {"p50": "p50, ms", "p90": "p90, ms", "p99": "p99, ms", "p999": "p99.9, ms", "max": "max, ms"}
    columns |= {"cpu": "CPU, cores", "memory_mb": "memory, MB"}
    columns |= {"broker_p50": "p50, ms, by broker time", "broker_p99": "p99, ms, by broker time"}
    with_ratio = ("p50", "p99")
    head = ["system", "runs"]
    for name, title in columns.items():
        head += [title, f"{name} ratio"] if name in with_ratio else [title]
    rows = []
    for rate, summary in group.summaries.items():
        rows.append(f'<tr class="part"><th colspan="{len(head)}">{_rate(rate)}</th></tr>')
        for system in _of(group, rate):
            metrics = summary["systems"].get(system, {})
            cells = []
            for name in columns:
                cells.append(_spread(metrics.get(name)))
                if name in with_ratio:
                    cells.append(_ratio(summary["ratios"].get(system, {}).get(name)))
            rows.append(_row(system, _valid(group, rate, system), *cells))
    return _table(head, rows)


def _throughput(group: Group) -> str:
    held = [system for summary in group.summaries.values() for system in summary["systems"].values()]
    crayfish = any("crayfish_per_s" in metrics for metrics in held)
    names = ("messages_per_s", *(("crayfish_per_s",) if crayfish else ()), "cpu", "memory_mb")
    head = ["system", "runs", "messages/s", *(("messages/s by Crayfish's formula",) if crayfish else ())]
    head += ["CPU, cores", "memory, MB", "ratio"]
    rows = []
    for rate, summary in group.summaries.items():
        for system in _of(group, rate):
            metrics = summary["systems"].get(system, {})
            cells = [_spread(metrics.get(name)) for name in names]
            cells.append(_ratio(summary["ratios"].get(system, {}).get("messages_per_s")))
            rows.append(_row(system, _valid(group, rate, system), *cells))
    return _table(head, rows)


def _floor(group: Group) -> str:
    rows = []
    for result in group.results:
        rows += [_row(part["part"], f"{part['us_per_event']:.3f}") for part in result.get("parts", [])]
        rows.append(_row("sum: the floor", _number(result.get("sum_us"), ".3f")))
        rows.append(_row("actual", _number(result.get("actual_us"), ".3f")))
        rows.append(_row("efficiency", _number(result.get("efficiency"), ".2f")))
    return _table(["part", "µs per event"], rows)


def _features(group: Group) -> str:
    rows = []
    for result in group.results:
        for figure in result.get("figures", []):
            held: Spread = {"median": figure["median"], "min": figure["min"], "max": figure["max"], "n": figure["n"]}
            goal = figure.get("goal")
            told = "" if goal is None else f"{goal:g}"
            rows.append(_row(figure["part"], escape(figure["what"]), _spread(held), escape(figure["unit"]), told))
    return _table(["part", "what", "figure", "unit", "goal"], rows)


def _stages(group: Group) -> str:
    rows = []
    for rate, runs in group.runs.items():
        for system in _of(group, rate):
            held = [run.get("stages") or {} for run in runs if run["system"] == system and run["valid"] and run.get("stages")]
            if held:
                cells = [_spread(spread(one.get(word, 0.0) for one in held)) for word in STAGES]
                rows.append(_row(system + ("" if rate is None else f" at {_rate(rate)}"), *cells))
    return _table(["µs per event", *STAGES], rows) if rows else ""


def _invalid(group: Group) -> str:
    spoiled = [(rate, run) for rate, runs in group.runs.items() for run in runs if not run["valid"]]
    if not spoiled:
        words = "Every run was valid: nothing lost, nothing doubled, every answer right, the generator on time."
        return f'<p class="good">{words}</p>\n' if group.runs else ""
    rows = [
        _row(run["system"], str(run["turn"] % 1_000_000), _rate(rate) if rate else "", escape(str(run.get("why_not"))))
        for rate, run in spoiled
    ]
    return f'<h3 class="bad">Runs that do not count ({len(spoiled)})</h3>\n' + _table(
        ["system", "turn", "rate", "why not"], rows
    )


def _conditions(group: Group) -> str:
    first = group.results[0]
    machine = first["machine"]
    of_machine = [f"{machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, {machine.get('memory_gb', '?')} GB"]
    of_machine += [f"{name} {said(value)}" for name, value in machine.items() if name not in {"cpu", "cores", "memory_gb"}]
    sent = first["workload"]
    work = [
        f"{sent.get('messages') or 0:,} messages",
        f"{sent.get('bytes_mean') or 0:,.0f} bytes each",
        f"seed {said(sent.get('seed'))}",
    ]
    dirty = ' <b class="bad">with uncommitted changes</b>' if any(result["dirty"] for result in group.results) else ""
    versions = {name: version for result in group.results for name, version in result["versions"].items()}
    lines = [
        ("settings", _chips(together(group.results))),
        ("workload", escape(f"{sent['name']}: " + ", ".join(work))),
        ("machine", escape(", ".join(of_machine))),
        ("versions", _chips(versions)),
        ("commit", f"<code>{escape(first['commit'][:12])}</code>{dirty}"),
        ("commands", "<br>".join(f"<code>{escape(command(result))}</code>" for result in group.results)),
    ]
    held = {name: system for result in group.results for name, system in result.get("systems", {}).items()}
    for name, system in held.items():
        lines.append((name, f"<code>{escape(system['command'])}</code> {_chips(system.get('settings') or {})}"))
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in lines) + "</dl>\n"


def _runs(group: Group) -> str:
    rows = []
    for rate, runs in group.runs.items():
        for run in runs:
            late = (run.get("generator") or {}).get("late_p99_ms")
            counts: Sequence[Any] = [run.get(name) for name in COUNTS]
            cells = ["" if value is None else f"{value:,}" for value in counts]
            batch = (run.get("batch_rows") or {}).get("mean")
            figure = _figure(run)
            verdict = "valid" if run["valid"] else f'<span class="bad">{escape(str(run.get("why_not")))}</span>'
            rows.append(
                _row(
                    run["system"],
                    str(run["turn"] % 1_000_000),
                    _rate(rate) if rate else "",
                    *cells,
                    _number(late, ".2f"),
                    _number(batch, ",.1f"),
                    _lag(run),
                    figure,
                    verdict,
                )
            )
    if not rows:
        return ""
    head = ["system", "turn", "rate", *COUNTS, "generator late p99, ms", "batch rows, mean", "lag max / end", "figure", ""]
    return f"<details><summary>Each run ({len(rows)})</summary>\n{_table(head, rows)}</details>\n"


def _figure(run: Run) -> str:
    latency, speed = run.get("latency_ms"), run.get("throughput")
    if latency:
        return f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"
    return f"{speed['messages_per_s']:,.0f} messages/s" if speed else ""


def _lag(run: Run) -> str:
    lag = run.get("lag") or {}
    return f"{_number(lag.get('max'), ',.0f')} / {_number(lag.get('end'), ',.0f')}" if lag else ""


def _of(group: Group, rate: float | None) -> Iterable[str]:
    ran = {run["system"] for run in group.runs[rate]}
    return [system for system in group.systems if system in ran]


def _valid(group: Group, rate: float | None, system: str) -> str:
    runs = [run["valid"] for run in group.runs[rate] if run["system"] == system]
    good = sum(runs)
    return str(good) if good == len(runs) else f'<span class="bad">{good} of {len(runs)}</span>'


def _rate(rate: float | None) -> str:
    return "full topic" if rate is None else f"{rate:,.12g} messages/s"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def _form(value: float) -> str:
    return ".2f" if abs(value) < 10 else ".1f" if abs(value) < 100 else ",.0f"


def _spread(held: Spread | None) -> str:
    if held is None:
        return ""
    form = _form(held["median"])
    low, high = f"{held['min']:{form}}", f"{held['max']:{form}}"
    return f"{held['median']:{form}}" + (f"<small>{low} to {high}</small>" if low != high else "")


def _ratio(held: Spread | None) -> str:
    if held is None:
        return ""
    middle, _, reach = times(held).partition(" ")
    return f"{middle}<small>{reach.strip('()')}</small>"


def _chips(values: Mapping[str, object]) -> str:
    return "".join(f'<span class="chip">{escape(name)} <b>{escape(said(value))}</b></span>' for name, value in values.items())


def _row(name: str, *cells: str) -> str:
    mark = ' class="ours"' if name.split(" at ")[0] == OURS else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _table(head: Sequence[str], rows: Sequence[str], style: str = "") -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = f"<thead><tr>{titles}</tr></thead>\n<tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide"><table class="{style}">\n{body}\n</table></div>\n'
