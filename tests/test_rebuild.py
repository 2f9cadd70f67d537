"""State made anew from the topic decides as state that was never lost: to the last feature and flag, nothing left out."""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from payments import Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from features.spec import Last, Window
from models.spec import Input, ModelSpec
from ops.start import begin_at, timeline_of
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.positions import kept
from streams.rebuild import SECOND, resume
from streams.run import run
from streams.source import MemorySource
from streams.start import RecoveryError, Start, store_of

Log = list[tuple[bytes | None, bytes]]
EPOCH = 0.01


def spread(log: Log, partitions: int) -> list[Log]:
    """The log over partitions, unevenly."""
    logs: list[Log] = [[] for _ in range(partitions)]
    for k, message in enumerate(log):
        logs[k % 5 % partitions].append(message)
    return logs


def champion_of(pipeline: Pipeline) -> Champion:
    engine = Arithmetic()
    names = pipeline.feature_names(())
    engine.spec = ModelSpec("payments", tuple(Input(name, "number", ()) for name in names))
    return Champion(1, engine, None)


def going(home: Path, pipeline: Pipeline, logs: Sequence[Log], sink: MemorySink, until: int | None = None) -> dict[int, int]:
    """Runs to the end, or until so many decisions are there and all that was read is decided; returns what was published."""
    stop = threading.Event()
    source = MemorySource(logs, rows=40, stop=stop, until_end=until is None)
    if until is not None:
        sink.on_write = lambda messages: stop.set() if len(sink.values("verdicts")) >= until else None
    job = pipeline, settings(home, recovery=True, epoch_seconds=EPOCH)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=champion_of(pipeline), stop=stop)
    sink.on_write = lambda messages: None
    return source.committed


def rebuilt(home: Path, pipeline: Pipeline, logs: Sequence[Log], decide: dict[int, int], slack: int = 0) -> Start:
    """A store without state that begins where the rebuild begins."""
    source: Any = MemorySource(logs, rows=40)
    start = resume(timeline_of(pipeline, source, settings(home)), pipeline.groups, len(logs), decide, slack * SECOND)
    begin_at(store_of(pipeline, settings(home)), start)
    return start


def bare(found: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in one.items() if key != "decided_at"} for name, one in found.items()}


def whole_of(home: Path, pipeline: Pipeline, logs: Sequence[Log]) -> dict[str, Any]:
    """The decisions of a run that nothing disturbs."""
    sink, source = MemorySink(), MemorySource(logs, rows=40)
    run(pipeline, settings(home), registry=CollectorRegistry(), source=source, sink=sink, champion=champion_of(pipeline))
    return bare(decisions(sink, pipeline.sinks[0].topic))


def quick(order: Any = "event", **values: Any) -> Pipeline:
    """Payments whose windows are short beside the streams of these tests."""
    features = [
        Window("card", "amount", over="20m", aggs=("count", "sum", "std", "distinct", "decayed"), half_life="5m"),
        Window("shop", "amount", over="5m", aggs=("mean", "last"), where="kind == 'paid'"),
        Last("shop", "amount", within="15m", where="kind == 'refund'"),
    ]
    return replace(payments(order=order), **({"features": features} | values))


def half(home: Path, pipeline: Pipeline, logs: Sequence[Log], sink: MemorySink, until: int) -> tuple[dict[int, int], Path]:
    """Runs until so many are decided; returns the safe positions, which were published too, and the store."""
    published = going(home, pipeline, logs, sink, until=until)
    store = store_of(pipeline, settings(home))
    safe = kept(store, "payments")
    assert published == {number: offset for number, offset in safe.items() if offset}
    return safe, store


def check_second_half(sink: MemorySink, sent: int, whole: dict[str, Any]) -> None:
    """What was decided since `sent` is as in `whole`, and everything is decided."""
    first = decisions(sink)
    assert bare(first).keys() == whole.keys()
    new = [json.loads(value) for value in sink.values("verdicts")[sent:]]
    for one in new:
        assert bare({"": one})[""] == whole[one["decision_id"]]
    assert 0 < len(new) < len(whole)


@pytest.mark.parametrize(("order", "partitions"), [("arrival", 1), ("event", 1), ("event", 3)])
@pytest.mark.parametrize("lost", ["store", "disk"])
def test_rebuilt_state_decides_as_state_never_lost(tmp_path: Path, order: str, partitions: int, lost: str) -> None:
    logs, pipeline = spread(stream(3000), partitions), quick(order)
    whole = whole_of(tmp_path / "whole", pipeline, logs)
    sink, home = MemorySink(), tmp_path / "job"
    safe, store = half(home, pipeline, logs, sink, until=900)
    if lost == "disk":
        shutil.rmtree(store)
    sent = len(sink.values("verdicts"))
    start = rebuilt(home, pipeline, logs, safe)
    assert start.decide == safe
    assert sum(start.read.values()) > 0
    going(home, pipeline, logs, sink)
    check_second_half(sink, sent, whole)
    assert len(sink.values("verdicts")) - len(whole) < 400


ADDED = Window("card", "amount", over="1h", aggs=("max",))
CHANGES: dict[str, Any] = {
    "shards": {"shards": 3},
    "added": {"features": [*quick().features, ADDED]},
    "resized": {"features": [replace(quick().features[0], over="30m"), *quick().features[1:]]},
    "removed": {"features": quick().features[1:]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_pipeline_decides_as_if_it_had_been_so_from_the_start(tmp_path: Path, change: str) -> None:
    """As it is it is refused, with the command that goes on; rebuilt it goes on where it was."""
    logs, before, after = spread(stream(3000), 2), quick(), quick(**CHANGES[change])
    whole = whole_of(tmp_path / "whole", after, logs)
    sink, home = MemorySink(), tmp_path / "job"
    safe, _ = half(home, before, logs, sink, until=900)
    sent = len(sink.values("verdicts"))
    with pytest.raises(RecoveryError, match="headrace run payments --rebuild"):
        going(home, after, logs, sink)
    rebuilt(home, after, logs, safe)
    going(home, after, logs, sink)
    check_second_half(sink, sent, whole)
