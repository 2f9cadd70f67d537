"""The live page: what it makes of metrics and messages, what it never shows, whom it answers, and that it ends with its job."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cards import Search, cards, secret_payments
from confluent_kafka import Producer
from payments import payments
from prometheus_client import CollectorRegistry, generate_latest
from test_restart import EACH, PARTITIONS, decided, filled, running

from models.registry import versions
from ops.broker import Broker, free_port
from ops.cli import run_command
from ops.page import About, paging
from ops.page.age import AGAIN_SECONDS, Age
from ops.page.collect import Collector, Look
from ops.page.figures import Figures, parsed, quantile
from ops.page.look import NAMES, STAGES, Looker, asked
from ops.page.shown import Newest, Windows, decision, letter
from ops.page.surface import PAGE, surface
from ops.page.tails import Seen, Tails
from ops.server import Health, PortTakenError, Server, made, own, serve
from ops.topics import create
from ops.workers import as_environment
from streams import meters
from streams.pipeline import Decisions, Drift, Pipeline
from streams.settings import JobSettings

INFINITE = float("inf")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SVG = "http://www.w3.org/2000/svg"


class Worker:
    """A worker's metrics, as the job counts them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.meters = meters.Meters(self.registry, "payments")

    def count(self, rows: int) -> None:
        with self.meters.stage("event", rows):
            pass

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()


def read(*workers: Worker | None) -> dict[int, Any]:
    return {number: parsed(worker.text) for number, worker in enumerate(workers) if worker}


def test_rates_are_those_of_all_workers_together_whoever_comes_and_goes() -> None:
    figures, one, two = Figures(), Worker(), Worker()

    def rate() -> float | None:
        return figures.rate("headrace_rows_total", stage="event")

    one.count(100)
    two.count(300)
    figures.take(0.0, read(one, two))
    assert rate() is None, "of one look nothing is known"
    one.count(50)
    two.count(150)
    figures.take(2.0, read(one, two))
    assert rate() == 100
    assert figures.total("headrace_rows_total", stage="event") == 600
    one.count(10)
    figures.take(3.0, read(one, None))
    assert rate() == 70, "one is gone"
    assert (figures.workers, figures.total("headrace_rows_total", stage="event")) == (1, 160)
    figures.take(4.0, read(one, two))
    assert rate() == 210 / 4, "it is back; nobody knows since when its rows are new"
    two = Worker()
    two.count(40)
    figures.take(5.0, read(one, two))
    assert rate() == 250 / 5, "it was started again between two looks"
    figures.take(6.0, {})
    assert rate() is None
    assert figures.total("headrace_rows_total") is None


def test_rates_are_of_the_last_seconds() -> None:
    figures, worker = Figures(most=10), Worker()
    for second in range(31):
        worker.count(1000 if second < 20 else 1)
        figures.take(float(second), read(worker))
    assert figures.seconds == 10
    assert figures.rate("headrace_rows_total", stage="event") == 1


@pytest.mark.parametrize("rows", [3, meters.AT_ONCE + 3])
def test_what_has_passed_is_counted_when_somebody_asks_at_the_latest(rows: int) -> None:
    figures, worker = Figures(), Worker()
    figures.take(0.0, read(worker))
    for n in (rows, 1):
        polled = pa.array(np.full(n, 5_000_000_000))
        worker.meters.hops.passed(pa.array(np.full(n, 4_500 if n == rows else 0)), polled, 5_015_000_000)
    figures.take(1.0, read(worker))
    assert figures.total("headrace_hop_seconds_count", hop="flow") == rows + 1
    assert figures.total("headrace_hop_seconds_count", hop="broker") == rows  # of one the broker has said nothing
    assert figures.total("headrace_hop_seconds_sum", hop="flow") == pytest.approx(0.015 * (rows + 1))
    assert figures.total("headrace_hop_seconds_sum", hop="broker") == pytest.approx(0.5 * rows)


