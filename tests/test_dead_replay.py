"""Dead letters that are sent again, corrected: decided on under the id of the message that failed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from payments import CHAMPION, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from sinks.memory import MemorySink
from streams.run import run
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes]]


def broken(log: Log, *places: int) -> Log:
    return [(key, b"{nonsense" if k in places else value) for k, (key, value) in enumerate(log)]


def paid(log: Log, near: int) -> int:
    """The first payment from an offset on."""
    return next(k for k in range(near, len(log)) if json.loads(log[k][1])["kind"] == "paid")


def run_once(home: Path, logs: list[Log], replays: dict[tuple[int, int], int], rows: int = 7, **values: Any) -> MemorySink:
    sink = MemorySink()
    source = MemorySource(logs, rows=rows, replays=replays)
    job = payments(order=values.pop("order", "arrival")), settings(home, **values)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=CHAMPION)
    return sink


@pytest.mark.parametrize("order", ["arrival", "event"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_a_replay_is_decided_under_the_id_of_the_message_that_failed(tmp_path: Path, rows: int, order: str) -> None:
    log, other = stream(300), stream(300, seed=1)
    bad = paid(log, 280)
    logs = [[*broken(log, bad), log[bad]], other]
    found = decisions(run_once(tmp_path, logs, {(0, 300): bad}, rows, order=order))
    whole = decisions(run_once(tmp_path, [log, other], {}, rows, order=order))
    assert found.keys() == whole.keys()
    again, first = (those[f"payments/pay/0/{bad}"] for those in (found, whole))
    assert (again["event_id"], again["event_time"]) == (first["event_id"], first["event_time"])
    assert again["features"]["amount"] == first["features"]["amount"]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_replay_that_fails_again_is_a_dead_letter_of_the_first_position(tmp_path: Path, rows: int) -> None:
    log = stream(40)
    sink = run_once(tmp_path, [[*broken(log, 7), (b"k", b"[]"), *broken(log, 3)[2:4]]], {(0, 40): 7}, rows)
    letters = [json.loads(value) for value in sink.values("pay.dead")]
    told = [(letter["offset"], letter["replay"], letter["code"]) for letter in letters]
    assert told == [(7, None, "not_json"), (7, 40, "not_object"), (42, None, "not_json")]
    assert letters[1]["reason"].endswith("(pay/0@7)")
    assert letters[1]["value_base64"] == "W10="


def test_the_same_replay_twice_is_a_repeat_that_consumers_drop(tmp_path: Path) -> None:
    log = stream(50)
    bad = paid(log, 20)
    sink = run_once(tmp_path, [[*broken(log, bad), log[bad], log[bad]]], {(0, 50): bad, (0, 51): bad})
    ids = [json.loads(value)["decision_id"] for value in sink.values("verdicts")]
    assert ids.count(f"payments/pay/0/{bad}") == 2
    assert len(set(ids)) == sum(json.loads(value)["kind"] == "paid" for _, value in log)


def test_without_replays_no_batch_has_a_column_for_them() -> None:
    source = MemorySource([stream(10)])
    assert "_original" not in source.read(0, 0).schema.names
    assert replace(payments()).events.decode("x", settings(Path())) is not None
