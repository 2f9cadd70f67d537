"""Drift: what the model was given and what it said, counted beside the stream and judged day by day.

    Sample: the rows of a decided batch, for its source partition
    DriftCounter: samples → Partials, histograms per day, made by a thread of its own
    DriftJudge: Partials → reports, once every partition has passed a day's end

Nothing here stands between an event and its decision: the counter hands rows to its thread and takes results when they
are there. Days are those of event time, UTC.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from bytewax.operators import StatefulBatchLogic

from models.reference import DAY_US, Reference, judge
from streams.wire import arrays_from_ipc, arrays_to_ipc

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Count = Callable[[str, F32, F32], I64 | None]

VERSION, JUDGE_VERSION = 3, 2
NEVER = -(2**62)
thresholds = lru_cache(4)(Reference.thresholds)
SUBMIT_EVERY = timedelta(seconds=0.25)
REPORT = pa.schema(
    [
        ("pipeline", pa.string()),
        ("window_start", pa.timestamp("us", "UTC")),
        ("window_end", pa.timestamp("us", "UTC")),
        ("feature", pa.string()),
        ("statistic", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("alarmed", pa.bool_()),
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Partial:
    """Counts of one partition: (day, rows, counts i64 [F+1, B+1] as bytes) for each day concerned.

    reference: the identity of the reference whose edges were used. seen_until: the latest event time among them, µs.
    """

    partition: str
    reference: str
    seen_until: int
    days: tuple[tuple[int, int, bytes], ...]


class Sample(NamedTuple):
    """What the model was given and said: times i64 [n] (µs), matrix f32 [n, F], scores f32 [n]. reference: the identity of what
    they are measured from."""

    times: I64
    matrix: F32
    scores: F32
    reference: str


@dataclass
class _Counting:
    reference: str
    samples: list[Sample]
    rows: int
    result: "Future[tuple[int, dict[int, tuple[int, I64]]] | None]"


class DriftCounter(StatefulBatchLogic[Sample, Partial, dict[str, Any]]):
    """Counts one source partition's rows on `executor`, a single thread, so that results come in order.

    count: a reference's identity, matrix f32 [n, F] and scores f32 [n] to counts i64 [F+1, B+1] (`Reference.count`), None
    where that reference is not known here, run on the thread every quarter of a second, or as soon as there are `submit_rows`;
    what it raises stops the job. on_late: told of rows that were not counted. max_rows: how many rows may wait before on_batch
    waits for them.
    A snapshot never waits: it holds the rows not yet counted, which are counted again on resume.
    """

    def __init__(
        self,
        partition: str,
        resume: dict[str, Any] | None,
        *,
        count: Count,
        executor: Executor,
        on_late: Callable[[int], None] = lambda rows: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_rows: int = 200_000,
        submit_rows: int = 4096,
    ) -> None:
        self._partition = partition
        self._count = count
        self._on_late = on_late
        self._executor = executor
        self._clock = clock
        self._max_rows = max_rows
        self._submit_rows = submit_rows
        self._counting: deque[_Counting] = deque()
        self._new: list[Sample] = []
        self._new_rows = 0
        self._due: datetime | None = None
        if resume is not None:
            self._take([_sample(reference, rows) for reference, rows in _checked(resume)["rows"]])

    def on_batch(self, values: list[Sample]) -> tuple[Iterable[Partial], bool]:
        self._take(values)
        if self._new_rows < self._submit_rows:
            return [], self.RETAIN
        self._submit()
        return self._collect(at_most=self._max_rows), self.RETAIN

    def on_notify(self) -> tuple[Iterable[Partial], bool]:
        self._submit()
        counted = self._collect(at_most=self._max_rows)
        self._due = self._clock() + SUBMIT_EVERY if self._counting else None
        return counted, self.RETAIN

    def on_eof(self) -> tuple[Iterable[Partial], bool]:
        self._submit()
        self._due = None
        return self._collect(at_most=0), self.RETAIN

    def notify_at(self) -> datetime | None:
        return self._due

    def snapshot(self) -> dict[str, Any]:
        waiting = [*(sample for counting in self._counting for sample in counting.samples), *self._new]
        rows = [
            (reference, arrays_to_ipc([joined.times, joined.matrix.T, joined.scores]))
            for reference, joined in ((reference, _joined(samples)) for reference, samples in _by_reference(waiting))
        ]
        return {"version": VERSION, "rows": rows}

    def _take(self, samples: list[Sample]) -> None:
        self._new += samples
        self._new_rows += sum(len(sample.times) for sample in samples)
        if self._new and self._due is None:
            self._due = self._clock() + SUBMIT_EVERY

    def _submit(self) -> None:
        for reference, samples in _by_reference(self._new):
            rows = sum(len(sample.times) for sample in samples)
            self._counting.append(_Counting(reference, samples, rows, self._executor.submit(_count_days, samples, self._count)))
        self._new, self._new_rows = [], 0

    def _collect(self, at_most: int) -> list[Partial]:
        waiting = sum(counting.rows for counting in self._counting)
        merged: dict[str, dict[int, tuple[int, I64]]] = {}
        seen_until = NEVER
        while self._counting and (waiting > at_most or self._counting[0].result.done()):
            counting = self._counting.popleft()
            waiting -= counting.rows
            counted = counting.result.result()
            if counted is None:
                self._on_late(counting.rows)
                continue
            latest, days = counted
            seen_until = max(seen_until, latest)
            of_reference = merged.setdefault(counting.reference, {})
            for day, (rows, counts) in days.items():
                before = of_reference.get(day)
                of_reference[day] = (rows + before[0], counts + before[1]) if before else (rows, counts)
        return [
            Partial(
                self._partition,
                reference,
                seen_until,
                tuple((day, rows, counts.tobytes()) for day, (rows, counts) in sorted(days.items())),
            )
            for reference, days in merged.items()
            if days
        ]


def _by_reference(samples: Sequence[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    """Those of one reference that stand together; it changes when the model does."""
    for reference, some in groupby(samples, lambda sample: sample.reference):
        yield reference, list(some)


def _joined(samples: Sequence[Sample]) -> Sample:
    if len(samples) == 1:
        return samples[0]
    times, matrix, scores, _ = zip(*samples, strict=True)
    return Sample(np.concatenate(times), np.concatenate(matrix), np.concatenate(scores), samples[0].reference)


def _sample(reference: str, data: bytes) -> Sample:
    times, matrix, scores = arrays_from_ipc(data)
    return Sample(times, np.ascontiguousarray(matrix.T), scores, reference)


def _count_days(samples: Sequence[Sample], count: Count) -> tuple[int, dict[int, tuple[int, I64]]] | None:
    seen_until, days = NEVER, dict[int, tuple[int, I64]]()
    times, matrix, scores, reference = _joined(samples)
    if len(times):
        seen_until = max(seen_until, int(times.max()))
        of_row = times // DAY_US
        for day in np.unique(of_row).tolist():
            here = of_row == day
            counts = count(reference, matrix, scores) if here.all() else count(reference, matrix[here], scores[here])
            if counts is None:
                return None
            rows, before = days.get(day, (0, 0))
            days[day] = (rows + int(here.sum()), counts + before)
    return seen_until, days


class DriftJudge(StatefulBatchLogic[Partial, pa.RecordBatch, dict[str, Any]]):
    """Adds up the partitions' counts per day and, when a day is over, emits its report, a record batch as REPORT.

    A day is over when every partition has been seen past its end, and each of `partitions` has been seen at all. One that is
    more than `patience_days` of event time behind the newest (not seen yet: behind the first day) is not waited for. A row
    of a day that is over is late: counted (`on_late`) and left out. A day of less than min_rows rows is not judged, nor is
    the first one the job sees if it has less than half the reference's rows a day (it began before the job): it gets one
    row with the statistic "rows", no feature, and the rows it would have needed as threshold; so is a day that began anew.
    The end of the input is no end of a day, unless close_on_eof.

    reference: the one in use, which changes with the model. The first counts of another than before begin the days that are
    open anew: what there was of them, and what comes of any other reference, is dropped and counted as late.
    """

    def __init__(
        self,
        resume: dict[str, Any] | None,
        *,
        pipeline: str,
        reference: Callable[[], Reference],
        rate: float,
        partitions: Sequence[str] = (),
        min_rows: int = 100,
        patience_days: float = 3.0,
        on_late: Callable[[int], None] = lambda rows: None,
        close_on_eof: bool = False,
    ) -> None:
        self._pipeline, self._rate = pipeline, rate
        self._in_use = reference
        self._reference = reference()
        self._thresholds = thresholds(self._reference, rate)
        self._min_rows = min_rows
        self._patience = int(patience_days * DAY_US)
        self._on_late = on_late
        self._close_on_eof = close_on_eof
        self._partitions = partitions
        self._seen: dict[str, int] = {}
        self._first: int | None = None
        self._anew = NEVER
        self._closed = NEVER
        self._open: dict[int, tuple[int, I64]] = {}
        if resume is not None:
            self._load(_checked(resume, JUDGE_VERSION))

    def on_batch(self, values: list[Partial]) -> tuple[Iterable[pa.RecordBatch], bool]:
        for partial in values:
            self._add(partial)
        horizon = self._horizon()
        self._closed = max(self._closed, horizon // DAY_US - 1)
        return self._close([day for day in sorted(self._open) if day <= self._closed]), self.RETAIN

    def on_eof(self) -> tuple[Iterable[pa.RecordBatch], bool]:
        if not self._close_on_eof or not self._open:
            return [], self.RETAIN
        self._closed = max(self._open)
        return self._close(sorted(self._open)), self.RETAIN

    def snapshot(self) -> dict[str, Any]:
        return {
            "version": JUDGE_VERSION,
            "reference": self._reference.identity,
            "seen": dict(self._seen),
            "first": self._first,
            "closed": self._closed,
            "open": {day: (rows, counts.tobytes()) for day, (rows, counts) in self._open.items()},
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._seen, self._first, self._closed = dict(state["seen"]), state["first"], state["closed"]
        if state["reference"] == self._reference.identity:
            self._open = {day: (rows, self._counts(data)) for day, (rows, data) in state["open"].items()}
        elif state["open"]:
            self._on_late(sum(rows for rows, _ in state["open"].values()))

    def _counts(self, data: bytes) -> I64:
        return np.frombuffer(data, np.int64).reshape(self._reference.total.shape)

    def _add(self, partial: Partial) -> None:
        if self._first is None:
            self._first = partial.days[0][0]
        self._seen[partial.partition] = max(self._seen.get(partial.partition, NEVER), partial.seen_until)
        if partial.reference != self._reference.identity and partial.reference == (now := self._in_use()).identity:
            self._on_late(sum(rows for rows, _ in self._open.values()))
            self._open, self._anew = {}, partial.days[0][0]
            self._reference, self._thresholds = now, thresholds(now, self._rate)
        for day, rows, data in partial.days:
            if day <= self._closed or partial.reference != self._reference.identity:
                self._on_late(rows)
            else:
                rows_before, before = self._open.get(day, (0, 0))
                self._open[day] = (rows_before + rows, self._counts(data) + before)

    def _horizon(self) -> int:
        newest = max(self._seen.values())
        unseen = any(partition not in self._seen for partition in self._partitions)
        if unseen and self._first is not None and newest < self._first * DAY_US + self._patience:
            return NEVER
        return min(seen for seen in self._seen.values() if seen >= newest - self._patience)

    def _close(self, days: Iterable[int]) -> list[pa.RecordBatch]:
        return [self._report(day, *self._open.pop(day)) for day in days]

    def _report(self, day: int, rows: int, counts: I64) -> pa.RecordBatch:
        needed = max(self._min_rows, self._reference.rows_a_day // 2) if day in (self._first, self._anew) else self._min_rows
        if rows < needed:
            columns: list[Any] = [[None], ["rows"], [float(rows)], [float(needed)], [False]]
        else:
            columns = list(judge(self._reference, counts, self._thresholds))
        n = len(columns[0])
        start = np.full(n, day * DAY_US)
        head = [[self._pipeline] * n, start.view("datetime64[us]"), (start + DAY_US).view("datetime64[us]")]
        arrays = [*head, *columns, np.full(n, rows)]
        made = [pa.array(array, field.type) for array, field in zip(arrays, REPORT, strict=True)]
        return pa.RecordBatch.from_arrays(made, schema=REPORT)


def _checked(state: dict[str, Any], version: int = VERSION) -> dict[str, Any]:
    if state["version"] != version:
        raise ValueError(f"drift: expected state of version {version}, got {state['version']}")
    return state