def test_quantiles_are_those_of_what_is_new() -> None:
    figures, worker = Figures(), Worker()
    worker.meters.hops.add("flow", np.full(1000, 60.0))
    figures.take(0.0, read(worker))
    assert figures.quantile("headrace_hop_seconds", 0.5, hop="flow") is None
    worker.meters.hops.add("flow", np.full(100, 0.015))
    worker.meters.hops.add("broker", np.full(100, 1000.0))
    figures.take(1.0, read(worker))
    assert figures.quantile("headrace_hop_seconds", 0.5, hop="flow") == pytest.approx(0.015)
    assert figures.quantile("headrace_hop_seconds", 0.99, hop="flow") == pytest.approx(0.0199)
    assert figures.quantile("headrace_hop_seconds", 0.99, hop="broker") == 300.0
    assert quantile({}, 0.5) is None
    assert quantile({1.0: 0.0, INFINITE: 0.0}, 0.5) is None


@pytest.mark.parametrize("text", ["", "<html>", "hello", "<html>headrace_rows_total 1</html>"])
def test_what_is_no_metrics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parsed(text)


def test_the_stages_are_the_seven_words() -> None:
    assert meters.STAGES == STAGES
    assert meters.HOPS == ("broker", "flow")


class NoTopics:
    """In the place of Tails: topics in which nothing is."""

    missing: tuple[str, ...] = ()

    def __init__(self, *told: object) -> None: ...

    def look(self) -> dict[str, list[Seen]]:
        return {}

    def close(self) -> None: ...


def test_a_look_says_what_workers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.page.look.Tails", NoTopics)
    one, two, times = Worker(), Worker(), iter([0.0, 2.0, 3.0])
    answers: dict[int, Worker | None] = {9000: one, 9001: two}

    def ask(host: str, port: int) -> str | None:
        assert host == "127.0.0.1"
        worker = answers[port]
        return generate_latest(worker.registry.restricted_registry(NAMES)).decode() if worker else None

    settings = JobSettings(workers=2, metrics_port=9000, metrics_host="0.0.0.0")
    about = About.of(payments(Drift("pay-drift")))
    looker = Looker(about, settings, lambda version: f"then {version}", ask, lambda: next(times))
    first = looker()
    assert first["stages"][0]["rows_per_s"] is None
    for worker in (one, two):
        worker.count(30)
        worker.meters.batch_rows.observe(30)
        worker.meters.decided([("block", 10), ("allow", 20)], [(["late", "fallback"], 2)])
        worker.meters.codes(["not_json", "null_value"])
        worker.meters.dead({"not_json": 3})
        worker.meters.lags({0: lambda: 3, 1: lambda: None})
        worker.meters.hops.add("flow", np.full(30, 0.0015))
        worker.meters.spent("model", 0.5)
        worker.meters.model(lambda: 4, lambda: "onnx", lambda: False)
    second = looker()
    json.dumps(second, allow_nan=False)
    by_name = {stage["name"]: stage for stage in second["stages"]}
    assert list(by_name) == list(STAGES)
    assert by_name["event"]["rows_per_s"] == 30
    assert by_name["batch"]["rows_per_s"] == 30
    assert by_name["drift"]["rows_per_s"] is None
    assert by_name["model"]["busy"] == 0.25
    assert second["hops"]["flow"]["p50"] == pytest.approx(0.0015)
    assert second["decisions"]["kinds"] == [
        {"name": "allow", "per_s": 20, "total": 40},
        {"name": "block", "per_s": 10, "total": 20},
    ]
    assert {flag["name"] for flag in second["decisions"]["flags"]} == {"late", "fallback"}
    assert second["dead"]["kinds"] == [{"name": "not_json", "per_s": 3, "total": 6}]
    assert second["model"] | {"made_at": "then 4", "version": 4, "engine": "onnx", "resting": False} == second["model"]
    assert second["waits"]["lag"] == 6
    assert second["broker"] == {"answers": True, "trouble": ""}
    answers[9001] = None
    assert looker()["workers"] == [{"worker": 0, "answers": True}, {"worker": 1, "answers": False}]


