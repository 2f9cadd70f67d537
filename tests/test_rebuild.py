"""State made anew from the topic decides as state that was never lost: to the last feature and flag, nothing left out."""

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from payments import Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from features.spec import Fields, Last, Window
from features.streaming import Group
from models.spec import Input, ModelSpec
from ops.start import begin_at, prepare, timeline_of
from sinks.memory import MemorySink
from streams import polling, positions
from streams import rebuild as rebuild_module
from streams import start as start_module
from streams.decode import Decoded
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.positions import kept
from streams.rebuild import SECOND, Timeline, resume
from streams.run import run
from streams.source import MemorySource, SourceError
from streams.start import MADE, RecoveryError, Start, store_of
from streams.store import Store

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
NONE = {"features": [Fields("amount")]}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "shards": ({}, {"shards": 3}),
    "added": ({}, {"features": [*quick().features, ADDED]}),
    "resized": ({}, {"features": [replace(quick().features[0], over="30m"), *quick().features[1:]]}),
    "removed": ({}, {"features": quick().features[1:]}),
    "all removed": ({}, NONE),
    "first added": (NONE, {}),
}


@pytest.mark.parametrize("order", ["arrival", "event"])
def test_without_streaming_features_a_job_goes_on_where_it_was(tmp_path: Path, order: str) -> None:
    logs, pipeline = spread(stream(3000), 2), quick(order, **NONE)
    whole = whole_of(tmp_path / "whole", pipeline, logs)
    sink, home = MemorySink(), tmp_path / "job"
    _, store = half(home, pipeline, logs, sink, until=900)
    with Store(store) as opened:
        steps = {step.rpartition(".")[2] for step in opened.steps()}
    assert ("features" in steps) == (order == "event")
    sent = len(sink.values("verdicts"))
    going(home, pipeline, logs, sink)
    check_second_half(sink, sent, whole)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_pipeline_decides_as_if_it_had_been_so_from_the_start(tmp_path: Path, change: str) -> None:
    """As it is it is refused, with the command that goes on; rebuilt it goes on where it was."""
    logs, (before, after) = spread(stream(3000), 2), [quick(**values) for values in CHANGES[change]]
    whole = whole_of(tmp_path / "whole", after, logs)
    sink, home = MemorySink(), tmp_path / "job"
    safe, _ = half(home, before, logs, sink, until=900)
    sent = len(sink.values("verdicts"))
    with pytest.raises(RecoveryError, match="headrace run payments --rebuild"):
        going(home, after, logs, sink)
    rebuilt(home, after, logs, safe)
    going(home, after, logs, sink)
    check_second_half(sink, sent, whole)


class Confirmed(MemorySink):
    """Remembers what was decided of each partition when it was last flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: dict[int, set[int]] = {}

    def flush(self) -> None:
        super().flush()
        for value in self.values("verdicts"):
            _, _, partition, offset = json.loads(value)["decision_id"].split("/")
            self.offsets.setdefault(int(partition), set()).add(int(offset))


class Published(dict[int, int]):
    """Positions that are checked when they are published."""

    def __init__(self, logs: Sequence[Log], sink: Confirmed) -> None:
        super().__init__()
        self.sink = sink
        self.decided = [[b'"paid"' in value for _, value in log] for log in logs]

    def __setitem__(self, partition: int, position: int) -> None:
        needed = set(np.flatnonzero(self.decided[partition][:position]).tolist())
        assert needed <= self.sink.offsets.get(partition, set())
        assert position > self.get(partition, 0)
        super().__setitem__(partition, position)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_crash_published_positions_leave_no_gap(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job dies at any time, its disk is lost, it comes back with other shards. When a position is published all before it
    is decided and delivered."""
    monkeypatch.setattr(polling, "PUBLISH_SECONDS", 0.0)
    rng = np.random.default_rng(seed)
    order, partitions = ("event", int(rng.integers(1, 4))) if seed else ("arrival", 1)
    logs, pipeline, home = spread(stream(2000, seed), partitions), quick(order), tmp_path / "job"
    after = replace(pipeline, shards=int(rng.integers(1, 12)))
    whole = whole_of(tmp_path / "whole", after, logs)
    sink, source = Confirmed(), MemorySource(logs, rows=int(rng.integers(5, 40)))
    source.committed = published = Published(logs, sink)
    sink.fail_after(int(rng.integers(300, 1000)))
    job = pipeline, settings(home, recovery=True, epoch_seconds=EPOCH)
    with pytest.raises(Exception, match="told to fail"):
        run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=champion_of(pipeline))
    sink.fail_after(None)
    shutil.rmtree(store_of(pipeline, settings(home)))
    assert published
    rebuilt(home, after, logs, dict(published))
    sent = len(sink.values("verdicts"))
    going(home, after, logs, sink)
    check_second_half(sink, sent, whole)


