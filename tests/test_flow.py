"""The real flow with in-memory source and sink: features exact per event, order, bad messages, stop and resume."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from payments import CHAMPION, Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from features.spec import Derived
from models.policy import Bands, Rule
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams import flow, rounds
from streams.budget import Budget
from streams.job import Champion
from streams.run import run
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes]]


def run_once(home: Path, logs: list[Log], sink: MemorySink | None = None, rows: int = 64, **values: Any) -> MemorySink:
    sink = sink or MemorySink()
    job = payments(order=values.pop("order", "arrival")), settings(home, **values)
    run(*job, registry=CollectorRegistry(), source=MemorySource(logs, rows=rows), sink=sink, champion=CHAMPION)
    return sink


def expected(log: Log) -> dict[int, dict[str, Any]]:
    """What each payment's features are, by definition: an hour has tiles of a second, so that it is to the second."""
    events = [json.loads(value) for _, value in log]
    times = [int(np.datetime64(event["at"][:-1], "s").astype(int)) for event in events]
    out = {}
    for k, (event, now) in enumerate(zip(events, times, strict=True)):
        if event["kind"] != "paid":
            continue
        before = list(zip(events[:k], times[:k], strict=True))
        paid = [
            e["amount"] for e, t in before if e["kind"] == "paid" and e.get("card") == event.get("card") and t >= now - 3600
        ]
        refunds = [(t, e["amount"]) for e, t in before if e["kind"] == "refund" and e["shop"] == event["shop"]]
        last = refunds[-1][1] if refunds and now - refunds[-1][0] <= 12 * 3600 else None
        out[event["payment"]] = {"paid": paid, "last": last}
    return out


def check(found: dict[str, dict[str, Any]], log: Log) -> None:
    definition = expected(log)
    assert len(found) == len(definition)
    for decision in found.values():
        features, want = decision["features"], definition[decision["event_id"]]
        assert features["amount_last_by_shop"] == want["last"]
        no_card = "no_entity:card" in decision["flags"]
        if no_card:
            assert features["amount_count_1h_by_card"] is None
        else:
            assert features["amount_count_1h_by_card"] == len(want["paid"])
            assert features["amount_sum_1h_by_card"] == sum(want["paid"])
            assert features["amount_max_1h_by_card"] == max(want["paid"], default=None)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_features_are_exact_whatever_the_batches(tmp_path: Path, rows: int) -> None:
    log = stream(400)
    check(decisions(run_once(tmp_path, [log], rows=rows)), log)


def test_event_order_over_partitions_is_the_order_of_one(tmp_path: Path) -> None:
    """Three partitions, one of them idle, very uneven in their pace, give the features of the one log in order."""
    log = stream(600)
    logs: list[Log] = [[], [], []]
    for k, message in enumerate(log):
        logs[0 if k % 5 else 1].append(message)
    one = decisions(run_once(tmp_path, [log]))
    three = decisions(run_once(tmp_path, logs, rows=37, order="event"))
    by_payment = {decision["event_id"]: decision for decision in three.values()}
    assert len(by_payment) == len(one)
    for decision in one.values():
        assert by_payment[decision["event_id"]]["features"] == decision["features"]


