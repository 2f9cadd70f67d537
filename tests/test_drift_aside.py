"""Drift stands beside the way of an event, not in it; its reports are the same whatever happens to the job."""

import json
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from payments import NAMES, Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from models.reference import STATISTICS, Reference, build_reference
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.job import Champion, Job
from streams.pipeline import Drift
from streams.run import run
from streams.source import MemorySource

DAY = 86_400_000_000


@pytest.fixture(scope="module")
def reference() -> Reference:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(19_700, 19_740), 200)
    matrix = rng.normal(size=(len(days), len(NAMES))).astype(np.float32)
    return build_reference(NAMES, [False] * len(NAMES), matrix, rng.random(len(days)).astype(np.float32), days * DAY)


def test_a_slow_drift_kernel_does_not_stand_between_an_event_and_its_decision(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each count takes a fifth of a second; all decisions are out before the second one is done, and nothing goes uncounted."""
    counted: list[tuple[float, int]] = []
    written: list[float] = []

    def slowly(job: Job, name: str, matrix: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        time.sleep(0.2)
        counted.append((time.monotonic(), len(scores)))
        return reference.count(matrix, scores)

    def on_write(messages: Messages) -> None:
        if messages.topic == "verdicts":
            written.append(time.monotonic())

    monkeypatch.setattr(Job, "count_drift", slowly)
    monkeypatch.setattr("streams.drift.SUBMIT_EVERY", timedelta(0))
    log, sink = stream(60), MemorySink()
    sink.on_write = on_write
    pipeline = payments(Drift("payment-drift", rate=0.05))
    champion = Champion(1, Arithmetic(), reference)
    run(
        pipeline,
        settings(tmp_path),
        registry=CollectorRegistry(),
        source=MemorySource([log], rows=3),
        sink=sink,
        champion=champion,
    )
    assert len(counted) >= 3
    assert max(written) < counted[1][0]
    assert sum(rows for _, rows in counted) == len(decisions(sink))


def test_a_job_that_watches_for_drift_goes_on_from_its_store(tmp_path: Path, reference: Reference) -> None:
    sink, champion = MemorySink(), Champion(1, Arithmetic(), reference)
    pipeline, log = payments(Drift("payment-drift", rate=0.05)), stream(300)
    for end in (150, 300):
        registry = CollectorRegistry()
        parts = {"source": MemorySource([log[:end]], rows=50), "sink": sink, "champion": champion}
        run(pipeline, settings(tmp_path, recovery=True, epoch_seconds=0.01), registry=registry, **parts)
    assert len(decisions(sink)) == sum(json.loads(value)["kind"] == "paid" for _, value in log)
    watched = [{"feature": feature, "statistic": one} for feature in (*NAMES, "score") for one in STATISTICS]
    alarms = [registry.get_sample_value("headrace_drift_alarms_total", {"pipeline": "payments", **each}) for each in watched]
    assert set(alarms) == {0}, "they can be seen to rise, since they are there before they do"


def test_reports_come_through_the_sink_and_the_metrics(tmp_path: Path, reference: Reference) -> None:
    """Three days of payments, nothing like the reference: two are over and judged, and every feature is there to see."""
    log = [
        (
            key,
            json.dumps(json.loads(value) | {"at": f"2024-03-0{1 + k * 3 // 900}T{k % 300 // 60:02}:{k % 60:02}:00Z"}).encode(),
        )
        for k, (key, value) in enumerate(stream(900))
    ]
    sink, registry = MemorySink(), CollectorRegistry()
    job = payments(Drift("payment-drift", rate=0.05)), settings(tmp_path)
    champion = Champion(1, Arithmetic(), reference)
    run(*job, registry=registry, source=MemorySource([log], rows=50), sink=sink, champion=champion)
    reports = [json.loads(value) for value in sink.values("payment-drift")]
    judged = [report for report in reports if report["feature"]]
    assert {report["window_start"][:10] for report in judged} == {"2024-03-01", "2024-03-02"}
    assert {report["feature"] for report in judged} == {*NAMES, "score"}
    assert any(report["alarmed"] for report in judged if report["feature"] == "amount")
    labels = {"pipeline": "payments", "feature": "amount", "statistic": "ks"}
    assert registry.get_sample_value("headrace_drift_alarms_total", labels) == 2
    assert registry.get_sample_value("headrace_rows_total", {"pipeline": "payments", "stage": "drift"}) == len(decisions(sink))
