"""The record of a job: every decision with the features it was made on, once it is durable, whatever happens to the job."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from payments import CHAMPION, NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from sinks.memory import MemorySink
from sinks.memory_log import MemoryLane, MemoryLog
from sinks.records import Records, explained, listed, read, sources
from sinks.segments import RecordError, chains, check
from streams.pipeline import Pipeline, Record
from streams.polling import WAIT_SECONDS
from streams.record import chosen
from streams.run import run
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes]]


def recorded(**values: Any) -> Pipeline:
    return replace(payments(), record=Record(**values))


def run_once(home: Path, logs: list[Log], pipeline: Pipeline, sink: MemorySink | None = None, **values: Any) -> MemorySink:
    sink = sink or MemorySink()
    source = MemorySource(logs, rows=values.pop("rows", 64))
    registry = values.pop("registry", None) or CollectorRegistry()
    job = settings(home, **values)
    run(pipeline, job, registry=registry, source=source, sink=sink, champion=replace(CHAMPION, digest="d1"))
    return sink


def of(home: Path) -> Records:
    return read(home / "record" / "payments")


def same(record: Records, decided: dict[str, dict[str, Any]]) -> None:
    """Each decision of the topic has its record, and says the same."""
    rows = {row["decision_id"]: row for row in record.table.iter_rows(named=True)}
    assert rows.keys() == decided.keys()
    for name, decision in decided.items():
        row = rows[name]
        for key in ("event_id", "decision", "reasons", "flags", "model", "model_version"):
            assert row[key] == decision[key]
        assert row["score"] == np.float32(decision["score"])
        assert row["event_time"].isoformat(timespec="microseconds").replace("+00:00", "Z") == decision["event_time"]
        assert row["decision_id"] == f"payments/pay/{row['partition']}/{row['offset']}"
        assert row["model_digest"] == "d1"
        for feature in NAMES:
            served = decision["features"][feature]
            assert row[feature] == (served if served is None else np.float32(served))


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_every_decision_has_its_record(tmp_path: Path, rows: int) -> None:
    logs = [stream(300, seed=k) for k in range(2)]
    registry = CollectorRegistry()
    sink = run_once(tmp_path, logs, recorded(megabytes=0.05), rows=rows, registry=registry)
    same(of(tmp_path), decisions(sink))
    assert registry.get_sample_value("headrace_recorded_rows_total", {"pipeline": "payments"}) == len(decisions(sink))
    assert [one.breaks for one in map(check, chains(tmp_path / "record" / "payments"))] == [()]


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
@pytest.mark.parametrize("pipeline", [payments(), recorded()])
def test_nothing_that_was_read_is_still_on_its_way_when_all_is_decided(
    tmp_path: Path, pipeline: Pipeline, delivery: str
) -> None:
    """Else no poll would wait for messages again."""
    source = MemorySource([[*stream(300), (None, b"{nonsense")], [(None, b"[]")], []], rows=7)
    written, sink = MemoryLog(), MemorySink()
    job = settings(tmp_path, recovery=True, delivery=delivery)
    parts: dict[str, Any] = {"lanes": lambda shard: MemoryLane(written, str(shard))}
    parts |= {} if delivery == "exactly_once" else {"sink": sink}
    run(pipeline, job, registry=CollectorRegistry(), source=source, champion=CHAMPION, **parts)
    assert len(written.values("verdicts")) + len(sink.values("verdicts")) > 100
    source.gate.opens(source.gate.opens(0))
    assert source.gate.wait() == WAIT_SECONDS


def test_stopped_by_a_failure_and_started_again_no_decision_is_without_its_record(tmp_path: Path) -> None:
    """The sink fails twice on the way; every decision that ever left is in the record, some of them twice."""
    log, sink = stream(800), MemorySink()
    job = {"rows": 5, "recovery": True, "epoch_seconds": 0.001}
    for messages in (150, 150):
        sink.fail_after(messages=messages)
        with pytest.raises(Exception, match="told to fail"):
            run_once(tmp_path, [log], recorded(), sink, **job)
    sink.fail_after(messages=None)
    run_once(tmp_path, [log], recorded(), sink, **job)
    record, decided = of(tmp_path), decisions(sink)
    for one in decided.values():
        del one["decided_at"]
    same(record, decided)
    assert record.repeats > 0


def test_what_is_durable_is_recorded_before_the_epoch_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of each epoch everything that was sent is on disk: the log is looked at when the next epoch begins."""
    sink, seen = MemorySink(), []
    log = stream(400)
    original = MemorySource.build_part

    def build(source: MemorySource, *arguments: Any) -> Any:
        partition = original(source, *arguments)
        polls = partition.poll

        def poll(wait: float) -> Any:
            if seen is not None and partition._begins_epoch and partition._snapshots:
                seen.append((len(sink.values("verdicts")), of(tmp_path).table.height if sink.values("verdicts") else 0))
            return polls()

        partition.poll = poll
        return partition

    monkeypatch.setattr(MemorySource, "build_part", build)
    run_once(tmp_path, [log], recorded(), sink, rows=20, recovery=True, epoch_seconds=0.001)
    assert len(seen) > 5
    assert all(written == sent for sent, written in seen)


