"""Dead letters that are sent again, corrected: decided on under the id of the message that failed."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_rebuild
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME
from hypothesis import given
from hypothesis import strategies as st
from payments import CHAMPION, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import bare, going, half, quick, rebuilt, whole_of

from sinks.memory import MemorySink
from sinks.messages import encode_dead
from streams.replays import HEADER, marked, originals, replayed
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


class Sent:
    """What a Kafka message tells."""

    def __init__(self, offset: int, header: str | None, stamp: int, kind: int = TIMESTAMP_CREATE_TIME) -> None:
        self._offset, self._stamp = offset, (kind, stamp)
        self._headers = None if header is None else [("traceparent", b"00-1"), (HEADER, header.encode())]
        self.asked = 0

    def headers(self) -> Any:
        self.asked += 1
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return self._stamp

    def offset(self) -> int:
        return self._offset

    def topic(self) -> str:
        return "pay"

    def partition(self) -> int:
        return 3


def found_in(sent: list[Sent]) -> dict[int, int]:
    messages: Any = sent
    return replayed(messages, np.array([message.timestamp()[1] for message in sent], np.int64))


def test_only_messages_whose_time_stamp_says_so_are_asked_for_their_headers() -> None:
    now = 1_704_200_000_123
    sent = [Sent(k, None, now + k) for k in range(2048)]
    sent[500] = Sent(500, "pay/3/7", marked(now))
    assert found_in(sent) == {500: 7}
    assert sum(message.asked for message in sent) == 3
    sent[600] = Sent(600, "pay/3/8", now)
    assert found_in(sent) == {500: 7}
    for place in (0, 2047):
        sent[place] = Sent(place, None, now, TIMESTAMP_LOG_APPEND_TIME)
    assert found_in(sent) == {500: 7, 600: 8}
    assert found_in([]) == {}


@given(st.integers(min_value=1_000_000, max_value=2**45))
def test_a_replay_is_stamped_within_the_last_second_or_so(now: int) -> None:
    assert now - 1024 < marked(now) <= now
    assert marked(now) & 1023 == 777


@pytest.mark.parametrize(
    "header", ["pay/3/90", "pay/3/91", "pay/2/7", "other/3/7", "pay/3/-7", "pay/3/", "", "7", "pay/3/\u0667", "pay/3/7 "]
)
def test_a_header_that_names_no_earlier_message_of_the_partition_says_nothing(header: str) -> None:
    assert found_in([Sent(90, header, marked(1_704_200_000_123))]) == {}
    assert found_in([Sent(90, "pay/3/89", marked(1_704_200_000_123))]) == {0: 89}


def with_replays(log: Log, every: int) -> tuple[Log, dict[tuple[int, int], int]]:
    """A log in which each so manieth message is bad and comes again half a log later."""
    made: Log = []
    replays: dict[tuple[int, int], int] = {}
    places: list[int] = []
    for k, message in enumerate(log):
        made.append((message[0], b"{") if k % every == 0 and k < len(log) // 2 else message)
        if k % every == 0:
            places.append(len(made) - 1)
            if k >= len(log) // 2:
                first = places[(k - len(log) // 2) // every]
                replays[0, len(made)] = first
                made.append(log[(k - len(log) // 2) // every * every])
    return made, replays


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "store", "disk"])
@pytest.mark.parametrize("order", ["arrival", "event"])
def test_stopped_or_rebuilt_a_job_decides_replays_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, lost: str
) -> None:
    """The log is bisected by time for the rebuild, and replays in it are from long before their neighbours. Where the state was
    rebuilt it begins after them, and says so."""
    log, replays = with_replays(stream(3000), 10)
    monkeypatch.setattr(test_rebuild, "MemorySource", partial(MemorySource, replays=replays))
    pipeline = quick(order)
    whole = whole_of(tmp_path / "whole", pipeline, [log])
    ids = {f"payments/pay/0/{original}" for original in replays.values()}
    assert len(ids & whole.keys()) > 50
    sink, home = MemorySink(), tmp_path / "job"
    safe, store = half(home, pipeline, [log], sink, until=1300)
    sent = len(sink.values("verdicts"))
    assert any(0 < safe[0] < place for _, place in replays)
    if lost == "disk":
        shutil.rmtree(store)
    if lost != "nothing":
        start = rebuilt(home, pipeline, [log], safe)
        assert start.read[0] > 0
    going(home, pipeline, [log], sink)
    assert decisions(sink).keys() == whole.keys()
    new = [json.loads(value) for value in sink.values("verdicts")[sent:]]
    assert len(ids & {one["decision_id"] for one in new}) > 50
    for one in new:
        warm = not any(flag.startswith("warming:") for flag in one["flags"])
        assert warm or (lost != "nothing" and one["decision_id"] in ids)
        assert not warm or bare({"": one})[""] == whole[one["decision_id"]]


def test_a_replay_that_kills_the_job_is_set_aside_under_its_first_position() -> None:
    log = stream(30)
    source = MemorySource([[*broken(log, 7), log[7], log[9]]], replays={(0, 30): 7, (0, 31): 9})
    decoded = payments().events.decode("x", settings(Path()), aside={(0, 30): "two deaths", (0, 8): "two deaths"})(
        source.read(0, 0)
    )
    letters = [json.loads(value) for value in encode_dead(decoded.dead, "pay.dead", "pay").values]
    told = {(letter["offset"], letter["replay"], letter["code"]) for letter in letters}
    assert told == {(7, None, "not_json"), (7, 30, "poison"), (8, None, "poison")}
    assert originals(decoded.rows).to_pylist() == [*range(7), *range(9, 30), 9]
