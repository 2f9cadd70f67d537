"""The dashboard for Grafana, a row for each of the seven words.

`python -m ops.deploy.watch.dashboard > ops/deploy/watch/dashboard.json` writes it; Grafana imports that file.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from streams.meters import STAGES

Panel = dict[str, Any]
Series = tuple[str, str]  # an expression, and what Grafana calls its lines

SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT = 8, 7  # Grafana's rows are 24 wide: three panels side by side
HANDLED = "headrace_rows_total"


def chosen(**labels: str) -> str:
    """What picks the series of the jobs and pipelines chosen at the top of the page, and of these labels."""
    return ", ".join(['job=~"$job"', 'pipeline=~"$pipeline"', *(f'{name}="{value}"' for name, value in labels.items())])


def rate(counter: str, by: str = "", **labels: str) -> str:
    """A counter's steps in a second."""
    return f"sum by ({by}) (rate({counter}{{{chosen(**labels)}}}[$__rate_interval]))"


def total(gauge: str, by: str = "") -> str:
    """The sum over workers."""
    return f"sum by ({by}) ({gauge}{{{chosen()}}})"


def quantiles(histogram: str, **labels: str) -> list[Series]:
    """The median and the 99th percentile over all workers."""
    counted = f"sum by (pipeline, le) (rate({histogram}_bucket{{{chosen(**labels)}}}[$__rate_interval]))"
    return [(f"histogram_quantile({share}, {counted})", f"{{{{pipeline}}}} p{share * 100:g}") for share in (0.5, 0.99)]


def graph(title: str, unit: str, *series: Series) -> Panel:
    """Lines over time."""
    shown: Panel = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}}
    return _panel("timeseries", title, unit, series, shown | {"tooltip": {"mode": "multi", "sort": "desc"}})


def number(title: str, unit: str, *series: Series) -> Panel:
    """The last value of each, in large figures."""
    last: Panel = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    plain = {"colorMode": "none", "graphMode": "none", "textMode": "value_and_name"}
    return _panel("stat", title, unit, series, last | plain)


def heading(title: str) -> Panel:
    """What a row of panels stands under."""
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def _panel(kind: str, title: str, unit: str, series: Sequence[Series], options: Mapping[str, Any]) -> Panel:
    targets = [
        {"refId": chr(ord("A") + k), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
        for k, (expression, legend) in enumerate(series)
    ]
    defaults: Panel = {"defaults": {"unit": unit}, "overrides": []}
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "fieldConfig": defaults,
        "options": dict(options),
        "targets": targets,
    }


def busy(stage: str) -> Panel:
    """How much of a core a stage takes, which every word's row ends with."""
    seconds = rate("headrace_seconds_total", "instance", stage=stage)
    return graph("share of a core at work", "percentunit", (seconds, "{{instance}}"))


