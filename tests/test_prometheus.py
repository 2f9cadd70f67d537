"""A real Prometheus scrapes a job: it finds every metric that rules and dashboard name, and an alert fires that has to."""

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
import yaml
from confluent_kafka import Producer
from test_page import get, until
from test_restart import EACH, PARTITIONS, decided, filled, running, until_said
from test_watch_rules import RULES, metrics, queries

from bench.proving.job import ALL, COUNT, SUM, event
from models.reference import DAY_US, build_reference
from ops.broker import Broker, free_port
from ops.deploy.watch.dashboard import dashboard
from ops.topics import create
from ops.workers import end

JOB = """
from dataclasses import replace
from bench.proving.job import pipeline
from streams.budget import Budget
from streams.pipeline import Drift, Record

job = replace(pipeline("scraped"), budget=Budget(60_000), drift=Drift("scraped-drift"), record=Record())
"""
GOOD, BROKEN = 200, 50
PROVOKED = "HeadraceDeadLetters"
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$job": ".*", "$pipeline": ".*"}
ELSEWHERE = {
    "a pipeline with Stored": {"stored_rows", "stored_asked_total", "stored_refreshed_total", "stored_failures_total"},
    "a pipeline with a Push": {"push_waiting", "pushed_total", "push_failures_total"},
    "a shadow that has scored": {"shadow_agreement"},
    "a day that was judged": {"drift"},
}
"""Where those metrics are (headrace_...) that this job does not have."""


@contextmanager
def scraping(prometheus: str, folder: Path, ports: Sequence[int]) -> Iterator[int]:
    """Prometheus beside a job with workers on these ports, with the chart's rules, one alert of which waits for a second only.
    Gives the port that it answers on."""
    rules = [rule | {"for": "1s"} if rule.get("alert") == PROVOKED else rule for rule in RULES]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "headrace", "rules": rules}]}))
    workers = [f"127.0.0.1:{port}" for port in ports]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "headrace", "static_configs": [{"targets": workers}]}],
    }
    config, log, port = folder / "prometheus.yaml", folder / "prometheus.log", free_port()
    config.write_text(yaml.safe_dump(settings))
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with log.open("wb") as output:
        process = subprocess.Popen([prometheus, *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), get(port, "/-/ready") as answer:
            return answer.status == 200
        return False

    try:
        until(ready, 60)
        yield port
    finally:
        end([process], 10)


def asked(port: int, path: str, **query: str) -> Any:
    """What its HTTP API says. An expression that cannot be evaluated fails."""
    with get(port, f"/api/v1/{path}?{urlencode(query)}") as answer:
        said = json.loads(answer.read())
    assert said["status"] == "success", (query, said)
    return said["data"]


def value(port: int, expression: str) -> float | None:
    """Of an expression with one value, or none."""
    found = asked(port, "query", query=expression)["result"]
    return float(found[0]["value"][1]) if found else None


def rules(port: int) -> list[dict[str, Any]]:
    """As they stand."""
    return [rule for group in asked(port, "rules")["groups"] for rule in group["rules"]]


def send(broker: Broker, more: int, broken: int) -> None:
    """So many events more, and broken messages among them."""
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address})
    for n in range(more):
        producer.produce("scraped-in", event("p0", "s", PARTITIONS * EACH + n), None, 0)
    for _ in range(broken):
        producer.produce("scraped-in", b"{nonsense", None, 1)
    assert producer.flush(30) == 0


def profile(folder: Path) -> None:
    """Twenty days of noise that drift is measured from, beside where the model will be."""
    matrix = np.random.default_rng(0).random((2000, 4)).astype(np.float32)
    days = np.repeat(np.arange(20), 100) * DAY_US
    folder.mkdir(parents=True)
    build_reference(["n", COUNT, SUM, ALL], [False] * 4, matrix, matrix[:, 0], days).save(folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_is_scraped_its_metrics_are_those_that_are_asked_for_and_an_alert_fires(
    apache_kafka: Broker, prometheus: str, tmp_path: Path, pair: int
) -> None:
    log, file = tmp_path / "log", tmp_path / "job.py"
    profile(tmp_path / "home" / "model")
    settings = filled(apache_kafka, "scraped", tmp_path / "home", workers=2).model_copy(update={"metrics_port": pair})
    create(apache_kafka.address, ["scraped-drift"], 1, {})
    file.write_text(JOB)
    with (
        running(f"{file}:job", settings, log, "--from", "earliest") as process,
        scraping(prometheus, tmp_path, [pair, pair + 1]) as port,
    ):
        until_said(log, process, "worker 1 of 2 ready")
        decided(apache_kafka, "scraped", process, log)
        count, dead = "sum(headrace_decisions_total)", 'sum(headrace_dead_letters_total{code="not_json"})'
        until(lambda: value(port, count) == PARTITIONS * EACH, 30)
        until(lambda: value(port, "sum(headrace_lag_messages)") == 0, 30)
        assert value(port, "count(headrace_lag_messages)") == PARTITIONS
        assert value(port, "sum(up)") == 2
        assert value(port, dead) == 0, "the first ones are to be seen as an increase"

        send(apache_kafka, GOOD, BROKEN)
        until(lambda: value(port, count) == PARTITIONS * EACH + GOOD and value(port, dead) == BROKEN, 30)
        assert value(port, f"{dead} > 0 and sum(increase(headrace_dead_letters_total[1m])) > 0") == BROKEN
        until(lambda: {rule["state"] for rule in rules(port) if rule["name"] == PROVOKED} == {"firing"}, 60)
        stand = rules(port)
        assert [(rule["name"], rule.get("lastError")) for rule in stand if rule["health"] != "ok"] == []
        assert len(stand) == len(RULES)
        assert {rule["name"] for rule in stand if rule.get("state") == "firing"} == {PROVOKED}

        shown = set(asked(port, "label/__name__/values"))
        named = {rule["record"] for rule in RULES if "record" in rule}
        for expression in [rule["expr"] for rule in RULES] + [*queries(dashboard())]:
            named |= metrics(expression)
        assert named - shown == {f"headrace_{name}" for names in ELSEWHERE.values() for name in names}
        for query in queries(dashboard()):
            for variable, instead in VARIABLES.items():
                query = query.replace(variable, instead)
            asked(port, "query", query=query)
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
