"""The latency harness: its schedules, its count of answers, its histograms, and what it says of a generator that is late."""

import threading
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubling import Doubling, answer
from hdrh.histogram import HdrHistogram

from bench.check import Answers, check, encoded, figures, histogram, lag
from bench.collect import Collected
from bench.live_page import Turn, told_of
from bench.load import Payloads, linger_ms
from bench.options import common, in_turn, systems
from bench.run import Bounds, generator_fault
from bench.schedule import schedule
from bench.systems import Reader, System, fill, headrace
from bench.throughput import rates
from bench.workloads import Checked, Prepared, load, write_payloads
from ops.server import made

SAID = {"failed": 0, "sent": 10, "late_p99_ms": 1.0, "late_max_ms": 9.0, "intended_per_s": 100.0, "rate": 99.9, "reason": ""}


def test_a_constant_schedule_is_evenly_spaced() -> None:
    times = schedule("constant", 8_000, 2.5)
    assert len(times) == 20_000
    assert set(np.diff(times)) == {125_000}


def test_a_poisson_schedule_has_independent_gaps_of_the_mean_and_is_the_same_each_time() -> None:
    times = schedule("poisson", 5_000, 20, seed=3)
    gaps = np.diff(times) / 1e9
    assert len(times) == pytest.approx(100_000, rel=0.01)
    assert gaps.mean() == pytest.approx(1 / 5_000, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02
    assert (times == schedule("poisson", 5_000, 20, seed=3)).all()
    assert times[-1] < 20e9


def test_bursts_have_the_mean_rate_and_three_times_as_much_in_every_other_half_second() -> None:
    times = schedule("bursts", 1_000, 10)
    halves = np.bincount(times // 500_000_000)
    assert len(times) == 10_000
    assert halves[0::2] == pytest.approx(750, abs=2)
    assert halves[1::2] == pytest.approx(250, abs=2)
    assert (np.diff(times) >= 0).all()


def test_a_recorded_trace_keeps_its_shape_at_another_rate_and_repeats(tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("7.0\n7.1\n7.2\n8.0\n")
    assert schedule(str(trace), 0, 1.1).tolist() == pytest.approx([0, 0.1e9, 0.2e9, 1e9], abs=2)
    fast = schedule(str(trace), 40, 2)
    assert len(fast) == 80
    assert np.diff(fast)[:3] == pytest.approx([7.5e6, 7.5e6, 60e6], rel=0.01)
    assert np.diff(fast[::4]) == pytest.approx(0.1e9, rel=0.01)


@pytest.mark.parametrize("kind", ["constant", "poisson", "bursts", "no/such/file"])
def test_a_schedule_without_a_rate_or_a_file_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"schedule .*: expected"):
        schedule(kind, 0, 1)


def test_the_producer_waits_longer_the_faster_it_goes() -> None:
    assert [linger_ms(rate) for rate in (1_000, 20_000, 200_000)] == [1, 1, 5]


def test_with_partitions_the_producer_waits_longer_unless_each_message_is_a_request_anyway() -> None:
    assert [linger_ms(rate, 8) for rate in (1_000, 2_500, 20_000, 200_000)] == [1, 3, 8, 10]


def test_prepared_messages_come_out_as_they_went_in_over_the_edges_of_chunks(tmp_path: Path) -> None:
    n = 250_000
    keys = [None if k % 7 == 0 else b"k%d" % k for k in range(n)]
    values = [b"x" * (k % 5) + b"%d" % k for k in range(n)]
    write_payloads(tmp_path, keys, values, np.arange(n))
    payloads = Payloads(tmp_path / "payloads.arrow")
    assert payloads.count == n
    for start, end in ((0, 3), (99_990, 200_010), (n - 1, n)):
        entries = payloads.entries(start, end)
        assert [entry["key"] for entry in entries] == keys[start:end]
        assert [entry["value"] for entry in entries] == values[start:end]
    assert Payloads(tmp_path / "payloads.arrow", 100_001).count == 200_000


def checked(folder: Path, values: Sequence[bytes], *, sent: int = 600, unfinished: bool = False) -> Answers:
    workload = Doubling(folder)
    prepared = workload.prepare(900, lambda doing, share: None)
    at = np.arange(len(values), dtype=np.int64)
    blocks = [Collected(values[k : k + 7], at[k : k + 7] + 1, at[k : k + 7] + 2) for k in range(0, len(values), 7)]
    return check(workload, prepared, sent, blocks, ordered=True, unfinished=unfinished)


def said(mode: str, messages: int = 600) -> list[bytes]:
    return [value for k in range(messages) if k % 3 != 2 for value in answer(mode, k)]


def test_right_answers_are_all_there_each_with_its_time(tmp_path: Path) -> None:
    found = checked(tmp_path, said("right"))
    assert (found.expected, found.answers, found.lost, found.doubled, found.wrong, found.fault) == (400, 400, 0, 0, 0, "")
    assert found.row.tolist() == [k for k in range(600) if k % 3 != 2]
    assert found.held.tolist() == [*range(1, 401)]
    assert found.appended.tolist() == [*range(2, 402)]


@pytest.mark.parametrize(
    ("mode", "fault"),
    [
        ("loses", "1 lost of 400 answers"),
        ("doubles", "1 doubled of 400 answers"),
        ("wrong", "1 wrong of 400 answers: not twice as much"),
    ],
)
def test_one_answer_lost_doubled_or_wrong_is_found(tmp_path: Path, mode: str, fault: str) -> None:
    assert checked(tmp_path, said(mode)).fault == fault


class PassedOn(Doubling):
    """Its answers are the messages themselves."""

    def check(self, prepared: Prepared, values: Sequence[bytes], *, ordered: bool) -> Checked:
        found = super().check(prepared, values, ordered=ordered)
        return replace(found, passed_on=np.ones(len(values), np.bool_))


def test_a_message_passed_on_is_an_answer_from_a_relay_and_from_nobody_else(tmp_path: Path) -> None:
    workload = PassedOn(tmp_path)
    prepared = workload.prepare(900, lambda doing, share: None)
    times = np.arange(400, dtype=np.int64)
    for passes_on, wrong in ((True, 0), (False, 400)):
        found = check(workload, prepared, 600, [Collected(said("right"), times, times)], ordered=True, passes_on=passes_on)
        assert found.wrong == wrong
        assert ("got the message itself" in found.fault) == (not passes_on)


@pytest.mark.parametrize("id", [2, 601, 5_000, -1])
def test_an_answer_that_is_not_due_is_wrong(tmp_path: Path, id: int) -> None:
    found = checked(tmp_path, [*said("right"), b'{"id":%d,"twice":%d}' % (id, 2 * id)])
    assert (found.wrong, found.lost, found.doubled) == (1, 0, 0)
    assert "no answer that is due" in found.fault


def test_a_second_answer_does_not_replace_the_time_of_the_first(tmp_path: Path) -> None:
    found = checked(tmp_path, [*said("right"), answer("right", 0)[0]])
    assert found.doubled == 1
    assert found.held[0] == 1


def test_of_a_system_that_was_stopped_the_answered_part_is_checked(tmp_path: Path) -> None:
    half = said("right", 450)
    assert checked(tmp_path, half).lost == 100
    found = checked(tmp_path, half, unfinished=True)
    assert (found.expected, found.fault) == (300, "")
    assert checked(tmp_path, said("loses", 450), unfinished=True).fault == "1 lost of 300 answers"


def test_the_histograms_figures_are_numpys_quantiles_to_three_digits() -> None:
    ns = np.random.default_rng(0).lognormal(15, 1.2, 200_001).astype(np.int64)
    found = figures(histogram(ns))
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
        assert found[name] == pytest.approx(np.quantile(ns, share) / 1e6, rel=2e-3, abs=2e-3)
    assert found["mean"] == pytest.approx(ns.mean() / 1e6, rel=2e-3)
    assert found["count"] == 200_001


def test_a_histogram_survives_being_written_down() -> None:
    made = histogram(np.array([1_000_000, 2_000_000, 2_000_000, 900_000_000]))
    again = HdrHistogram.decode(encoded(made))
    assert figures(again) == figures(made)


def test_an_answer_before_its_question_is_refused() -> None:
    with pytest.raises(ValueError, match="an answer before its question"):
        histogram(np.array([5_000_000, -3_000_000]))


def test_lag_is_what_was_due_and_not_there_and_whether_it_grows() -> None:
    due = (np.arange(10_000) * 1_000_000).astype(np.int64)
    kept = lag(due, due + 5_000_000, 0, 10_000_000_000)
    assert kept["max"] <= 6
    assert abs(kept["growth_per_s"]) < 1
    grown = lag(due, due * 2, 0, 10_000_000_000)
    assert grown["end"] == pytest.approx(5_000, rel=0.01)
    assert grown["growth_per_s"] == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"late_p99_ms": 5.1}, "behind its schedule: expected p99 of lateness of at most 5 ms, got 5.1"),
        ({"late_max_ms": 201.0}, "behind its schedule: expected no message later than 200 ms, got 201"),
        ({"rate": 98.0}, "behind its schedule: expected 100 messages/s, got 98"),
        ({"failed": 1, "reason": "queue full"}, "1 messages not delivered: queue full"),
        ({"sent": 9}, "expected 10 messages sent, got 9"),
    ],
)
def test_a_generator_behind_its_schedule_is_named(change: dict[str, float], why: str) -> None:
    found = generator_fault(SAID | change, 10, Bounds())
    assert found.endswith(why)
    assert bool(found) == bool(why)