def test_a_worker_is_asked_for_what_is_shown_and_one_that_is_not_there_says_nothing() -> None:
    worker = Worker()
    worker.count(100)
    worker.meters.drift("distance", "psi", 0.1, True)
    worker.meters.lags({0: lambda: 3})
    worker.meters.model(lambda: 4, lambda: "onnx", lambda: False)
    whole = parsed(worker.text)
    assert {"headrace_rows_total", "headrace_lag_messages", "headrace_drift"} <= {name for name, _ in whole}
    with closing(serve("127.0.0.1", 0, worker.registry, Health())) as server:
        said = asked("127.0.0.1", server.server_port)
        assert said is not None
        assert parsed(said) == {key: value for key, value in whole.items() if key[0] in NAMES}
        port = server.server_port
    assert asked("127.0.0.1", port) is None
    assert [own(host) for host in ("0.0.0.0", "::", "127.0.0.2")] == ["127.0.0.1", "::1", "127.0.0.2"]


def test_a_broker_that_is_gone_is_said_and_workers_are_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.page.tails.ANSWER_SECONDS", 0.3)
    worker, settings = Worker(), JobSettings(brokers=f"127.0.0.1:{free_port()}")
    with closing(Looker(About.of(payments()), settings, ask=lambda host, port: worker.text)) as looker:
        for _ in range(2):
            said = looker()
            assert not said["broker"]["answers"]
            assert said["broker"]["trouble"]
            assert said["workers"] == [{"worker": 0, "answers": True}]


def seen(value: Mapping[str, Any] | bytes, at: int = 0, partition: int = 0, offset: int = 0) -> Seen:
    return Seen(at, partition, offset, value if isinstance(value, bytes) else json.dumps(value).encode())


def made_decision(number: int, **more: Any) -> dict[str, Any]:
    return {
        "decision_id": f"payments/pay/0/{number}",
        "event_id": number,
        "decision": "block",
        "score": 0.75,
        "reasons": ["score>=0.7"],
        "model": "payments",
        "model_version": 1,
        "flags": ["late"],
        "event_time": "2024-03-05T10:15:00.000000Z",
        "decided_at": "2026-01-05T12:00:00.123456Z",
        "schema_version": 3,
    } | more


def made_letter(number: int, **more: Any) -> dict[str, Any]:
    return {
        "code": "not_json",
        "reason": "payments/decode: expected a JSON object",
        "topic": "pay",
        "partition": 0,
        "offset": number,
        "key_base64": None,
        "value_base64": None,
        "size": 8,
        "sha256": None,
        "truncated": False,
        "encrypted": False,
        "replay": None,
    } | more


def test_of_messages_only_what_is_named_is_shown() -> None:
    (card,) = cards(1)
    found = Search([card])
    inside = made_decision(1, event_id=int(card), features={"card": card}, key=card, more=[card])
    row = decision(seen(inside), secrets=True)
    assert row is not None
    assert (row["decision_id"], row["decision"], row["score"], row["event_id"]) == ("payments/pay/0/1", "block", 0.75, None)
    about = letter(seen(made_letter(2, key_base64=card, value_base64=card, value=card, size=int(card)), at=5), "pay")
    assert about == {
        "code": "not_json",
        "reason": "payments/decode: expected a JSON object",
        "partition": 0,
        "offset": 2,
        "at": 5,
    }
    assert not found.found(json.dumps([row, about]).encode())
    assert decision(seen(made_decision(1)), secrets=False) == row | {"event_id": "1"}
    assert About.of(secret_payments()).secrets
    assert not About.of(payments()).secrets


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{",
        b'{"decision_id": "d", "topic": "pay", "code": "x", "score": NaN}',
        b'{"decision_id": 7, "topic": "pay", "code": {}}',
        b"[" * 99_999,
    ],
    ids=["empty", "no text", "a list", "cut", "no JSON", "other types", "deep"],
)
def test_what_is_no_decision_and_no_letter_is_passed_over(value: bytes) -> None:
    assert decision(seen(value), secrets=False) is None
    assert letter(seen(value), "pay") is None
    windows = Windows("payments")
    windows.take([seen(value)])
    assert windows.shown() == {"windows": [], "features": [], "unjudged": []}


def test_odd_values_are_shown_as_json_has_them() -> None:
    odd = b'{"decision_id": "d", "score": "x", "reasons": "x", "flags": [1, {}, "%s"], "decision": {}}' % (b"y" * 5000)
    row = decision(seen(odd), secrets=False)
    assert row is not None
    assert (row["score"], row["reasons"], row["decision"], len(row["flags"])) == (None, [], None, 2)
    assert len(row["flags"][1]) < 500
    assert letter(seen(made_letter(1, topic="other")), "pay") is None


