"""The floor: each part of the way of an event alone, their sum, and how near the running job comes to it.

python -m bench.floor [--workload flights] [--turns 3] [--json FILE]

A topic is filled, and headrace's own functions are called one after the other on all of it, without Bytewax, without threads of
our own, without metrics, drift or recovery: consume (Kafka to columns), decode, features, model, encode (decisions to JSON) and
produce (with every delivery confirmed). Their sum is what one worker would need if nothing else cost anything. Then the job
empties the same topic as `bench.throughput` measures it; efficiency is floor / actual. In turns: parts, job, parts, job.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prometheus_client import CollectorRegistry

from bench.brokers import Served, broker, drop, make
from bench.options import common, leave_on_sigterm, settings, systems
from bench.run import ChildError, Plan
from bench.show import result, say, settings_lines, write
from bench.systems import SystemDiedError
from bench.throughput import LINGER_MS, brief, drain, fill
from bench.workloads import Workload, load
from features.expressions import mask
from features.memo import Memo
from ops.broker import BrokerError
from ops.progress import bar
from sinks.messages import Encoder
from streams import pipeline as pipelines
from streams.decide import Work, answers, together
from streams.exchange import Base, Gather, Gathered, News, Parcel, Shard, cut, uncut
from streams.job import Job
from streams.rehearsal import rehearse
from streams.rounds import as_one
from streams.routing import shard_name
from streams.settings import JobSettings

PARTS = ("consume", "decode", "features", "model", "encode", "produce")
MESSAGES = {"flights": 1_500_000, "crayfish": 120_000, "vector": 1_500_000}
KEPT_BYTES = 300e6
WAIT_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.floor", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    common(parser)
    parser.add_argument("--messages", type=int, default=None, help=f"in the topic  [default: {MESSAGES}]")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds from the job's first answer until it is stopped")
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    try:
        made = measure(options)
    except (ValueError, LookupError, BrokerError, ChildError, SystemDiedError) as error:
        print(f"bench.floor: {error}", file=sys.stderr)
        return 1
    print(settings_lines(made))
    for part in made["parts"]:
        print(f"{part['part']:12} {part['us_per_event']:8.3f} µs an event")
    print(f"{'floor':12} {made['sum_us']:8.3f} µs an event: {1e6 / made['sum_us']:,.0f} a second")
    if made["actual_us"]:
        print(f"{'actual':12} {made['actual_us']:8.3f} µs an event: {1e6 / made['actual_us']:,.0f} a second")
        print(f"{'efficiency':12} {made['efficiency']:8.3f}")
    write(made, options.json)
    return 0 if made["actual_us"] else 1


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fills the topic, measures the parts and the job in turns, and returns a result file's content."""
    workload, tested = load(options.workload), systems(options)[:1]
    with bar() as progress:
        workload.ready(options.home, progress)
        prepared = workload.prepare(options.messages or MESSAGES.get(options.workload, 500_000), progress)
    linger = LINGER_MS if options.linger is None else options.linger
    parts: list[dict[str, float]] = []
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as scratch, broker(options.broker) as served:
        plan = Plan(workload, prepared, served, Path(scratch), 0.0, partitions=1, workers=1, linger_ms=linger)
        source = f"bench-full-{time.monotonic_ns()}"
        say(f"{prepared.messages:,} messages in the topic after {fill(plan, source):.1f} s")
        some = min(prepared.messages, int(KEPT_BYTES / prepared.bytes_mean))
        for turn in range(options.turns):
            say(f"the parts, turn {turn + 1} of {options.turns}")
            parts.append(alone(workload, served, source, some, linger, Path(scratch) / f"parts-{turn}"))
            say("  " + ", ".join(f"{name} {took:.2f}" for name, took in parts[-1].items()) + " µs an event")
            say(f"the job, turn {turn + 1} of {options.turns}")
            runs.append(drain(tested[0], plan, source, turn, options.limit))
            say(f"  {brief(runs[-1])}")
        drop(served, [source])
    beside = settings(options, options.broker, linger, tested) | {"limit_s": options.limit}
    made = result("floor", workload, prepared, beside, tested, runs)
    each = {name: median(one[name] for one in parts) for name in PARTS}
    rates = [run["throughput"]["messages_per_s"] for run in runs if run["valid"]]
    total = sum(each.values())
    actual = 1e6 / median(rates) if rates else None
    return made | {
        "parts": [{"part": name, "us_per_event": round(took, 4)} for name, took in each.items()],
        "sum_us": round(total, 4),
        "actual_us": round(actual, 4) if actual else None,
        "efficiency": round(total / actual, 4) if actual else None,
    }


