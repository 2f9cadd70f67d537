"""Drift in the stream: counting delays nothing, loses nothing over a stop, and days are judged when they are over."""

import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import numpy as np
import pyarrow as pa
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main

from models.reference import DAY_US, Reference, build_reference
from streams.drift import REPORT, DriftCounter, DriftJudge, Partial, Sample
from streams.wire import arrays_from_ipc

NAMES = ("carrier", "distance", "delay")
START = int(np.datetime64("2013-10-01").astype(np.int64))


def rows(days: int, per_day: int, seed: int, start: int = START) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """times [n] in order, matrix [n, 3], scores [n]."""
    random = np.random.default_rng(seed)
    n = days * per_day
    times = np.sort(start * DAY_US + random.integers(0, days * DAY_US, n))
    day = times // DAY_US - start
    delay = random.gamma(1, 10, days)[day] + random.exponential(20, n)
    matrix = np.stack([random.integers(0, 9, n), random.gamma(2, 500, n), delay], axis=1).astype(np.float32)
    return times, matrix, (1 / (1 + np.exp(-delay / 20))).astype(np.float32)


@pytest.fixture(scope="module")
def reference() -> Reference:
    times, matrix, scores = rows(120, 400, seed=1, start=START - 130)
    return build_reference(NAMES, (True, False, False), matrix, scores, times)


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(1)
    yield executor
    executor.shutdown(cancel_futures=True)