def test_the_newest_rows_of_all_partitions_are_kept_in_the_order_they_were_written() -> None:
    newest = Newest(lambda one: {"offset": one.offset, "partition": one.partition}, most=3)
    newest.take([seen(b"", at=k, partition=0, offset=k) for k in range(10)])
    newest.take([seen(b"", at=8, partition=1, offset=0), seen(b"", at=20, partition=1, offset=1)])
    assert [(row["partition"], row["offset"]) for row in newest.rows] == [(1, 1), (0, 9), (1, 0)]


def report(day: int, feature: str | None, value: float | None, **more: Any) -> dict[str, Any]:
    start, end = (f"2013-{1 + k // 28:02}-{1 + k % 28:02}T00:00:00.000000Z" for k in (day, day + 1))
    said = {"pipeline": "payments", "window_start": start, "window_end": end, "feature": feature, "statistic": "psi"}
    return said | {"value": value, "threshold": 2.0, "alarmed": False, "rows": 500} | more


def test_drift_is_kept_by_feature_over_the_last_windows() -> None:
    windows = Windows("payments")
    windows.take(seen(report(day, "amount", 1.0)) for day in range(70))
    before = windows.version
    windows.take(
        [
            seen(report(69, "amount", 1.0)),
            seen(report(69, "shop", 5.0, alarmed=True)),
            seen(report(68, "shop", None)),
            seen(report(67, None, 12.0, statistic="rows", threshold=100.0)),
            seen(report(69, "amount", 9.0, pipeline="another")),
        ]
    )
    assert windows.version != before
    shown = windows.shown()
    assert len(shown["windows"]) == 60
    assert shown["windows"] == sorted(shown["windows"])
    shop, amount = shown["features"]
    assert (shop["feature"], amount["feature"]) == ("shop", "amount"), "what is nearest to an alarm comes first"
    (psi,) = shop["statistics"]
    assert psi["shares"] == [None] * 59 + [2.5]
    assert (psi["alarms"], psi["value"], psi["threshold"]) == ([59], 5.0, 2.0)
    assert amount["statistics"][0]["shares"] == [0.5] * 60
    assert [(one["rows"], one["needed"]) for one in shown["unjudged"]] == [(12.0, 100.0)]


def test_what_an_encoder_of_ones_own_writes_is_not_looked_at() -> None:
    sinks = [Decisions("own", encode=object()), Decisions("verdicts"), Decisions("more")]  # type: ignore[arg-type]
    like = payments()
    assert About.of(_with(like, sinks)).decisions == "verdicts"
    assert About.of(_with(like, sinks[:1])).decisions == ""
    assert About.of(like).drift == ""


def _with(like: Pipeline, sinks: list[Decisions]) -> Any:
    """A pipeline with other sinks, which nobody checks."""
    parts = {name: getattr(like, name) for name in ("name", "model", "group", "events", "drift")}
    return SimpleNamespace(**parts, sinks=sinks)


class Job:
    """In the place of a job that is looked at: how often it was, and whether it is now."""

    def __init__(self) -> None:
        self.looks, self.opened, self.fails, self.busy_seconds = 0, 0, False, 0.0

    @contextmanager
    def looking(self) -> Iterator[Look]:
        self.opened += 1
        try:
            yield self.look
        finally:
            self.opened -= 1

    def look(self) -> dict[str, Any]:
        self.looks += 1
        until_used = time.process_time() + self.busy_seconds
        while time.process_time() < until_used:
            continue
        if self.fails:
            raise ValueError("it went wrong")
        return {"looks": self.looks, "drift_version": 1, "drift": {"windows": []}}


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def collector(job: Job) -> Iterator[Collector]:
    with closing(Collector(job.looking, every=0.05, linger=0.2)) as made_collector:
        yield made_collector


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nobody_looks_while_nobody_wants_it(job: Job, collector: Collector) -> None:
    assert collector.after(0, 0.3) is None
    assert job.looks == 0
    with collector.wanted():
        first = collector.after(0, 10)
        assert first is not None
        assert first.settled == (first.number > 1), "no rate is known of one look"
        second = collector.after(first.number, 10)
        assert second is not None
        assert second.settled
        assert job.opened == 1
    until(lambda: job.opened == 0)
    looks = job.looks
    time.sleep(0.3)
    assert job.looks == looks
    assert collector.after(0, 0) is None, "what is old is not shown to who comes later"