def alone(workload: Workload, served: Served, source: str, messages: int, linger: int, home: Path) -> dict[str, float]:
    """Microseconds an event of each part on the topic's first `messages` messages, one part after the other."""
    home.mkdir(parents=True)
    sink = f"bench-floor-{time.monotonic_ns()}"
    wanted = workload.job()
    file = home / "job.py"
    file.write_text(wanted.pipeline.replace("{input}", source).replace("{output}", sink))
    given: dict[str, Any] = {name.removeprefix("HEADRACE_").lower(): value for name, value in wanted.environment.items()}
    job_settings = JobSettings(brokers=served.address, home=home, kafka={"linger.ms": str(linger)}, **given)
    job = Job(pipelines.load(f"{file}:job"), job_settings, CollectorRegistry(), time.time_ns)
    job.open()
    rehearse(job)
    make(served, [sink], 1)
    gc.collect()
    gc.freeze()
    try:
        return _timed(job, messages)
    finally:
        gc.unfreeze()
        job.close()
        drop(served, [sink])


def _timed(job: Job, messages: int) -> dict[str, float]:
    took: dict[str, float] = {}
    started = time.perf_counter()

    def lap(part: str, events: int) -> None:
        nonlocal started
        took[part] = (time.perf_counter() - started) / events * 1e6
        started = time.perf_counter()

    raw = consumed(job, messages)
    events = sum(batch.num_rows for batch in raw[1:])
    took["consume"] = consuming(raw)
    started = time.perf_counter()
    rows = [job.decoder(batch).rows for batch in raw[1:]]
    lap("decode", events)
    whole = Shard(job.shards, None, job.meters, 1)
    gather = Gather(job.pipeline.groups, None)
    works = [work for batch in rows if (work := featured(job, whole, gather, batch)) is not None]
    lap("features", events)
    scored = [job.deciding.score(work) for work in works]
    lap("model", events)
    encoder = Encoder()
    written = [messages for work in scored for messages in answers(work, job.pipeline.sinks, encoder)[1]]
    lap("encode", events)
    output = job.output
    assert output is not None
    for one in written:
        output.write(one)
    output.flush()
    lap("produce", events)
    return took


def consumed(job: Job, messages: int) -> list[pa.RecordBatch]:
    """The first messages of the topic as raw batches; the first is that before which the clients were not yet warm."""
    part = job.events.build_part("event", shard_name(0), None)
    raw: list[pa.RecordBatch] = []
    count, until = 0, time.monotonic() + WAIT_SECONDS
    try:
        while count < messages:
            polled = part.poll()
            if polled is not None and polled.rows:
                raw.append(as_one([(shard_name(0), polled)]))
                count += polled.rows
                until = time.monotonic() + WAIT_SECONDS
            elif time.monotonic() > until:
                raise ValueError(f"floor: expected {messages:,} messages in the topic, got {count:,}")
    finally:
        part.close()
    return raw


def consuming(raw: Sequence[pa.RecordBatch]) -> float:
    """Microseconds an event between the first and the last poll."""
    first, last = (batch.column("_polled_at")[-1].as_py() for batch in (raw[0], raw[-1]))
    return (last - first) / 1e3 / sum(batch.num_rows for batch in raw[1:])


def featured(job: Job, whole: Shard, gather: Gather, rows: pa.RecordBatch) -> Work | None:
    """What the steps before the model do with a batch; None where nothing is decided."""
    seen = Memo(rows)
    reads = mask(job.decide_on, seen)
    gathered = joined(job, whole, gather, seen, reads) if job.gathers else list(uncut(seen, reads, job.kept))
    if not gathered:
        return None
    return job.deciding.complete(together([(shard_name(0), gathered[0])], job.streaming_names, job.deciding))


def joined(job: Job, whole: Shard, gather: Gather, seen: Memo, reads: npt.NDArray[np.bool_]) -> list[Gathered]:
    """The rows to decide on with their streaming features."""
    times = seen.microseconds(job.pipeline.events.time)
    news = [News(shard_name(0), int(times[0]), int(times.max()), True)]
    sent = [
        value
        for _, value in cut(
            shard_name(0), 0, seen, reads, news, job.cutters, job.pipeline.shards, 1, to_all=False, kept=job.kept
        )
    ]
    parts, _ = whole.on_batch([value for value in sent if isinstance(value, Parcel)])
    gathered, _ = gather.on_batch([*(value for value in sent if isinstance(value, Base)), *parts])
    return gathered


if __name__ == "__main__":
    sys.exit(main())