def test_interrupted_a_rebuild_goes_on_by_itself_and_dead_letters_are_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stream(3000)
    for k in range(0, 3000, 100):
        log[k] = b"k", b"{nonsense"
    pipeline, sink, home, stop = quick("arrival"), MemorySink(), tmp_path / "job", threading.Event()
    whole = whole_of(tmp_path / "whole", pipeline, [log])
    safe, store = half(home, pipeline, [log], sink, until=900)
    letters, sent = len(sink.values("pay.dead")), len(sink.values("verdicts"))
    assert letters == -(-safe[0] // 100)
    rebuilt(home, pipeline, [log], safe)
    left: list[int] = []
    monkeypatch.setattr(
        start_module.Rebuilding, "left", lambda self, partition, n: [left.append(n), len(left) < 5 or stop.set()]
    )
    source = MemorySource([log], rows=40, stop=stop, until_end=False)
    job = pipeline, settings(home, recovery=True, epoch_seconds=EPOCH)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=champion_of(pipeline), stop=stop)
    assert 0 < left[-1] < left[0]
    assert len(sink.values("verdicts")) == sent
    assert kept(store, "payments") == safe
    monkeypatch.undo()
    told: list[str] = []
    registry = CollectorRegistry()
    run(
        *job,
        registry=registry,
        source=MemorySource([log], rows=40),
        sink=sink,
        champion=champion_of(pipeline),
        say=lambda words, **fields: told.append(words),
    )
    check_second_half(sink, sent, whole)
    assert len(sink.values("pay.dead")) == 30
    assert told[-1] == "payments: rebuilding state: deciding goes on"
    assert registry.get_sample_value("headrace_rebuild_left", {"pipeline": "payments"}) == 0


def test_until_windows_are_full_decisions_say_so(tmp_path: Path) -> None:
    """From the first event on, and after a stop as if there had been none."""
    log, pipeline, sink = stream(3000), quick("arrival"), MemorySink()
    half(tmp_path, pipeline, [log], sink, until=50)
    going(tmp_path, pipeline, [log], sink)
    begins = np.datetime64(json.loads(log[0][1])["at"][:-1])
    spans = {"20m_by_card": 1210, "5m_by_shop": 302, "15m_by_shop": 900}
    seen = set()
    for one in decisions(sink).values():
        age = (np.datetime64(one["event_time"][:-1]) - begins) / np.timedelta64(1, "s")
        expected = [f"warming:{name}" for name, span in spans.items() if age < span]
        assert [flag for flag in one["flags"] if flag.startswith("warming")] == expected
        seen.add(len(expected))
    assert seen == {0, 1, 2, 3}