def test_looks_that_take_much_come_more_rarely(job: Job) -> None:
    job.busy_seconds = 0.02
    with closing(Collector(job.looking, every=0.01, share=0.1, most=30)) as collector, collector.wanted():
        until(lambda: job.looks >= 3)
        began, used, looks = time.monotonic(), time.process_time(), job.looks
        time.sleep(2)
        share = (time.process_time() - used) / (time.monotonic() - began)
    assert 1 <= job.looks - looks <= 11, "each takes 20 ms of a core, of which it may have a tenth"
    assert share < 0.2
    with closing(Collector(job.looking, every=0.01, share=1e-6, most=0.1)) as collector, collector.wanted():
        until(lambda: job.looks >= looks + 20, 5)


def test_a_look_that_fails_is_said_and_the_next_one_may_go_well(job: Job, collector: Collector) -> None:
    job.fails = True
    with collector.wanted():
        said = collector.after(0, 10)
        assert said is not None
        assert json.loads(said.whole)["trouble"] == "it went wrong"
        job.fails = False
        until(lambda: b'"looks"' in getattr(collector.after(0, 1), "whole", b""))


@pytest.fixture
def server(collector: Collector) -> Iterator[Server]:
    """The page, for two at a time."""
    port = free_port()
    with closing(made("127.0.0.1", port, surface(collector, port, most=2))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served


@contextmanager
def get(port: int, path: str, method: str = "GET", **headers: str) -> Iterator[http.client.HTTPResponse]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, headers=named)
        with closing(connection.getresponse()) as answer:
            yield answer


def status(port: int, path: str, method: str = "GET", **headers: str) -> int:
    with get(port, path, method, **headers) as answer:
        return answer.status


def event(answer: http.client.HTTPResponse) -> dict[str, Any]:
    """The next event of a stream."""
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return dict(json.loads(line.removeprefix(b"data: ")))


def test_the_page_and_what_it_may_do(server: Server) -> None:
    with get(server.server_port, "/") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        said = answer.headers["Content-Security-Policy"]
        assert said.startswith("default-src 'none'; style-src 'sha256-")
        assert "; script-src 'sha256-" in said
        assert "; connect-src 'self'; " in said
        assert "unsafe" not in said
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Set-Cookie" not in answer.headers
        assert answer.read() == PAGE.read_bytes()


def test_only_this_machines_names_are_answered(server: Server, job: Job) -> None:
    port = server.server_port
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        assert status(port, "/", Host=host) == 200
    for host in ("localhost", f"localhost:{port + 1}", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", ""):
        assert [status(port, path, Host=host) for path in ("/", "/snapshot", "/events")] == [403] * 3
    assert status(port, "/snapshot", Sec_Fetch_Site="cross-site") == 403
    assert status(port, "/", Sec_Fetch_Site="cross-site") == 200, "others may link to it"
    assert job.looks == 0


def test_anything_else_is_not_found_and_nothing_is_taken(server: Server) -> None:
    assert [status(server.server_port, path) for path in ("/x", "/page.html", "/../etc/passwd")] == [404] * 3
    assert [status(server.server_port, "/", method) for method in ("POST", "HEAD", "DELETE")] == [405] * 3


def test_a_snapshot_is_given_once_rates_are_known(server: Server) -> None:
    with get(server.server_port, "/snapshot", Sec_Fetch_Site="same-origin") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/json"
        said = json.loads(answer.read())
    assert said["looks"] >= 2
    assert said["drift"] == {"windows": []}


def test_events_come_and_what_of_drift_is_known_is_not_sent_again(server: Server) -> None:
    with get(server.server_port, "/events") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        first, second = event(answer), event(answer)
    assert second["looks"] > first["looks"]
    assert "drift" in first
    assert "drift" not in second


def test_those_who_come_when_it_is_full_hear_so_and_get_in_when_others_leave(server: Server) -> None:
    port = server.server_port
    with get(port, "/events") as one:
        event(one)
        with get(port, "/events") as two:
            event(two)
            assert status(port, "/events") == status(port, "/snapshot") == 503
            assert status(port, "/") == 200
    until(lambda: status(port, "/snapshot") == 200)


@pytest.fixture
def shop(embedded_broker: Broker, name: Callable[[str], str]) -> Pipeline:
    """A pipeline with topics of its own, that are there."""
    like, topic = payments(Drift(name("drift"))), name("pay")
    pipeline = replace(like, events=replace(like.events, topic=topic), sinks=[Decisions(f"{topic}-out")])
    create(embedded_broker.address, pipeline.topics(), 2, {})
    return pipeline


def send(broker: Broker, topic: str, messages: list[Any], partition: int = 0) -> None:
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address})
    for message in messages:
        producer.produce(topic, json.dumps(message), partition=partition)
    assert producer.flush(30) == 0