def test_the_rate_is_that_of_the_last_part_and_of_what_came_before_the_stop() -> None:
    slow = np.arange(600) * 100
    fast = slow[-1] + np.arange(1, 401) * 10
    late = fast[-1] + np.array([60_000])
    found = rates(np.concatenate([slow, fast, late]) + 1, int(fast[-1]) + 1, [], 3.0)
    assert found["messages_per_s"] == pytest.approx(300, rel=0.05)
    assert found["seconds"] == pytest.approx(4, rel=0.05)
    with pytest.raises(ValueError, match="too few"):
        rates(np.full(10, 7), 100, [], 1.0)


def test_a_command_line_keeps_braces_that_are_no_placeholder() -> None:
    words = fill("""peer {brokers} '{"kind":"scheduled"}' {home}/x""", {"brokers": "a:1", "home": "/h", "input": "i"})
    assert words == ["peer", "a:1", '{"kind":"scheduled"}', "/h/x"]


def test_each_further_number_of_workers_is_headrace_once_more(tmp_path: Path) -> None:
    parser = ArgumentParser()
    common(parser)
    made = systems(parser.parse_args(["--workers", "1", "2", "--peer", "relay"]))
    assert [system.name for system in made] == ["headrace", "headrace-2", "relay"]
    values = {"home": str(tmp_path), "input": "in", "output": "out", "brokers": "nowhere", "workers": "1", "linger": "5"}
    _, one, pages = headrace(made[0], load("vector"), values)
    _, two, more = headrace(made[1], load("vector"), values)
    assert (one["HEADRACE_WORKERS"], two["HEADRACE_WORKERS"]) == ("1", "2")
    assert (len(pages), len(more)) == (1, 2)


