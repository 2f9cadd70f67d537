"""The way of an event, as one visible flow: event → features → batch → model → decision → sink → drift."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias

import bytewax.operators as op
import pyarrow as pa
from bytewax.dataflow import Dataflow, Stream

from features.expressions import mask
from features.memo import Memo, microseconds
from models.policy import Coded
from sinks.messages import Encoder, Messages, encode_dead, encode_drift
from streams.closing import Rest
from streams.decide import Work, answers, together
from streams.drift import DriftCounter, DriftJudge, Partial, Sample
from streams.exchange import Base, Gather, Gathered, Parcel, Part, Shard, Wake, cut, uncut, wakes
from streams.job import Job
from streams.output import Output
from streams.polling import Polled
from streams.record import Entry, RecordOutput, entry
from streams.replays import kept_too
from streams.rounds import as_one, news_of, rounds, runs
from streams.routing import shard_name
from streams.start import only_from

MOST_ON_THEIR_WAY = 64
Made: TypeAlias = Messages | Base | Parcel | Wake | Gathered
"""What becomes of polls: dead letters, and rows on their way to their features, or that need none from elsewhere."""


@dataclass
class Since:
    """The rows that were decoded since pages of the state were last asked for."""

    rows: int = 0


def build(job: Job) -> Dataflow:
    """The dataflow of a job. Nothing is opened before Bytewax runs it."""
    pipeline, meters, gate, encoder = job.pipeline, job.meters, job.gate, Encoder()
    numbers, taken = count(), Since()
    on_their_way: deque[tuple[Work, int]] = deque(maxlen=MOST_ON_THEIR_WAY)
    shared_out = _by_partition if job.staged else _at_home

    def home_of(partition: str, rows: Memo) -> tuple[str, int]:
        """Where a batch's features are gathered, see streams/exchange.py."""
        if job.order == "event":
            return partition, rows.column("_offset")[0].as_py() if rows.num_rows else -1
        return gate.home, next(numbers)

    def begun(polls: list[tuple[str, Polled]]) -> list[tuple[str, None]]:
        """For the step that sleeps, once an epoch."""
        return [(gate.home, None)] if any(polled.page >= 0 for _, polled in polls) else []

    def decode(polls: list[tuple[str, Polled]]) -> list[tuple[str, Made]]:
        return [made for near in rounds(polls, apart=job.order == "event") for made in _decode(near)]

    def _decode(polls: Sequence[tuple[str, Polled]]) -> list[tuple[str, Made]]:
        gate.done(len(polls) - 1)
        steps = job.tracing.decoding(polls) if job.tracing else None
        with meters.stage("event", sum(polled.rows for _, polled in polls), steps):
            decoded = job.decoder(as_one(polls))
        with meters.stage("features", decoded.rows.num_rows):
            rows = Memo(decoded.rows)
            reads = mask(job.decide_on, rows)
            if decide_from := polls[0][1].decide_from:
                decoded, reads = only_from(decoded, reads, decide_from)
            home, sequence = home_of(polls[0][0], rows)
            kept = kept_too(job.kept, decoded.rows)
            made: list[tuple[str, Made]]
            if job.gathers:
                news = news_of(polls, rows, rows.microseconds(pipeline.events.time))
                made = list(
                    cut(
                        home, sequence, rows, reads, news, job.cutters, pipeline.shards, job.workers,
                        to_all=job.order == "event", kept=kept,
                    )
                )  # fmt: skip
            else:
                made = [(home, each) for each in uncut(rows, reads, kept)]
        if not any(isinstance(value, Base | Gathered) for _, value in made):
            gate.done(1)
        if job.gathers:
            for page in {polled.page for _, polled in polls if polled.page >= 0}:
                made += wakes(job.shards.at_once(page, taken.rows), pipeline.shards)
                taken.rows = 0
        taken.rows += decoded.rows.num_rows
        if decoded.dead.num_rows:
            meters.dead(_counts(decoded.dead["code"]))
            if job.notices:
                job.notices.dead(decoded.dead)
            made.append((home, encode_dead(decoded.dead, pipeline.events.dead, pipeline.events.topic)))
            gate.answered(1)
        return made

    def shard(resume: dict[str, Any] | None) -> Shard:
        return Shard(job.shards, resume, meters, job.workers, lambda: job.takes_turns)

    def score(gathered: list[tuple[str, Gathered]]) -> list[Work]:
        steps = job.tracing.chosen() if job.tracing else None
        with meters.stage("batch", 0, steps):
            work = together(gathered, job.streaming_names, job.deciding, steps)
        meters.batch_rows.observe(work.batch.num_rows)
        with meters.stage("features", 0, steps):
            work = work.deciding.complete(work)
        with meters.stage("model", work.batch.num_rows, steps):
            return [work.deciding.score(work)]

    def decide(work: Work) -> list[tuple[str, Messages | Entry]]:
        decided_from = job.clock_ns()
        with meters.stage("decision", work.batch.num_rows, work.steps):
            if job.pace:
                work = work.deciding.marked(work)
            decisions, written = answers(work, pipeline.sinks, encoder)
            outputs = [each for messages in written for each in shared_out(messages, work)]
            made: list[tuple[str, Messages | Entry]] = [*outputs]
            if pipeline.record:
                made.append((work.home, entry(work, decisions, job.clock_ns() // 1000)))
        gate.done(work.batches)
        gate.answered(len(outputs))
        on_their_way.append((work, decided_from))
        if decisions:
            meters.decided(_coded(decisions["decision"]).counts(), _coded(decisions["flags"]).counts())
        elif work.flags.any():
            meters.decided((), work.deciding.flag_lists(work.flags).counts())
        if job.notices:
            job.notices.decided(work)
        return made

    def watch(work: Work) -> list[tuple[str, Sample]]:
        with meters.stage("drift"):
            times = microseconds(work.batch[pipeline.events.time])
            return [
                (shard_name(partition), Sample(times[a:b], work.matrix[a:b], work.scores[a:b], work.deciding.reference))
                for partition, a, b in runs(work.batch.column("_partition").to_numpy())
            ]

    def counter(resume: dict[str, Any] | None) -> DriftCounter:
        return DriftCounter("", resume, count=job.count_drift, executor=job.drift_thread, on_late=meters.drift_late.inc)

    def judge(resume: dict[str, Any] | None) -> DriftJudge:
        return DriftJudge(
            resume,
            pipeline=pipeline.name,
            reference=lambda: job.reference,
            rate=pipeline.drift.rate if pipeline.drift else 0.0,
            partitions=[shard_name(number) for number in range(job.events.partitions)],
            on_late=meters.drift_late.inc,
        )

    def report(item: tuple[str, pa.RecordBatch]) -> tuple[str, Messages]:
        shown = (item[1].column(name).to_pylist() for name in ("feature", "statistic", "value", "alarmed"))
        for feature, statistic, value, alarmed in zip(*shown, strict=True):
            if feature is not None:
                meters.drift(feature, statistic, value, alarmed)
        return item[0], encode_drift(item[1], pipeline.drift.topic if pipeline.drift else "")

    def written(items: int, since: float) -> None:
        gate.written(items)
        now = job.clock_ns()
        while on_their_way:
            work, decided_from = on_their_way.popleft()
            rows = work.batch.num_rows
            meters.hops.passed(work.batch.column("_appended_at"), work.batch.column("_polled_at"), now)
            if job.pace and work.scored_from and rows:
                job.pace.took(work.polled, rows, int(work.polled_at.min()), work.scored_from, decided_from, now)
            if job.settings.model_look_seconds:
                job.shadowing.take(work)
            if job.tracing and work.steps and rows:
                job.tracing.handed_over(work, work.steps, since)

    def push(work: Work) -> list[tuple[str, Messages]]:
        with meters.stage("sink"):
            for take in job.takers:
                take(work)
        return []

    def gather(resume: dict[str, Any] | None) -> Gather:
        return Gather(pipeline.groups, resume, job.beginning.undecided, job.kept)

    def begin_flush() -> None:
        if pipeline.record:
            job.journal.begin_flush()

    def sink(name: str, written: Callable[[int, float], None] = lambda messages, since: None) -> Output:
        partitions = lambda: job.events.partitions  # noqa: E731
        return Output(name, partitions, lambda: job.output, lambda: job.outbox, meters, begin_flush, job.at, written)

    flow = Dataflow(pipeline.name)
    polled = op.input("event", flow, job.events)
    if job.workers > 1:
        op.stateful_batch("rest", op.flat_map_batch("begun", polled, begun), lambda resume: Rest(gate.closing))
    decoded = op.branch("decoded", op.flat_map_batch("decode", polled, decode), lambda item: not isinstance(item[1], Messages))
    gathered: Stream[tuple[str, Gathered]] = decoded.trues
    if job.gathers:
        fanned = op.branch("fanned", decoded.trues, lambda item: not isinstance(item[1], Base))
        parts = op.stateful_batch("features", fanned.trues, shard)
        home: Stream[tuple[str, Base | Part]] = op.merge("home", fanned.falses, op.map("parts", parts, _to_partition))
        gathered = op.stateful_batch("gather", home, gather)
    scored = op.flat_map_batch("model", gathered, score)
    decisions = op.flat_map("decision", scored, decide)
    if pipeline.record:
        decided = op.branch("decided", decisions, lambda item: isinstance(item[1], Messages))
        op.output("sink", op.merge("outputs", decided.trues, decoded.falses), sink("sink", written))
        op.output("record", decided.falses, RecordOutput(lambda: job.events.partitions, lambda: job.journal, meters))
    else:
        op.output("sink", op.merge("outputs", decisions, decoded.falses), sink("sink", written))
    if pipeline.push:
        op.flat_map("push", scored, push)
    if pipeline.drift:
        counted = op.stateful_batch("drift", op.flat_map("watch", scored, watch), counter)
        judged = op.stateful_batch("judge", op.map("counted", counted, _to_judge), judge)
        op.output("reports", op.map("report", judged, report), sink("reports"))
    return flow


def _at_home(messages: Messages, work: Work) -> Sequence[tuple[str, Messages]]:
    return [(work.home, messages)]


def _by_partition(messages: Messages, work: Work) -> Sequence[tuple[str, Messages]]:
    """A work's messages, one for each row, each for the partition of its row: what is staged for one is committed in order, but
    several partitions are not."""
    return [
        (shard_name(partition), Messages(messages.topic, messages.keys[a:b], messages.values[a:b]))
        for partition, a, b in runs(work.batch.column("_partition").to_numpy())
    ]


def _to_partition(item: tuple[str, Part]) -> tuple[str, Part]:
    return item[1].home, item[1]


def _to_judge(item: tuple[str, Partial]) -> tuple[str, Partial]:
    return shard_name(0), replace(item[1], partition=item[0])


def _coded(column: Any) -> Coded:
    assert isinstance(column, Coded)
    return column


def _counts(column: pa.Array) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