def test_the_ends_of_topics_are_looked_at_and_what_lies_between_is_passed_over(
    embedded_broker: Broker, name: Callable[[str], str]
) -> None:
    topic, other = name("ends"), name("none")
    create(embedded_broker.address, [topic], 2, {})
    with closing(Tails(embedded_broker.address, {}, name("group"), {topic: 10}, [other])) as tails:

        def offsets() -> list[tuple[int, int]]:
            return sorted((one.partition, one.offset) for one in tails.look().get(topic, []))

        assert offsets() == []
        assert tails.missing == [other]
        for number in range(8):
            send(embedded_broker, topic, [{"n": number}], partition=0)
        send(embedded_broker, topic, [{"n": k} for k in range(3)], partition=1)
        assert offsets() == [(0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (1, 0), (1, 1), (1, 2)]
        assert offsets() == [], "nothing is new"
        send(embedded_broker, topic, [{"n": 1}], partition=1)
        assert offsets() == [(1, 3)]
    with closing(Tails(embedded_broker.address, {}, name("group"), {topic: 10}, first={topic: 14})) as tails:
        assert len(offsets()) == 7 + 4, "the first look takes more"
        for number in range(6):
            send(embedded_broker, topic, [{"n": number}], partition=0)
        assert len(offsets()) == 5


@pytest.mark.timeout(120)
def test_the_process_shows_what_is_in_the_topics_and_ends(
    embedded_broker: Broker, shop: Pipeline, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    worker, (card,) = Worker(), cards(1)
    with closing(serve("127.0.0.1", 0, worker.registry, Health())) as metrics:
        settings = JobSettings(
            brokers=embedded_broker.address, home=tmp_path, metrics_port=metrics.server_port, page_port=free_port()
        )
        send(embedded_broker, shop.sinks[0].topic, [made_decision(k, features={"card": card}) for k in range(30)])
        send(embedded_broker, shop.events.dead, [made_letter(9, topic=shop.events.topic, value_base64=card)], partition=1)
        assert shop.drift is not None
        send(embedded_broker, shop.drift.topic, [report(day, "amount", 1.0) for day in range(5)])
        with paging(shop, settings):
            port = settings.page_port
            assert capfd.readouterr().out == f"page on http://127.0.0.1:{port}/\n"
            with get(port, "/snapshot") as answer:
                text = answer.read()
            said = json.loads(text)
            assert said["workers"] == [{"worker": 0, "answers": True}]
            assert said["broker"] == {"answers": True, "trouble": ""}
            assert said["missing"] == []
            ids = [row["decision_id"] for row in said["decisions"]["rows"]]
            assert ids == [f"payments/pay/0/{number}" for number in range(29, 9, -1)]
            assert [(row["code"], row["partition"], row["offset"]) for row in said["dead"]["rows"]] == [("not_json", 0, 9)]
            assert len(said["drift"]["windows"]) == 5
            assert not Search([card]).found(text)
            with get(port, "/events") as answer:
                event(answer)
                send(embedded_broker, shop.sinks[0].topic, [made_decision(77)], partition=1)
                until(lambda: event(answer)["decisions"]["rows"][0]["decision_id"] == "payments/pay/0/77", 20)
    with pytest.raises(OSError, match=r".*"):
        status(port, "/")


CHILD = """
import time
from payments import payments
from ops.page import paging
from streams.settings import JobSettings

with paging(payments(), JobSettings()):
    time.sleep(600)
"""


@pytest.mark.timeout(120)
def test_it_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    settings = JobSettings(home=tmp_path, brokers=f"127.0.0.1:{free_port()}", page_port=free_port())
    here = Path(__file__).parent
    environment = os.environ | as_environment(settings) | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    process = subprocess.Popen([sys.executable, "-c", CHILD], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with process.stdout as output:
            assert output.readline().startswith("page on ")
            assert status(settings.page_port, "/") == 200
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def gone() -> bool:
        try:
            return not status(settings.page_port, "/")
        except OSError:
            return True

    until(gone)


def test_a_taken_port_and_a_job_without_metrics_are_refused() -> None:
    settings = JobSettings(page_port=free_port())
    with (
        made("127.0.0.1", settings.page_port, lambda environ, start: []),
        pytest.raises(PortTakenError, match=rf"^the page cannot be served on 127.0.0.1:{settings.page_port}: .* --page$"),
        paging(payments(), settings),
    ):
        raise AssertionError
    with (
        pytest.raises(ValueError, match="expected a metrics_port, which workers are asked at, got 0"),
        paging(payments(), settings.model_copy(update={"metrics_port": 0})),
    ):
        raise AssertionError


def test_there_is_no_page_where_nobody_asked_for_one(capfd: pytest.CaptureFixture[str]) -> None:
    with paging(payments(), JobSettings()):
        pass
    assert capfd.readouterr().out == ""


def test_the_command_line_knows_the_port(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["run", "flights", "--page", "70000"]) == 2
    assert "setting page_port: Input should be less than or equal to 65535" in capfd.readouterr().err


def test_the_age_of_a_version_is_asked_for_once_and_again_after_a_while(tmp_path: Path) -> None:
    now, asked = [0.0], tmp_path / "asked"
    write = f"open({str(asked)!r}, 'a').write('x'); "
    age = Age("m", [sys.executable, "-c", write + 'print(\'{"1": "2026-01-05T12:00:00+00:00"}\')'], lambda: now[0])
    assert age.of(1) is None
    until(lambda: age.of(1) == "2026-01-05T12:00:00+00:00")
    assert age.of(2) is None
    assert asked.read_text() == "x"
    now[0] = AGAIN_SECONDS + 1
    assert age.of(2) is None
    until(lambda: asked.read_text() == "xx")
    assert age.of(1) == "2026-01-05T12:00:00+00:00"


def test_a_registry_that_says_nothing_leaves_the_age_unknown() -> None:
    broken = Age("m", [sys.executable, "-c", "raise SystemExit(1)"])
    assert broken.of(1) is None
    time.sleep(0.3)
    assert broken.of(1) is None


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_running_job_has_a_page_with_its_decisions_and_the_age_of_its_model(
    apache_kafka: Broker, tmp_path: Path, pair: int
) -> None:
    log, file, port = tmp_path / "log", tmp_path / "job.py", free_port()
    settings = filled(apache_kafka, "paged", tmp_path / "home", workers=2)
    settings = settings.model_copy(update={"metrics_port": pair})
    file.write_text('from bench.proving.job import pipeline\njob = pipeline("paged")\n')
    with running(f"{file}:job", settings, log, "--from", "earliest", "--page", str(port), restart=False) as process:
        decided(apache_kafka, "paged", process, log)

        def snapshot() -> dict[str, Any]:
            with get(port, "/snapshot") as answer:
                return dict(json.loads(answer.read()))

        until(lambda: snapshot()["model"]["made_at"] is not None, 90)
        until(lambda: snapshot()["waits"]["lag"] == 0, 30)
        said = snapshot()
        assert [one["answers"] for one in said["workers"]] == [True, True]
        ids = {row["decision_id"] for row in said["decisions"]["rows"]}
        assert len(ids) == 20
        assert all(re.fullmatch(rf"paged/paged-in/[0-{PARTITIONS - 1}]/\d+", one) for one in ids)
        assert sum(kind["total"] for kind in said["decisions"]["kinds"]) == PARTITIONS * EACH
        (version,) = versions(settings.registry_uri, said["model"]["name"])
        assert said["model"]["made_at"] == version.made_at.isoformat()
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0, log.read_text()
    assert f"page on http://127.0.0.1:{port}/" in log.read_text()


class Shape(HTMLParser):
    """Whether every element is closed, in order, and what there is of some."""

    EMPTY = ("meta", "link", "br", "col", "input", "img", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


@pytest.fixture
def shape() -> Shape:
    parser = Shape()
    parser.feed(PAGE.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_has_what_a_screen_reader_needs(shape: Shape) -> None:
    assert shape.named("html") == [{"lang": "en"}]
    assert [len(shape.named(tag)) for tag in ("title", "header", "main", "h1", "style", "script")] == [1] * 6
    assert len(shape.named("h2")) == len(shape.named("section")) == 5
    assert all(attributes.get("aria-labelledby") for attributes in shape.named("section"))
    assert [attributes["id"] for _, attributes in shape.seen if "aria-live" in attributes] == ["summary"]
    assert all(attributes.get("scope") == "col" for attributes in shape.named("th"))
    assert len(shape.named("caption")) == len(shape.named("table")) == 3
    ids = [attributes["id"] for _, attributes in shape.seen if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert not [name for _, attributes in shape.seen for name in attributes if name.startswith("on") or name == "style"]


def test_the_page_needs_nothing_from_elsewhere_and_takes_nothing_for_markup() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<>`)]*", text)) == {SVG}
    assert not re.search(r"<link|<img|@import|url\(|\bsrc=|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)
    script = text.partition("<script>")[2].partition("</script>")[0]
    assert set(re.findall(r'\b(?:at|put|fill|chips)\("([\w-]+)"', script)) <= set(re.findall(r'id="([\w-]+)"', text))


def contrast(one: str, two: str) -> float:
    """Of two colours, as WCAG 2 defines it."""
    light = []
    for colour in (one, two):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_colours_can_be_told_apart_in_light_and_dark() -> None:
    themes = re.findall(r":root \{(.*?)\}", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for text in ("ink", "muted", "link", "good"):
            assert min(contrast(colour[text], colour[behind]) for behind in ("paper", "card")) >= 4.5
        assert contrast(colour["bad"], colour["on-bad"]) >= 4.5
        for line in ("psi", "ks", "missing", "alarm"):
            assert contrast(colour[line], colour["paper"]) >= 3


@pytest.mark.timeout(180)
def test_a_browser_draws_it(embedded_broker: Broker, shop: Pipeline, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the page is NOT proven in a browser without chromium or google-chrome on the PATH")
    worker = Worker()
    send(embedded_broker, shop.sinks[0].topic, [made_decision(k) for k in range(3)])
    send(embedded_broker, shop.events.dead, [made_letter(9, topic=shop.events.topic)])
    assert shop.drift is not None
    send(embedded_broker, shop.drift.topic, [report(day, "amount", 1.0) for day in range(5)])
    picture = tmp_path / "page.png"
    with closing(serve("127.0.0.1", 0, worker.registry, Health())) as metrics:
        settings = JobSettings(
            brokers=embedded_broker.address, home=tmp_path, metrics_port=metrics.server_port, page_port=free_port()
        )
        with paging(shop, settings):
            said = browse(f"--user-data-dir={tmp_path}", "--dump-dom", f"http://127.0.0.1:{settings.page_port}/?once")
            browse(f"--user-data-dir={tmp_path}", f"--screenshot={picture}", f"http://127.0.0.1:{settings.page_port}/?once")
    assert "payments/pay/0/2" in said
    assert "payments/decode: expected a JSON object" in said
    assert 'aria-label="amount over 5 windows: psi 50% of what is allowed"' in said
    assert "as of 20" in said
    assert picture.stat().st_size > 5000


def browse(*options: str) -> str:
    """What a browser makes of it, on a small phone. With ?once, since a stream of events never ends, nor then its patience."""
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=360,800"]
    command = [str(CHROMIUM), *always, "--virtual-time-budget=5000", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