def rows() -> dict[str, list[Panel]]:
    """The panels by word. Of codes and flags, of which there are many, those that come are drawn."""
    said = f"{rate('headrace_flags_total', 'flag')} / scalar({rate(HANDLED, stage='decision')}) > 0"
    version, budget, restarts = (
        f"max by (pipeline) (headrace_{name}{{{chosen()}}})" for name in ("model_version", "budget_seconds", "restarts")
    )
    alarmed = f"sum by (feature, statistic) (increase(headrace_drift_alarms_total{{{chosen()}}}[$__range])) > 0"
    return {
        "event": [
            number("workers that answer", "none", ('sum(up{job=~"$job"})', "workers")),
            number("times started again", "none", (restarts, "{{pipeline}}")),
            graph("events", "eps", (rate(HANDLED, "instance", stage="event"), "{{instance}}")),
            graph("from the broker's stamp to the poll", "s", *quantiles("headrace_hop_seconds", hop="broker")),
            graph(
                "messages not decided yet",
                "none",
                (total("headrace_lag_messages", "pipeline, partition"), "{{pipeline}} {{partition}}"),
            ),
            graph("dead letters", "eps", (f"{rate('headrace_dead_letters_total', 'code')} > 0", "{{code}}")),
            graph("messages to read again", "none", (total("headrace_rebuild_left", "pipeline"), "{{pipeline}}")),
            graph("positions refused", "eps", (rate("headrace_commits_failed_total", "pipeline"), "{{pipeline}}")),
            graph("rows before their turn", "eps", (rate("headrace_early_releases_total", "pipeline"), "{{pipeline}}")),
            busy("event"),
        ],
        "features": [
            graph("entities", "none", (total("headrace_entities", "entity"), "{{entity}}")),
            graph("memory of entities", "bytes", (total("headrace_state_bytes", "entity"), "{{entity}}")),
            graph("entities that left", "eps", (rate("headrace_entities_gone_total", "entity, why"), "{{entity}} {{why}}")),
            graph("late updates", "eps", (rate("headrace_late_updates_total", "entity, outcome"), "{{entity}} {{outcome}}")),
            graph("stored rows held", "none", (total("headrace_stored_rows", "view"), "{{view}}")),
            graph(
                "stored rows read",
                "eps",
                (rate("headrace_stored_asked_total", "view"), "{{view}} asked"),
                (rate("headrace_stored_refreshed_total", "view"), "{{view}} refreshed"),
                (rate("headrace_stored_failures_total"), "failures of the store"),
            ),
            graph("values that wait for Feast", "none", (total("headrace_push_waiting", "source"), "{{source}}")),
            graph(
                "values pushed to Feast",
                "eps",
                (rate("headrace_pushed_total", "source"), "{{source}}"),
                (rate("headrace_push_failures_total", "source"), "{{source}} failed"),
            ),
            busy("features"),
        ],
        "batch": [
            graph("rows in a call of the model", "none", *quantiles("headrace_batch_rows")),
            graph("calls of the model", "eps", (rate("headrace_batch_rows_count", "pipeline"), "{{pipeline}}")),
            busy("batch"),
        ],
        "model": [
            number("version that decides", "none", (version, "{{pipeline}}")),
            number("workers by what computes it", "none", (total("headrace_model_engine", "engine"), "{{engine}}")),
            number("workers that let it be", "none", (total("headrace_model_resting", "pipeline"), "{{pipeline}}")),
            graph("rows without a score", "eps", (rate("headrace_model_failed_rows_total", "pipeline"), "{{pipeline}}")),
            graph(
                "versions",
                "none",
                (f"sum by (pipeline) (headrace_model_swaps_total{{{chosen()}}})", "{{pipeline}} swaps"),
                (f"sum by (pipeline) (headrace_model_refused_total{{{chosen()}}})", "{{pipeline}} refused"),
            ),
            graph(
                "the shadow's decisions that are the champion's",
                "percentunit",
                (f"max by (champion, shadow) (headrace_shadow_agreement{{{chosen()}}})", "{{champion}} and {{shadow}}"),
            ),
            busy("model"),
        ],
        "decision": [
            graph("decisions", "eps", (rate("headrace_decisions_total", "decision"), "{{decision}}")),
            graph("share of decisions with a flag", "percentunit", (said, "{{flag}}")),
            busy("decision"),
        ],
        "sink": [
            graph(
                "from the poll to the hand-over",
                "s",
                *quantiles("headrace_hop_seconds", hop="flow"),
                (budget, "{{pipeline}} budget"),
            ),
            graph("messages written", "eps", (rate(HANDLED, "instance", stage="sink"), "{{instance}}")),
            graph("decisions recorded", "eps", (rate("headrace_recorded_rows_total", "instance"), "{{instance}}")),
            busy("sink"),
        ],
        "drift": [
            graph(
                "statistics of the last day",
                "none",
                (f"max by (feature, statistic) (headrace_drift{{{chosen()}}})", "{{feature}} {{statistic}}"),
            ),
            number("days that alarmed, in the time shown", "none", (alarmed, "{{feature}} {{statistic}}")),
            graph("rows of days already judged", "eps", (rate("headrace_drift_late_rows_total", "pipeline"), "{{pipeline}}")),
            busy("drift"),
        ],
    }


def laid_out(by_word: Mapping[str, Sequence[Panel]]) -> list[Panel]:
    """All panels, each with a number and its place under its row's heading."""
    placed, y = list[Panel](), 0
    for word in STAGES:
        placed.append(heading(word) | {"gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        placed += [
            panel | {"gridPos": {"x": k % 3 * WIDTH, "y": y + k // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}}
            for k, panel in enumerate(by_word[word])
        ]
        y += -(-len(by_word[word]) // 3) * HEIGHT
    return [panel | {"id": k} for k, panel in enumerate(placed, 1)]


def choice(name: str, values: str) -> dict[str, Any]:
    """A list at the top of the page, of which any may be chosen."""
    every = {"text": ["All"], "value": ["$__all"]}
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": values, "refId": name},
        "definition": values,
        "current": every,
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "sort": 1,
    }


def dashboard() -> dict[str, Any]:
    """All of it, as Grafana 10 and later read it."""
    return {
        "title": "headrace",
        "uid": "headrace",
        "tags": ["headrace"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "refresh": 1},
                choice("job", f"label_values({HANDLED}, job)"),
                choice("pipeline", f'label_values({HANDLED}{{job=~"$job"}}, pipeline)'),
            ]
        },
        "panels": laid_out(rows()),
    }


def main() -> None:
    """Prints it."""
    print(json.dumps(dashboard(), indent=2))


if __name__ == "__main__":
    main()