def test_a_share_is_the_same_on_a_replay_and_about_as_large(tmp_path: Path) -> None:
    log = stream(4000)
    kept = []
    for home in ("one", "other"):
        sink = run_once(tmp_path / home, [log], recorded(share=0.25), rows=64 if home == "one" else 501)
        kept.append(set(of(tmp_path / home).table["decision_id"]))
    assert kept[0] == kept[1]
    assert 0.2 < len(kept[0]) / len(decisions(sink)) < 0.3
    assert of(tmp_path / "one").told.share == 0.25


def test_shares_are_even_and_hold_each_other() -> None:
    offset = np.arange(200_000)
    for prefix in ("a/b/", "flights/flight-events/"):
        for partition in (0, 7):
            where = np.full(len(offset), partition, np.int32)
            tenth, half = (chosen(where, offset, prefix, share) for share in (0.1, 0.5))
            assert abs(tenth.mean() - 0.1) < 0.004
            assert abs(half.mean() - 0.5) < 0.006
            assert not (tenth & ~half).any()
            assert abs(half[:1000].mean() - 0.5) < 0.08
    assert (chosen(offset * 0, offset, "a/", 0.5) != chosen(offset * 0, offset, "b/", 0.5)).any()


def test_one_decision_is_explained(tmp_path: Path) -> None:
    sink = run_once(tmp_path, [stream(50)], recorded())
    decided = list(decisions(sink).values())[-1]
    found = explained(of(tmp_path), decided["decision_id"])
    assert found["decision"] == decided["decision"]
    assert [one["name"] for one in found["features"]] == list(NAMES)
    assert [one["source"] for one in found["features"]] == ["field", *["stream"] * 6]
    with pytest.raises(RecordError, match="no decision payments/pay/0/99"):
        explained(of(tmp_path), "payments/pay/0/99")


def test_sources_and_flags_are_told_by_bits() -> None:
    names = ("no_entity:x", "missing:v", "stale:v", "future:v", "unread:v", "refused", "fallback")
    bits = pa.array([0, 0b10, 0b100, 0b1000, 0b10000, 0b10010, 0b11000, 0b10100, 0b1000011]).dictionary_encode()
    told = ["store", "none", "instead:stale", "store:future", "store:unread", "instead:unread", "store:future:unread"]
    assert sources(bits, "v", names).to_pylist() == [*told, "instead:stale", "none"]
    assert listed(bits, names).to_pylist()[-1] == ["no_entity:x", "missing:v", "fallback"]


def test_read_with_polars_and_by_hand(tmp_path: Path) -> None:
    """The files are plain Parquet: no reader of ours is needed."""
    sink = run_once(tmp_path, [stream(100)], recorded())
    folder = tmp_path / "record" / "payments"
    frame = pl.read_parquet(folder / "*" / "*.parquet")
    assert pd.read_parquet(folder)["decision"].tolist() == frame["decision"].to_list()
    assert frame["decision"].to_list() == [one["decision"] for one in decisions(sink).values()]
    assert frame.schema["event_time"] == pl.Datetime("us", "UTC")
    assert frame.schema["reasons"] == pl.List(pl.String)


def test_a_record_that_cannot_be_is_refused() -> None:
    for values, said in (({"share": 0.0}, "share above 0"), ({"share": 1.5}, "up to 1"), ({"megabytes": 0}, "megabytes")):
        with pytest.raises(ValueError, match=said):
            Record(**values)


def test_no_record_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no record in"):
        read(tmp_path)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_of_a_decision_made_twice_the_record_explains_the_one_that_was_seen(tmp_path: Path, delivery: str) -> None:
    """At least once that is the first; exactly once what was recorded before was of an epoch that did not last."""
    for year in (2024, 2025):
        shutil.rmtree(tmp_path / "recovery", ignore_errors=True)
        written, now = MemoryLog(), int(np.datetime64(f"{year}-06-01", "ns").astype(int))
        parts: dict[str, Any] = {
            "lanes": lambda shard, log=written: MemoryLane(log, str(shard)),
            "clock_ns": lambda now=now: now,
            "champion": CHAMPION,
        }
        parts |= {} if delivery == "exactly_once" else {"sink": MemorySink()}
        job, source = settings(tmp_path, recovery=True, delivery=delivery), MemorySource([stream(100)])
        run(recorded(), job, registry=CollectorRegistry(), source=source, **parts)
    record = of(tmp_path)
    assert record.repeats == record.table.height > 50
    assert set(record.table["decided_at"].dt.year()) == {2025 if delivery == "exactly_once" else 2024}