def times_log(times: Sequence[int], low: int = 0) -> Timeline:
    """A timeline of one partition whose messages, from offset `low` on, have these times (s)."""
    offsets = np.arange(len(times)) + low
    micros = pa.array(np.array(times, np.int64) * SECOND).view(pa.timestamp("us", "UTC"))
    batch = pa.RecordBatch.from_arrays([pa.array(offsets), micros], ["_offset", "at"])

    class OneLog:
        def bounds(self, partition: int) -> tuple[int, int]:
            return low, low + len(times)

        def read(self, partition: int, offset: int) -> pa.RecordBatch:
            return batch.slice(max(0, offset - low), 3)

        def since(self, partition: int, time_ms: int) -> int:
            return low + int(np.searchsorted(times, time_ms / 1000))

    return Timeline(OneLog(), lambda raw: Decoded(raw, raw.slice(0, 0)), "at")


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=200),
    st.integers(0, 200),
    st.integers(0, 99),
)
def test_all_that_windows_see_is_read_however_events_are_out_of_order_within_the_slack(
    events: list[tuple[int, int]], place: int, low: int
) -> None:
    """Events come up to 20 s after later ones."""
    times = [2000 + time for time, late in sorted(events, key=lambda event: event[0] + event[1])]
    decide = low + min(place, len(times))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild_module, "CLOSE", 1)
        window = Window("card", "amount", over="60s", aggs=("sum",))
        start = resume(times_log(times, low), [Group("card", (window,))], 1, {0: decide}, 20 * SECOND)
    first, after = start.read[0] - low, times[start.decide[0] - low :]
    assert start.decide[0] == max(decide, low)
    if after:
        sees = min(after) - 60
        assert all(time < sees for time in times[:first])
        whole = start.begins is None or start.begins <= (sees - 1) * SECOND
        assert whole or (first == 0 and low > 0)
        assert (start.begins is None) == (first == 0 and low == 0)


@given(st.lists(st.integers(0, 500), max_size=200), st.integers(-5, 505))
def test_a_time_is_where_the_log_reaches_it(times: list[int], time: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebuild_module, "CLOSE", 4)
        assert times_log(sorted(times)).since(0, time * SECOND) == int(np.searchsorted(sorted(times), time))


def test_messages_that_are_gone_or_never_were_are_told(tmp_path: Path) -> None:
    timeline = times_log([1, 2, 3], low=10)
    with pytest.raises(RecoveryError, match="messages 4 to 9 were deleted"):
        resume(timeline, (), 1, {0: 4}, 0)
    with pytest.raises(RecoveryError, match="expected a position up to 13, the end of the topic, got 14"):
        resume(timeline, (), 1, {0: 14}, 0)


def test_a_broker_that_does_not_know_the_group_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that has just started says of every group."""

    class Starting:
        asked = 0

        def __init__(self, config: dict[str, Any]) -> None: ...

        def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
            Starting.asked += 1
            if Starting.asked < 3:
                raise KafkaException(KafkaError(KafkaError.NOT_COORDINATOR))
            return [TopicPartition("pay", 0, 7), TopicPartition("pay", 1, OFFSET_INVALID)]

        def close(self) -> None: ...

    monkeypatch.setattr(positions, "Consumer", Starting)
    assert positions.committed("nowhere", {}, "group", "pay", 2) == {0: 7}
    Starting.asked = 0
    with pytest.raises(RecoveryError, match="does not say the positions of group group"):
        positions.committed("nowhere", {}, "group", "pay", 2, timeout=0.0)


def test_a_place_to_begin_at_is_a_store_and_does_not_push_out_one_that_was_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*given: Any) -> int:
        raise SourceError("asked")

    monkeypatch.setattr("ops.start.topic_partitions", asked)
    pipeline, job = payments(), settings(tmp_path, recovery=True)
    store = store_of(pipeline, job)
    store.mkdir(parents=True)
    (store / MADE).write_text("{}")
    begin_at(store, Start(decide={0: 7}))
    begin_at(store, Start(decide={0: 8}))
    assert (store.with_name(f"{store.name}.old") / MADE).exists()
    prepare(pipeline, job, called="payments")
    assert Start.load(store).decide == {0: 8}
    with pytest.raises(SourceError, match="asked"):  # it has not begun, and may be told anew where to
        prepare(pipeline, job, called="payments", begin="earliest")