def test_partitions_decoded_together_decide_as_those_decoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three partitions, one of them with a single bad message, and bad ones among the good."""
    logs: list[Log] = [[], [], [(None, b"{nonsense")]]
    for k, message in enumerate(stream(900)):
        logs[0 if k % 3 else 1] += [message] if k % 50 else [message, (b"k", b"[]")]
    found = []
    for together in (True, False):
        monkeypatch.setattr(flow, "rounds", lambda polls, apart, together=together: rounds.rounds(polls, apart=not together))
        calls, whole = [], rounds.as_one
        monkeypatch.setattr(flow, "as_one", lambda polls, calls=calls, whole=whole: calls.append(len(polls)) or whole(polls))
        sink = run_once(tmp_path / str(together), logs, rows=20)
        assert (max(calls) == 3) == together
        made = decisions(sink)
        dead = [json.loads(value) for value in sink.values("pay.dead")]
        for one in made.values():
            del one["decided_at"]
        found.append((made, sorted((letter["partition"], letter["offset"], letter["reason"]) for letter in dead)))
    assert found[0] == found[1]
    assert len(found[0][1]) == 1 + 18
    assert len(found[0][0]) == sum(b'"paid"' in value for log in logs for _, value in log)


def test_one_bad_message_costs_only_itself(tmp_path: Path) -> None:
    log = stream(50)
    bad = [log[0], (b"k", b"{nonsense"), (b"k", b'{"kind":"paid"}'), *log[1:]]
    sink = run_once(tmp_path, [bad])
    assert len(decisions(sink)) == len(expected(log))
    dead = [json.loads(value) for value in sink.values("pay.dead")]
    assert [(letter["code"], letter["offset"]) for letter in dead] == [("not_json", 1), ("missing_field", 2)]
    assert "payments/decode: " in dead[1]["reason"]
    assert "(pay/0@2)" in dead[1]["reason"]


@pytest.mark.parametrize("order", ["arrival", "event"])
def test_killed_and_resumed_decides_everything_as_if_nothing_happened(tmp_path: Path, order: str) -> None:
    """The sink fails half-way, as in a crash between two snapshots; what is decided again has the same id and features."""
    log = stream(800)
    whole = decisions(run_once(tmp_path / "whole", [log], order=order))
    sink = MemorySink()
    sink.fail_after(messages=200)
    with pytest.raises(Exception, match="told to fail"):
        run_once(tmp_path, [log], sink, rows=5, order=order, recovery=True, epoch_seconds=0.001)
    some = len(decisions(sink))
    assert 0 < some < len(whole)
    sink.fail_after(messages=None)
    run_once(tmp_path, [log], sink, rows=5, order=order, recovery=True, epoch_seconds=0.001)
    again = decisions(sink)
    for one in (*whole.values(), *again.values()):
        del one["decided_at"]
    assert again == whole


def test_a_rule_reads_a_condition_that_is_a_feature(tmp_path: Path) -> None:
    """In batches with and without a card that is missing, where it is null."""
    whole, log, sink = payments(), stream(400), MemorySink()
    seen = Rule("seen", when="again == 1 and shop == 'shop-1'", decide="block")
    features = [*whole.features, Derived("again", "amount_count_1h_by_card > 0")]
    pipeline = replace(whole, features=features, policy=Bands(block=0.7, otherwise="allow", rules=[seen]))
    source, engine = MemorySource([log], rows=5), Arithmetic()
    engine.spec = ModelSpec("payments", tuple(Input(name, "number") for name in pipeline.feature_names(())))
    parts = {"source": source, "sink": sink, "champion": Champion(1, engine, None)}
    run(pipeline, settings(tmp_path), registry=CollectorRegistry(), **parts)
    found = decisions(sink).values()
    assert {one["features"]["again"] for one in found} == {None, 0, 1}
    for one in found:
        shop = json.loads(log[one["event_id"]][1])["shop"]
        assert ("seen" in one["reasons"]) == (one["features"]["again"] == 1 and shop == "shop-1")
    assert any("seen" in one["reasons"] for one in found)


def test_stopped_it_drains_and_goes_on(tmp_path: Path) -> None:
    """Asked to stop, the source emits nothing more, everything emitted is decided, and the next run goes on after it."""
    log, sink, stop = stream(5000), MemorySink(), threading.Event()
    source = MemorySource([log], rows=10, stop=stop, until_end=False)
    sink.on_write = lambda messages: stop.set()
    job = payments(), settings(tmp_path, recovery=True, epoch_seconds=0.01)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=CHAMPION)
    some = len(sink.values("verdicts"))
    assert 0 < some < 5000
    sink.on_write = lambda messages: None
    run(*job, registry=CollectorRegistry(), source=MemorySource([log]), sink=sink, champion=CHAMPION)
    assert len(sink.values("verdicts")) == len(decisions(sink)) == len(expected(log))


def test_what_may_be_counted_begins_at_0_and_a_budget_is_an_edge_of_the_buckets(tmp_path: Path) -> None:
    registry, pipeline = CollectorRegistry(), replace(payments(), budget=Budget(15))
    job = pipeline, settings(tmp_path)
    run(*job, registry=registry, source=MemorySource([stream(20)]), sink=MemorySink(), champion=CHAMPION)

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headrace_{name}", {"pipeline": "payments", **labels})

    assert {told("dead_letters_total", code=code) for code in pipeline.events.codes} == {0}
    assert [told("flags_total", flag=flag) for flag in ("fallback", "no_entity:shop")] == [0, 0]
    assert told("decisions_total", decision="block") is not None
    assert None not in [told("late_updates_total", entity="card", outcome=outcome) for outcome in ("used", "dropped")]
    assert told("budget_seconds") == 0.015
    assert told("hop_seconds_bucket", hop="flow", le="0.015") is not None


def test_entities_beyond_the_bound_leave_and_are_counted(tmp_path: Path) -> None:
    registry, log = CollectorRegistry(), stream(2000)
    pipeline = replace(payments(), most_entities=1, shards=2)
    job = pipeline, settings(tmp_path)
    run(*job, registry=registry, source=MemorySource([log], rows=5), sink=MemorySink(), champion=CHAMPION)

    def told(name: str, **labels: str) -> float:
        return registry.get_sample_value(name, {"pipeline": "payments", "entity": "card", **labels}) or 0.0

    assert 0 < told("headrace_entities") <= 2 + 5
    assert told("headrace_entities_gone_total", why="evicted") > 40
    assert told("headrace_entities_gone_total", why="idle") == 0
