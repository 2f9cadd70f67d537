"""Alert rules, runbook and dashboard: of metrics that there are, one entry for each alert, each tried firing and silent."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from payments import payments, settings
from prometheus_client import CollectorRegistry

from models.shadow import Compared
from ops import worker
from ops.deploy.watch.dashboard import dashboard
from streams.avro import Avro
from streams.meters import STAGES, Meters
from streams.pipeline import Pipeline

ROOT = Path(__file__).parent.parent
WATCH = ROOT / "ops" / "deploy" / "watch"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((WATCH.parent / "chart" / "files" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
TRIED: list[dict[str, Any]] = yaml.safe_load((WATCH / "rules_test.yaml").read_text())["tests"]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
PAGE = "https://github.com/headrace/headrace/blob/main/docs/runbook.md"
OF_A_SCRAPE = {"job", "instance"}
NO_METRIC = re.compile(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|ignoring|group_left|group_right)\s*\([^)]*\)')
NAME = re.compile(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]*\s*\()")


def metrics(expression: str) -> set[str]:
    """The names in an expression that are no function's, label's or operator's."""
    return set(NAME.findall(NO_METRIC.sub(" ", expression))) - {"and", "or", "unless", "offset", "bool"}


def count_everything(meters: Meters) -> None:
    """Has every metric show something, so that its labels are seen."""
    meters.dead({"poison": 1})
    meters.decided([("allow", 1)], [(["fallback"], 1)])
    meters.state("card", (1, 1), (1, 1, 1))
    meters.drift("amount", "psi", 0.1, True)
    meters.stored(lambda: {"card_history": dict.fromkeys(("rows", "asked", "refreshed", "given_up"), 1)}, lambda: 1)
    meters.pushing({"card_stream": SimpleNamespace(waiting=1, pushed=1, failed=1, given_up=1)})
    meters.states(lambda: {"card": 1})
    meters.model(lambda: 1, lambda: "onnx", lambda: False)
    meters.shadow(lambda: Compared(1, 2, decided={"allow": {"allow": 1}}, looked_at=time.time()))
    meters.recording(lambda: 1)
    meters.lags({0: lambda: 1})


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The labels of each sample that a worker's page can have, by its name; `up` is Prometheus' own."""
    found: dict[str, set[str]] = {"up": set()}

    def run(pipeline: Pipeline, values: object, *, registry: CollectorRegistry, **parts: Any) -> None:
        count_everything(Meters(registry, pipeline.name, 0.01))
        for metric in registry.collect():
            for sample in metric.samples:
                found.setdefault(sample.name, set()).update(sample.labels)

    monkeypatch.setattr(worker, "run", run)
    worker.work(payments(), settings(tmp_path), restarts=1)
    return found


def test_names_are_told_from_functions_labels_and_operators() -> None:
    first = 'sum by (a, b) (rate(x_total{c="d(e)"}[5m])) / on (a) group_left () (level:y:rate5m offset 10m > 0)'
    assert metrics(f"{first} or absent(up)") == {"x_total", "level:y:rate5m", "up"}


def test_every_metric_of_the_rules_is_one_that_a_worker_has(labels: dict[str, set[str]]) -> None:
    recorded = set[str]()
    for rule in RULES:
        found = metrics(rule["expr"])
        assert found, rule
        assert found <= labels.keys() | recorded, rule
        recorded |= {rule["record"]} if "record" in rule else set()


def test_what_the_rules_are_tried_with_has_the_names_and_labels_that_a_worker_gives(labels: dict[str, set[str]]) -> None:
    for tried in TRIED:
        for each in tried["input_series"]:
            name, inside = re.fullmatch(r"(\w+)\{(.*)\}", each["series"]).groups()
            assert set(re.findall(r'(\w+)="', inside)) == labels[name] | OF_A_SCRAPE, each


@pytest.mark.parametrize(("format", "column"), [(None, 0), (Avro(), 1)], ids=["JSON", "Avro"])
def test_the_codes_that_are_counted_from_0_on_are_those_of_the_docs(format: Avro | None, column: int) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (x )?\| (x )?\|", (ROOT / "docs" / "formats.md").read_text(), re.MULTILINE)
    assert sorted(payments(format=format).events.codes) == sorted(code for code, *marks in rows if marks[column])


def queries(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def test_every_metric_of_the_dashboard_is_one_that_a_worker_has(labels: dict[str, set[str]]) -> None:
    board = dashboard()
    for query in queries(board):
        assert metrics(query), query
        assert metrics(query) <= labels.keys(), query
    for choice in board["templating"]["list"]:
        assert set(re.findall(r"headrace_\w+", json.dumps(choice))) <= labels.keys()


def test_the_labels_that_the_dashboard_asks_for_are_the_metrics_own(labels: dict[str, set[str]]) -> None:
    for query in queries(dashboard()):
        known = set.union(*(labels[name] for name in metrics(query))) | OF_A_SCRAPE
        by = {name.strip() for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(",") if name.strip()}
        assert by | set(re.findall(r"(\w+)=~?\"", query)) <= known, query


def test_the_dashboard_has_a_row_for_each_word_and_panels_that_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(STAGES)
    taken = set[tuple[int, int]]()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_dashboard_that_is_kept_is_the_one_that_is_made() -> None:
    kept = WATCH / "dashboard.json"
    assert json.loads(kept.read_text()) == dashboard(), "python -m ops.deploy.watch.dashboard > ops/deploy/watch/dashboard.json"


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_urgent_it_is_what_happened_and_where_to_read_on(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["for"]
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert "$value" in alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"] == f"{PAGE}#{name.lower()}"


def test_the_runbook_has_an_entry_for_each_alert_in_the_same_order() -> None:
    entries = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    assert [entry.splitlines()[0] for entry in entries] == list(ALERTS)
    for entry in entries:
        name = entry.splitlines()[0]
        assert f"**Means:** {ALERTS[name]['labels']['severity']}. " in entry, name
        for word in ("look at", "type", "costs"):
            assert word in entry.lower(), name


def test_the_runbook_names_metrics_that_there_are(labels: dict[str, set[str]]) -> None:
    histograms = {name.removesuffix("_bucket") for name in labels}
    assert set(re.findall(r"headrace_\w+", RUNBOOK)) <= labels.keys() | histograms


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_is_tried_firing_and_silent(name: str) -> None:
    cases = [case for tried in TRIED for case in tried["alert_rule_test"] if case["alertname"] == name]
    assert {bool(case["exp_alerts"]) for case in cases} == {True, False}
    for case in cases:
        for expected in case["exp_alerts"]:
            assert expected["exp_labels"]["severity"] == ALERTS[name]["labels"]["severity"]


def test_nothing_is_tried_that_is_no_alert() -> None:
    assert {case["alertname"] for tried in TRIED for case in tried["alert_rule_test"]} == set(ALERTS)


@pytest.mark.parametrize(("verb", "file"), [("check", "../chart/files/rules.yaml"), ("test", "rules_test.yaml")])
def test_promtool_finds_the_rules_sound_and_what_they_are_tried_with_as_expected(promtool: str, verb: str, file: str) -> None:
    done = subprocess.run([promtool, verb, "rules", file], cwd=WATCH, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
