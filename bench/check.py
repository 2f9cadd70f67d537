"""Is every answer there, once, and right? And how long did each take?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from bench.collect import Collected
from bench.workloads import Prepared, Workload

I64 = npt.NDArray[np.int64]
HIGHEST_US = 3_600_000_000
DIGITS = 3
CHUNK, CHUNK_BYTES = 200_000, 128 * 1024 * 1024
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True)
class Answers:
    """What came out, against what was due. row: for each first right or wrong answer the message it answers; held, appended:
    when (bench/collect.py)."""

    expected: int
    answers: int
    lost: int
    doubled: int
    wrong: int
    why: str
    row: I64
    held: I64
    appended: I64

    @property
    def fault(self) -> str:
        """What is wrong with the answers; empty if nothing is."""
        faults = [f"{count:,} {what}" for what in ("lost", "doubled", "wrong") if (count := getattr(self, what))]
        return ", ".join(faults) + (f" of {self.expected:,} answers" if faults else "") + (f": {self.why}" if self.why else "")


def check(
    workload: Workload,
    prepared: Prepared,
    sent: int,
    blocks: Iterable[Collected],
    *,
    ordered: bool,
    unfinished: bool = False,
    passes_on: bool = False,
) -> Answers:
    """Compares what was collected with the answers due to the first `sent` messages.

    ordered: the system read the messages in the order in which they were sent. unfinished: it was stopped before it was done;
    then answers are due to the messages up to the last that is answered, or, unordered, to those that are answered. passes_on:
    the system is a relay, whose answers are the messages themselves.
    """
    due = prepared.ids()[:sent]
    rows = np.flatnonzero(due >= 0)
    rows = rows[np.argsort(due[rows], kind="stable")]
    ids = due[rows]
    times = np.zeros(len(rows), np.int64)
    first = np.full((2, len(rows)), -1, np.int64)
    wrong, answers, why = 0, 0, ""
    for part in chunks(blocks):
        checked = workload.check(prepared, part.values, ordered=ordered)
        place = np.clip(np.searchsorted(ids, checked.ids), 0, max(0, len(ids) - 1))
        known = (ids[place] == checked.ids) & (checked.ids >= 0) if len(ids) else np.zeros(len(checked.ids), np.bool_)
        echoed = np.zeros(len(known), np.bool_) if passes_on or checked.passed_on is None else checked.passed_on
        wrong += int((checked.wrong | ~known | echoed).sum())
        why = (
            why
            or checked.why
            or (
                f"expected a score, got the message itself: {part.values[int(np.argmax(echoed))][:200]!r}"
                if echoed.any()
                else ""
            )
            or ("" if known.all() else f"no answer that is due: {part.values[int(np.argmin(known))][:200]!r}")
        )
        answers += len(known)
        places, at = place[known], np.flatnonzero(known)
        fresh, index = np.unique(places, return_index=True)
        new = times[fresh] == 0
        first[0, fresh[new]] = part.held[at[index[new]]]
        first[1, fresh[new]] = part.appended[at[index[new]]]
        np.add.at(times, places, 1)
    there = np.flatnonzero(times)
    wanted = np.ones(len(rows), np.bool_)
    if unfinished:
        wanted = rows <= rows[there].max(initial=-1) if ordered else times > 0
    return Answers(
        expected=int(wanted.sum()),
        answers=answers,
        lost=int((times[wanted] == 0).sum()),
        doubled=int((times[times > 1] - 1).sum()),
        wrong=wrong,
        why=why,
        row=rows[there],
        held=first[0, there],
        appended=first[1, there],
    )


def chunks(blocks: Iterable[Collected], size: int = CHUNK, most: int = CHUNK_BYTES) -> Iterator[Collected]:
    """Blocks put together to `size` messages or `most` bytes, or a few more."""
    waiting: list[Collected] = []
    count = held = 0
    for block in blocks:
        waiting.append(block)
        count += len(block.values)
        held += sum(map(len, block.values))
        if count >= size or held >= most:
            yield _joined(waiting)
            waiting, count, held = [], 0, 0
    if waiting:
        yield _joined(waiting)


def _joined(blocks: list[Collected]) -> Collected:
    return Collected(
        [value for block in blocks for value in block.values],
        np.concatenate([block.held for block in blocks]),
        np.concatenate([block.appended for block in blocks]),
    )


def histogram(latencies_ns: npt.NDArray[np.int64]) -> HdrHistogram:
    """Of µs, with three digits. Raises ValueError for one that is below 0 or over an hour."""
    made = HdrHistogram(1, HIGHEST_US, DIGITS)
    us, counts = np.unique(np.maximum(latencies_ns // 1000, 0), return_counts=True)
    if len(latencies_ns) and latencies_ns.min() < -2_000_000:
        raise ValueError(f"latency: expected at least 0, got {latencies_ns.min()} ns: an answer before its question")
    for value, count in zip(us.tolist(), counts.tolist(), strict=True):
        if not made.record_value(value, count):
            raise ValueError(f"latency: expected at most {HIGHEST_US} µs, got {value}")
    return made


def figures(made: HdrHistogram) -> dict[str, Any]:
    """p50, p90, p99, p999, max, mean in ms, and count."""
    return {
        **{name: round(made.get_value_at_percentile(share * 100) / 1e3, 3) for name, share in QUANTILES.items()},
        "max": round(made.get_max_value() / 1e3, 3),
        "mean": round(made.get_mean_value() / 1e3, 3),
        "count": int(made.get_total_count()),
    }


def encoded(made: HdrHistogram) -> str:
    """The histogram (µs) in HdrHistogram's V2 format, compressed, base64."""
    return bytes(made.encode()).decode()


def lag(due_ns: I64, held_ns: I64, start_ns: int, end_ns: int, step_ns: int = 100_000_000) -> dict[str, Any]:
    """Answers that were due and not there: the most, and at the end, between two moments; growth in answers a second over the
    second half."""
    at = np.arange(start_ns, end_ns + 1, step_ns)
    behind = np.searchsorted(np.sort(due_ns), at, side="right") - np.searchsorted(np.sort(held_ns), at, side="right")
    half = len(at) // 2
    growth = float(np.polyfit(at[half:] / 1e9, behind[half:], 1)[0]) if len(at) - half > 2 else 0.0
    return {"max": int(behind.max()), "end": int(behind[-1]), "growth_per_s": round(growth, 2)}