def test_with_a_page_headrace_runs_once_more_and_somebody_looks_at_it(tmp_path: Path) -> None:
    parser = ArgumentParser()
    common(parser)
    plain, paged = systems(parser.parse_args(["--page"]))
    assert [plain.name, paged.name] == ["headrace", "headrace-page"]
    values = {"home": str(tmp_path), "input": "in", "output": "out", "brokers": "nowhere", "workers": "2", "linger": "5"}
    ports = [headrace(system, load("vector"), values)[1]["HEADRACE_PAGE_PORT"] for system in (plain, paged)]
    assert ports[0] == "0"
    assert int(ports[1]) > 0

    def events(environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/event-stream")])
        return [b"retry: 2000\n\n", b"data: {}\n\n"]

    with closing(made("127.0.0.1", 0, events)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        reader, left = Reader(f"http://127.0.0.1:{server.server_port}/events"), iter([True, True, False])
        reader.read(lambda: next(left))
    assert reader.looked == 2


def test_the_page_costs_what_it_and_the_answers_to_it_take_of_what_the_job_takes() -> None:
    turns = [Turn(50_000.0, 0.011, 1.5, 0.5, [0.002, 0.008, 0.9]), Turn(40_000.0, 0.02, 1.0, 1.0, [0.01])]
    assert [one.cost for one in turns] == [pytest.approx(0.01), pytest.approx(0.03)]
    by_what = {one["what"]: one for one in told_of(turns)}
    assert by_what["less throughput, at most"]["median"] == pytest.approx(2.0)
    assert by_what["less throughput, at most"]["goal"] == 1.0
    assert by_what["its process"]["max"] == 2.0


def test_no_system_is_always_first() -> None:
    systems = [System(name) for name in "abc"]
    assert ["".join(each.name for each in in_turn(systems, turn)) for turn in range(4)] == ["abc", "bca", "cab", "abc"]
