"""Traces: which batch, which events, which model, and where its time went, of the share that was asked for."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cards import Search, cards, secret_payments, whole
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from payments import Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

import streams.tracing
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.run import run
from streams.source import MemorySource

STEPS = ("event", "features", "batch", "features", "model", "decision", "sink")


def traced(
    home: Path, logs: list[Any], exporter: Any, pipeline: Pipeline | None = None, **values: Any
) -> tuple[dict[str, dict[str, Any]], float]:
    """The decisions, in order, and how many batches there were."""
    sink, registry = MemorySink(), CollectorRegistry()
    run(
        pipeline or payments(),
        settings(home, **values),
        registry=registry,
        source=MemorySource(logs, rows=200),
        sink=sink,
        champion=Champion(7, Arithmetic(), None, "d7"),
        span_exporter=exporter,
    )
    batches = registry.get_sample_value("headrace_batch_rows_count", {"pipeline": "payments"})
    assert batches
    return decisions(sink), batches


def traces(exporter: InMemorySpanExporter) -> list[tuple[ReadableSpan, list[ReadableSpan]]]:
    """Each root, as they began, with the spans within, as they began."""
    spans = sorted(exporter.get_finished_spans(), key=lambda span: (span.start_time, span.end_time))
    roots = [span for span in spans if span.parent is None]
    within = {span.context.span_id: [] for span in roots}
    for span in spans:
        if span.parent is not None:
            within[span.parent.span_id].append(span)
    return [(root, within[root.context.span_id]) for root in roots]


def test_each_batch_is_a_trace_that_names_its_events_and_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fraud")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    exporter, before = InMemorySpanExporter(), time.time_ns()
    decided, batches = traced(tmp_path, [stream(2000)], exporter, trace_share=1.0)
    after, found, in_order = time.time_ns(), traces(exporter), list(decided.values())
    assert len(found) == batches > 1
    seen = 0
    for root, within in found:
        told = dict(root.attributes or {})
        assert root.name == "batch"
        assert root.resource.attributes["service.name"] == "fraud"
        assert root.resource.attributes["deployment.environment"] == "test"
        rows = told["headrace.rows"]
        first, last = in_order[seen], in_order[seen + rows - 1]
        assert {name.removeprefix("headrace."): value for name, value in told.items()} == {
            "pipeline": "payments",
            "topic": "pay",
            "worker": 0,
            "rows": rows,
            "partitions": (0,),
            "first_offsets": (int(first["decision_id"].rpartition("/")[2]),),
            "last_offsets": (int(last["decision_id"].rpartition("/")[2]),),
            "decision_id": first["decision_id"],
            "event_id": first["event_id"],
            "model": "payments",
            "model_version": 7,
            "model_digest": "d7",
        }
        seen += rows
        assert tuple(span.name for span in within) == STEPS
        assert {span.context.trace_id for span in within} == {root.context.trace_id}
        assert all(before <= root.start_time <= one.start_time <= one.end_time <= root.end_time <= after for one in within)
    assert seen == len(in_order)
    assert len({root.context.trace_id for root, _ in found}) == len(found)


@pytest.mark.parametrize("order", ["arrival", "event"])
def test_batches_of_several_partitions_say_which_and_from_where_to_where(tmp_path: Path, order: str) -> None:
    log, exporter = stream(3000), InMemorySpanExporter()
    decided, batches = traced(tmp_path, [log[k::3] for k in range(3)], exporter, trace_share=1.0, order=order)
    found = traces(exporter)
    assert len(found) == batches
    places = {tuple(map(int, one.split("/")[-2:])) for one in decided}
    covered = set[tuple[int, int]]()
    for root, within in found:
        told = dict(root.attributes or {})
        names = ("partitions", "first_offsets", "last_offsets")
        for partition, first, last in zip(*(told[f"headrace.{name}"] for name in names), strict=True):
            covered |= {(partition, offset) for offset in range(first, last + 1)}
        assert {span.name for span in within} == set(STEPS)
    assert covered >= places
    assert sum(root.attributes["headrace.rows"] for root, _ in found) == len(decided)
    if order == "arrival":
        assert max(len(root.attributes["headrace.partitions"]) for root, _ in found) > 1


def test_a_share_of_the_batches_is_traced_and_all_are_decided(tmp_path: Path) -> None:
    log, exporter = stream(20_000), InMemorySpanExporter()
    decided, batches = traced(tmp_path, [log], exporter, trace_share=0.5)
    assert len(decided) == sum(b'"paid"' in value for _, value in log)
    assert 0.1 * batches < len(traces(exporter)) < 0.9 * batches


def test_off_nothing_of_it_is_needed_and_on_what_is_missing_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stream(100)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"^setting trace_share 0\.1: expected OpenTelemetry .*: pip install 'headrace\[trace"):
        traced(tmp_path, [log], None, trace_share=0.1)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValueError, match="setting trace_share 1: "):
        traced(tmp_path, [log], InMemorySpanExporter(), trace_share=1.0)
    decided, _ = traced(tmp_path, [log], None)
    assert decided


def test_nothing_secret_comes_into_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARD_KEY", "0f" * 16)
    numbers, like, exporter = cards(50), secret_payments(), InMemorySpanExporter()
    pipeline = replace(like, events=replace(like.events, id="payer"))
    log = [(card.encode(), json.dumps(whole(card, k)).encode()) for k, card in enumerate(numbers)]
    decided, _ = traced(tmp_path, [log], exporter, pipeline, trace_share=1.0, secret_key="env:CARD_KEY")
    ((root, within),) = traces(exporter)
    assert root.attributes["headrace.event_id"] == next(iter(decided.values()))["event_id"]
    search = Search(numbers)
    assert search.found(repr(log).encode())
    assert not search.found("".join(span.to_json() for span in (root, *within)).encode())


class Hangs(SpanExporter):
    """A collector that does not answer until it is let go."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.asked.set()
        self.go.wait(60)
        return SpanExportResult.FAILURE


def test_a_collector_that_does_not_answer_holds_up_neither_decisions_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams.tracing, "CLOSE_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    log, hangs = stream(20_000), Hangs()
    try:
        began = time.monotonic()
        decided, _ = traced(tmp_path, [log], hangs, trace_share=1.0)
        assert time.monotonic() - began < 30
    finally:
        hangs.go.set()
    assert hangs.asked.is_set()
    assert len(decided) == sum(b'"paid"' in value for _, value in log)


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Takes what is sent to it: its address, and paths and bodies."""
    got: list[tuple[str, bytes]] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Takes) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


def test_spans_go_to_where_opentelemetrys_own_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter", reason="NO EXPORTER: headrace[trace] has it")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        traced(tmp_path, [stream(300)], None, trace_share=1.0)
    assert {path for path, _ in got} == {"/v1/traces"}
    resources = [one for _, body in got for one in ExportTraceServiceRequest.FromString(body).resource_spans]
    services = {each.value.string_value for one in resources for each in one.resource.attributes if each.key == "service.name"}
    assert services == {"headrace-payments"}
    assert {span.name for one in resources for scope in one.scope_spans for span in scope.spans} == set(STEPS)