class Stepped(Executor):
    """Runs what it was given when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def step(self) -> None:
        future, call = self.waiting.pop(0)
        future.set_result(call())


def items(days: int, per_day: int, seed: int, size: int = 97, reference: str = "it") -> list[Sample]:
    columns = rows(days, per_day, seed)
    return [Sample(*(column[k : k + size] for column in columns), reference=reference) for k in range(0, days * per_day, size)]


def total(partials: list[Partial], reference: Reference) -> dict[int, tuple[int, list[int]]]:
    added: dict[int, tuple[int, np.ndarray]] = {}
    for partial in partials:
        for day, count, data in partial.days:
            before = added.get(day, (0, np.zeros(reference.total.size, np.int64)))
            added[day] = (before[0] + count, before[1] + np.frombuffer(data, np.int64))
    return {day: (count, counts.tolist()) for day, (count, counts) in sorted(added.items())}


def expected_total(days: int, per_day: int, seed: int, reference: Reference) -> dict[int, tuple[int, list[int]]]:
    times, matrix, scores = rows(days, per_day, seed)
    day = times // DAY_US
    return {
        int(d): (int((day == d).sum()), reference.count(matrix[day == d], scores[day == d]).ravel().tolist())
        for d in np.unique(day)
    }


def counter(reference: Reference, executor: Executor, resume: Any = None, **options: Any) -> DriftCounter:
    options = {"count": lambda name, *rows: reference.count(*rows), "submit_rows": 1} | options
    return DriftCounter("000.1", resume, executor=executor, **options)


def judge(first: Reference, resume: Any = None, **options: Any) -> DriftJudge:
    return DriftJudge(resume, pipeline="flights", **{"reference": lambda: first, "rate": 0.02} | options)


def held(state: dict[str, Any]) -> int:
    return sum(len(arrays_from_ipc(data)[0]) for _, data in state["rows"])


def test_many_samples_that_wait_are_one_piece_of_a_snapshot(reference: Reference, thread: Executor) -> None:
    logic = counter(reference, thread, submit_rows=10_000)
    given = items(1, 2000, seed=3)
    logic.on_batch(given)
    state = logic.snapshot()
    ((name, data),) = state["rows"]
    times, matrix, scores = arrays_from_ipc(data)
    assert name == "it"
    assert np.array_equal(times, np.concatenate([item.times for item in given]))
    assert np.array_equal(matrix.T, np.concatenate([item.matrix for item in given]))
    resumed = counter(reference, thread, resume=state)
    assert total(list(resumed.on_eof()[0]), reference) == expected_total(1, 2000, 3, reference)
    assert len(scores) == 2000


def test_counts_are_those_of_all_rows_however_they_come(reference: Reference, thread: Executor) -> None:
    logic = counter(reference, thread)
    partials = []
    for item in items(5, 211, seed=2):
        partials += logic.on_batch([item])[0]
    partials += logic.on_eof()[0]
    assert total(partials, reference) == expected_total(5, 211, 2, reference)
    assert partials[-1].seen_until == rows(5, 211, 2)[0][-1]
    assert logic.snapshot()["rows"] == []
    assert logic.notify_at() is None


def test_a_slow_count_delays_neither_batches_nor_snapshots(reference: Reference, thread: Executor) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(name: str, matrix: np.ndarray, scores: np.ndarray) -> np.ndarray:
        begun.set()
        assert go_on.wait(20)
        return reference.count(matrix, scores)

    logic = counter(reference, thread, count=slow)
    took, partials = [], []
    for item in items(1, 2000, seed=3):
        started = time.perf_counter()
        partials += logic.on_batch([item])[0]
        took.append(time.perf_counter() - started)
    assert begun.wait(20)
    state = logic.snapshot()
    assert partials == []
    assert held(state) == 2000
    assert np.median(took) < 0.005
    assert logic.notify_at() > datetime.now(UTC)
    go_on.set()
    partials += logic.on_eof()[0]
    assert total(partials, reference) == expected_total(1, 2000, 3, reference)


def test_a_kernel_that_sleeps_half_a_second_is_not_waited_for(reference: Reference, thread: Executor) -> None:
    def slow(name: str, matrix: np.ndarray, scores: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return reference.count(matrix, scores)

    logic = counter(reference, thread, count=slow)
    first, *others = items(1, 500, seed=3)
    logic.on_batch([first])
    started = time.perf_counter()
    for item in others:
        logic.on_batch([item])
        logic.snapshot()
    assert (time.perf_counter() - started) / len(others) < 0.05


def test_a_full_backlog_waits_and_loses_nothing(reference: Reference, thread: Executor) -> None:
    def slow(name: str, matrix: np.ndarray, scores: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return reference.count(matrix, scores)

    logic = counter(reference, thread, count=slow, max_rows=300)
    partials = []
    for item in items(1, 2000, seed=4):
        partials += logic.on_batch([item])[0]
        assert held(logic.snapshot()) <= 300
    partials += logic.on_eof()[0]
    assert total(partials, reference) == expected_total(1, 2000, 4, reference)


def test_what_the_count_raises_stops_the_job(reference: Reference, thread: Executor) -> None:
    def broken(name: str, matrix: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ValueError("no such column")

    logic = counter(reference, thread, count=broken)
    with pytest.raises(ValueError, match="no such column"):
        logic.on_batch(items(1, 50, seed=4)), logic.on_eof()


@pytest.mark.parametrize("stop_after", [0, 1, 4, 9])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_stopped_anywhere_and_resumed_every_row_is_counted_once(reference: Reference, stop_after: int, steps: int) -> None:
    """What was emitted before the snapshot and what is emitted after it make the whole, whatever was still being counted."""
    all_items = items(3, 350, seed=5)
    executor = Stepped()
    logic = counter(reference, executor)
    partials = []
    for item in all_items[:stop_after]:
        partials += logic.on_batch([item])[0]
    for _ in range(min(steps, len(executor.waiting))):
        executor.step()
    partials += logic.on_notify()[0]
    state = pickle.loads(pickle.dumps(logic.snapshot()))
    while executor.waiting:
        executor.step()
    with ThreadPoolExecutor(1) as thread:
        resumed = counter(reference, thread, resume=state)
        for item in all_items[stop_after:]:
            partials += resumed.on_batch([item])[0]
        partials += resumed.on_eof()[0]
    assert total(partials, reference) == expected_total(3, 350, 5, reference)
    assert partials[-1].seen_until == rows(3, 350, 5)[0][-1]


def partial(reference: Reference, partition: str, day: int, count: int = 400, hour: float = 23.9) -> Partial:
    """`count` rows of one day and partition, seen until `hour` of it."""
    _, matrix, scores = rows(1, max(count, 1), seed=day % 1000)
    counts = reference.count(matrix[:count], scores[:count])
    seen_until = int((START + day) * DAY_US + hour * DAY_US / 24)
    return Partial(partition, reference.identity, seen_until, ((START + day, count, counts.tobytes()),))


def days_reported(reports: list[pa.RecordBatch]) -> list[int]:
    return [report["window_start"][0].value // DAY_US - START for report in reports]


def test_a_day_is_judged_when_all_partitions_have_passed_its_end(reference: Reference) -> None:
    logic = judge(reference)
    reports = list(logic.on_batch([partial(reference, "a", 0), partial(reference, "b", 0)])[0])
    assert reports == []
    assert logic.on_batch([partial(reference, "a", 1)])[0] == []
    (report,) = logic.on_batch([partial(reference, "b", 1, hour=0.1)])[0]
    assert report.schema == REPORT
    assert report.num_rows == 4 * 3
    assert days_reported([report]) == [0]
    assert set(report["rows"].to_pylist()) == {800}
    assert report["feature"].to_pylist()[::3] == [*NAMES, "score"]
    assert report["window_end"][0].as_py() == datetime(2013, 10, 2, tzinfo=UTC)
    assert logic.on_eof()[0] == []
    assert list(logic.snapshot()["open"]) == [START + 1]


def test_rows_out_of_order_do_not_turn_a_partitions_clock_back(reference: Reference) -> None:
    logic = judge(reference, partitions=("a", "b"))
    for item in (("a", 1, 12.0), ("b", 0, 23.0), ("a", 0, 5.0)):
        assert logic.on_batch([partial(reference, item[0], item[1], hour=item[2])])[0] == []
    assert days_reported(list(logic.on_batch([partial(reference, "b", 1, hour=1.0)])[0])) == [0]


def test_a_partition_yet_to_be_seen_is_waited_for_and_a_silent_one_not_for_ever(reference: Reference) -> None:
    logic = judge(reference, partitions=("a", "b"), patience_days=2)
    reports: list[pa.RecordBatch] = []
    closed_after = {}
    for day in range(6):
        reports += logic.on_batch([partial(reference, "a", day)])[0]
        closed_after[day] = days_reported(reports)
    assert closed_after[1] == []
    assert closed_after[2] == [0, 1]
    assert closed_after[5] == [0, 1, 2, 3, 4]


def test_rows_of_a_day_that_is_over_are_counted_as_late_and_left_out(reference: Reference) -> None:
    late: list[int] = []
    logic = judge(reference, on_late=late.append)
    for day in (0, 1):
        logic.on_batch([partial(reference, "a", day)])
    assert logic.on_batch([partial(reference, "b", 0, count=7)])[0] == []
    assert late == [7]
    (report,) = logic.on_batch([partial(reference, "a", 2), partial(reference, "b", 2)])[0]
    assert (days_reported([report]), report["rows"][0].as_py()) == ([1], 400)


def test_days_of_few_rows_and_the_days_part_that_a_job_begins_in_are_told_but_not_judged(reference: Reference) -> None:
    logic = judge(reference)
    reports: list[pa.RecordBatch] = []
    for day, count in ((0, 150), (1, 150), (2, 40), (3, 400)):
        reports += logic.on_batch([partial(reference, "a", day, count=count)])[0]
    assert [report["statistic"].to_pylist()[0] for report in reports] == ["rows", "psi", "rows"]
    assert [report["threshold"][0].as_py() for report in (reports[0], reports[2])] == [200.0, 100.0]
    assert [report["value"][0].as_py() for report in (reports[0], reports[2])] == [150.0, 40.0]
    assert reports[2]["feature"].to_pylist() == [None]
    assert reports[2]["alarmed"].to_pylist() == [False]


def test_a_bounded_run_may_judge_the_last_day_at_its_end(reference: Reference) -> None:
    logic = judge(reference, close_on_eof=True)
    logic.on_batch([partial(reference, "a", 0)])
    assert days_reported(list(logic.on_eof()[0])) == [0]
    assert logic.on_eof()[0] == []


def test_a_judge_stopped_and_resumed_reports_the_same(reference: Reference) -> None:
    feed = [partial(reference, "ab"[k % 2], k // 2, hour=12.0 + k % 2) for k in range(12)]
    whole = judge(reference)
    expected = [report for item in feed for report in whole.on_batch([item])[0]]
    assert len(expected) == 5
    for stop in range(len(feed)):
        logic, reports = judge(reference), []
        for k, item in enumerate(feed):
            if k == stop:
                logic = judge(reference, resume=pickle.loads(pickle.dumps(logic.snapshot())))
            reports += logic.on_batch([item])[0]
        assert reports == expected


def test_counts_of_another_reference_are_never_mixed_in(reference: Reference) -> None:
    times, matrix, scores = rows(60, 400, seed=8, start=START - 70)
    other = build_reference(NAMES, (True, False, False), matrix * 2, scores, times)
    late: list[int] = []
    logic = judge(reference)
    logic.on_batch([partial(reference, "a", 0)])
    resumed = judge(other, resume=logic.snapshot(), on_late=late.append)
    assert late == [400]
    resumed.on_batch([partial(reference, "a", 0, count=9)])
    assert late == [400, 9]
    with pytest.raises(ValueError, match="expected state of version 2, got 4"):
        judge(reference, resume=logic.snapshot() | {"version": 4})


def run_flow(inputs: list[Any], reference: Reference, executor: Executor, recovery: Any) -> list[pa.RecordBatch]:
    out: list[tuple[str, pa.RecordBatch]] = []
    flow = Dataflow("drift")
    stream = op.input("in", flow, TestingSource(inputs))
    counted = op.stateful_batch("count", stream, lambda resume: counter(reference, executor, resume))
    whole = op.map("whole", counted, lambda keyed: ("drift", keyed[1]))
    judged = op.stateful_batch("judge", whole, lambda resume: judge(reference, resume))
    op.output("out", judged, TestingSink(out))
    run_main(flow, epoch_interval=None if recovery is None else timedelta(0), recovery_config=recovery)
    return [report for _, report in out]


def test_what_two_models_were_given_is_counted_apart_and_resumed_apart(reference: Reference, thread: Executor) -> None:
    """The second has another number of inputs; what it is measured from is not known on this worker for the third."""
    first, second, third = (sample._replace(reference=name) for sample, name in zip(items(1, 300, seed=9), "abc", strict=False))
    second = second._replace(matrix=second.matrix[:, :2])
    late: list[int] = []

    def count(name: str, matrix: np.ndarray, scores: np.ndarray) -> np.ndarray | None:
        return None if name == "c" else np.array([[matrix.shape[1], len(scores)]])

    logic = counter(reference, thread, count=count, on_late=late.append, submit_rows=10_000)
    logic.on_batch([first, second, first, third])
    state = logic.snapshot()
    assert [name for name, _ in state["rows"]] == ["a", "b", "a", "c"]
    resumed = counter(reference, thread, resume=state, count=count, on_late=late.append, submit_rows=10_000)
    resumed.on_batch([second])
    found = {one.reference: [np.frombuffer(data, np.int64).tolist() for _, _, data in one.days] for one in resumed.on_eof()[0]}
    n, m = len(first.times), len(second.times)
    assert found == {"a": [[6, 2 * n]], "b": [[4, 2 * m]]}
    assert late == [len(third.times)]


def test_the_judge_goes_over_to_the_reference_of_a_new_model_and_says_what_it_drops(reference: Reference) -> None:
    times, matrix, scores = rows(60, 400, seed=8, start=START - 70)
    other = build_reference(NAMES, (True, False, False), matrix * 2, scores, times)
    in_use, late = [reference], list[int]()
    logic = judge(reference, reference=lambda: in_use[0], on_late=late.append)
    logic.on_batch([partial(reference, "a", 0)])
    logic.on_batch([partial(other, "a", 0)])
    assert late == [400], "not in use here yet"
    in_use[0] = other
    logic.on_batch([partial(other, "a", 0)])
    assert late == [400, 400], "the day begins anew"
    logic.on_batch([partial(reference, "a", 0, count=9)])
    assert late == [400, 400, 9], "of the model before"
    assert logic.snapshot()["reference"] == other.identity
    assert [rows for rows, _ in logic.snapshot()["open"].values()] == [400]


def test_a_flow_aborted_and_resumed_reports_each_day_with_every_row(
    reference: Reference, thread: Executor, tmp_path: Any
) -> None:
    keyed: list[Any] = [("000.1", item) for item in items(6, 300, seed=6, reference=reference.identity)]
    expected = run_flow(list(keyed), reference, thread, None)
    assert days_reported(expected) == [0, 1, 2, 3, 4]
    init_db_dir(tmp_path, 1)
    recovery = RecoveryConfig(str(tmp_path))
    inputs = [*keyed[:5], TestingSource.ABORT(), *keyed[5:11], TestingSource.EOF(), *keyed[11:]]
    reports: dict[int, pa.RecordBatch] = {}
    for _ in range(4):
        for report in run_flow(inputs, reference, thread, recovery):
            (day,) = days_reported([report])
            assert reports.setdefault(day, report) == report
    assert [reports[day] for day in sorted(reports)] == expected
