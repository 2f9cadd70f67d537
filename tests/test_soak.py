"""What the long run counts and judges: lost, doubled and wrong decisions, and whether anything grows."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bench.proving.chart import drawn
from bench.proving.job import COUNT
from bench.proving.stream import KEYS, SPAWN, STEP_US, TILE_US, WINDOW_US, Counted, Stream, _ended, before
from bench.proving.vitals import Vitals, slope, trend, used_mb
from bench.soak import REST, faults, main, told, wrong
from kernels.windows import naive
from ops.broker import Broker


def decision(partition: int, n: int, count: int) -> bytes:
    told = {"decision_id": f"soak/soak-in/{partition}/{n}", "model_version": 1, "features": {COUNT: count}}
    return json.dumps(told).encode()


def test_decisions_are_counted_as_they_come() -> None:
    counted = Counted(Stream("soak", 300.0, began=100.0))
    counted.add([decision(p, n, 0) for p in range(3) for n in range(100)], [101.0] * 300)
    assert (counted.decided, counted.decisions, counted.repeats, counted.wrong) == (300, 300, 0, 0)
    counted.add([decision(1, 7, 0), decision(1, KEYS + 7, 1), decision(2, KEYS + 8, 2)], [300.0] * 3)
    assert (counted.decided, counted.decisions, counted.repeats, counted.wrong) == (302, 303, 1, 1)
    counted.add([decision(0, 2 * KEYS + 5, 2), decision(0, KEYS + 5, 1)], [301.0, 300.25])
    assert (counted.repeats, counted.wrong) == (1, 2), "out of its key's order"
    assert counted.versions == {1: 304}
    gaps = [counted.longest_gap(*each) for each in ((0, 200), (0, 202), (150, 300), (200.5, 200.75))]
    assert gaps == [199, 199, 99, 0.25]


@pytest.mark.parametrize("n", [0, KEYS - 1, KEYS + 3, 7 * KEYS, 9 * KEYS + 11, 40 * KEYS + 17_000])
def test_what_a_key_has_before_it_in_a_window_is_what_the_definition_says(n: int) -> None:
    own = [naive.Event(0, (n - k * KEYS) * STEP_US, 1.0, k == 0) for k in reversed(range(n // KEYS + 1))]
    (seen,), _, _ = naive.window(own, WINDOW_US, TILE_US)
    assert before(n) == len(seen.held)


def test_p99_is_of_the_time_that_messages_were_due() -> None:
    """Due from 0 to 10 s, each took 50 ms, but those of the second five seconds 800 ms."""
    counted = Counted(Stream("soak", 300.0, began=100.0))
    for n in range(1_000):
        due = counted.stream.due(0, n)
        counted.add([decision(0, n, 0)], [due + (0.05 if n < 500 else 0.8)])
    (first, fast), (second, slow) = counted.p99()
    assert (first, second) == (0, 5)
    assert fast == pytest.approx(50, rel=0.06)
    assert slow == pytest.approx(800, rel=0.06)


def test_what_grows_is_found_in_noise_and_what_does_not_is_not() -> None:
    rng = np.random.default_rng(1)
    seconds = np.arange(3600.0)
    noise = rng.normal(500, 5, 3600)
    noise[1000:1100] += 300
    flat = trend("memory MB", list(zip(seconds, noise, strict=True)), 0.05, 5)
    assert not flat.grown
    grows = trend("memory MB", list(zip(seconds, noise + seconds / 3600 * 40, strict=True)), 0.05, 5)
    assert grows.grown
    assert grows.growth == pytest.approx(40, rel=0.15)
    assert slope([(0, 1)]) == 0
    seen = {"lost": 1, "state_wrong": 0, "repeats": 2, "trends": [vars(grows) | {"grown": True}]}
    assert wrong(seen, "exactly_once") == ["lost: 1", "repeats: 2", "memory MB grows"]
    assert wrong(seen, "at_least_once") == ["lost: 1", "memory MB grows"]
    assert wrong(seen, "at_least_once", judged=False) == ["lost: 1"]


def test_of_a_store_counts_what_is_in_use(tmp_path: Path) -> None:
    file = tmp_path / "part-0.sqlite3"
    with closing(sqlite3.connect(file)) as store:
        store.execute("CREATE TABLE t (a BLOB)")
        store.execute("INSERT INTO t VALUES (zeroblob(2000000))")
        store.commit()
        most = used_mb(tmp_path)
        store.execute("DELETE FROM t")
        store.commit()
    assert most == pytest.approx(file.stat().st_size / 1e6)
    assert used_mb(tmp_path) < 0.02
    (tmp_path / "other").write_bytes(bytes(500_000))
    assert used_mb(tmp_path) == pytest.approx(0.5, abs=0.02)


def test_faults_are_sprinkled_over_the_run() -> None:
    plan, rests = faults(3600, 300)
    assert [what for _, what in plan[:4]] == [
        "SIGKILL of the job", "SIGTERM of the job", "broker SIGSTOP", "broker stopped and started",
    ]  # fmt: skip
    assert [at for at, _ in plan] == sorted(at for at, _ in plan)
    assert plan[-1][0] < 3600 - 30
    assert [start / 60 for start, _ in rests] == [23.5, 33.5, 43.5, 53.5, 58.5]
    assert all(length == 90 and not any(start - 30 <= at <= start + length for at, _ in plan) for start, length in rests)


def test_what_is_kept_is_judged_in_rests_and_what_is_held_under_load_is_told() -> None:
    """An hour at 30 messages a second; what is held under load grows, what is kept without it does not, or by 80 MB an hour."""
    plan, rests = faults(3600, 300)
    stream = Stream("soak", 30.0, began=50.0, rests=rests)
    happened = [{"what": what, "from_s": at, "to_s": at + 5} for at, what in plan]
    happened += [{"what": REST, "from_s": start, "to_s": start + length} for start, length in rests]
    for leak, grown in ((0.0, []), (80.0, ["memory MB"])):
        found, vitals = Counted(stream), Vitals()
        for second in range(3600):
            rest = any(start <= second < start + length for start, length in rests)
            memory = 500 + leak * second / 3600 + (0 if rest else second / 30)
            vitals.seen.append((50.0 + second, 1, memory, 40, 20, 60.0))
            found.took[second // 5] = np.eye(1, 400, 100, dtype=np.int64)[0]
        seen = told(stream, found, vitals, happened, 1, 3600)
        assert [each["name"] for each in seen["trends"] if each["grown"]] == grown
        assert [each["name"] for each in seen["beside"] if each["grown"]] == ["memory MB under load"]
        assert "memory MB under load" not in str(wrong(seen, "exactly_once"))


def test_a_load_that_rests_is_due_when_it_is_sent() -> None:
    stream = Stream("s", 300.0, began=7.0, rests=[(10.0, 5.0), (20.0, 2.0)])
    assert [stream.due_by(7.0 + at) for at in (0, 10, 12, 15, 16, 20, 21.5, 23)] == [
        0,
        3000,
        3000,
        3000,
        3300,
        4500,
        4500,
        4800,
    ]
    for k in (0, 1, 2998, 3000, 3001, 4499, 4500, 9000):
        due = stream.due(k % 3, k // 3)
        assert stream.due_by(due - 0.001) <= k <= stream.due_by(due + 0.001)
        assert not any(start <= due - 7.0 - 1e-9 < start + length - 0.01 for start, length in stream.rests if k % 3000 > 1)


def test_it_is_drawn(tmp_path: Path) -> None:
    over_time = {"memory MB": [[0.0, 500.0], [60.0, 510.0]], "p99 ms": [[0.0, 40.0], [60.0, 50.0]]}
    drawn(over_time, [{"what": "broker SIGSTOP", "from_s": 20.0, "to_s": 25.0}]).savefig(tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 5_000


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_minutes_with_faults_lose_and_double_nothing(tmp_path: Path, apache_kafka: Broker) -> None:
    assert main(["--minutes", "2", "--rate", "2000", "--every", "40", "--json", str(tmp_path / "soak.json")]) == 0
    seen = json.loads((tmp_path / "soak.json").read_text())
    assert (seen["lost"], seen["repeats"], seen["state_wrong"]) == (0, 0, 0)
    assert seen["decided"] == seen["messages"] > 180_000
    assert len(seen["faults"]) >= 3


def test_what_becomes_of_a_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = SPAWN.Pipe()
    for said in ("", "3 messages are left"):
        theirs.send(said)
        assert _ended(ours) == said
        assert theirs.recv() is None, "it is asked to end"
    monkeypatch.setattr("bench.proving.stream.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("bench.proving.stream.GRACE_SECONDS", 0.01)
    assert _ended(ours) == "it does not end"
    theirs.send("the queue of the load is full")
    theirs.close()
    assert _ended(ours) == "the queue of the load is full"
    assert _ended(ours) == "its process died"
