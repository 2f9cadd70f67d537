"""The demo: real flights through the whole way, on an embedded broker, with what it did counted from its topics."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from prometheus_client.parser import text_string_to_metric_families

from features.expressions import compile_expression, mask
from features.training import labels
from models.metrics import auc
from models.registry import ModelNotFound, resolve
from ops.broker import embedded, free_port
from ops.probe import as_new, probe
from ops.progress import bar
from ops.replay import between
from ops.summary import live_view, print_summary
from ops.topics import create
from ops.train import prepare_stored, train
from ops.watch import Watcher
from ops.workers import as_environment, end, on_signals
from streams.meters import STAGES
from streams.pipeline import Pipeline, load
from streams.settings import JobSettings

OCTOBER = datetime(2013, 10, 1, tzinfo=UTC)
PROBE_EVENTS, PROBE_RATE = 10_000, 1_000.0
QUIET_SECONDS = 20.0


@dataclass(frozen=True)
class DemoOptions:
    """What the demo's flags say."""

    all_year: bool
    partitions: int
    speed: float | None
    brokers: str | None
    json_file: Path | None


class DemoError(RuntimeError):
    """The demo cannot go on, or its counts do not add up."""


def demo(settings: JobSettings, options: DemoOptions) -> None:
    """Runs the demo and prints its summary. Raises DemoError if what came out is not what went in."""
    pipeline = load("flights")
    home = settings.home / "demo"
    if not options.brokers:
        settings = settings.model_copy(update={"kafka": {}})
    shutil.rmtree(home, ignore_errors=True)
    with bar() as progress:
        ready(pipeline, settings, progress)
    assert pipeline.model.history is not None
    history = between(pipeline.model.history(), pipeline.events.time, None if options.all_year else OCTOBER, None)
    with ExitStack() as stack:
        stack.enter_context(on_signals(interrupt))
        brokers = options.brokers or stack.enter_context(embedded()).address
        made = create(brokers, pipeline.topics(), options.partitions, settings.client)
        if options.brokers and set(made) != set(pipeline.topics()):
            used = ", ".join(sorted(set(pipeline.topics()) - set(made)))
            raise DemoError(f"the broker at {brokers} already has {used}: the demo needs topics of its own, delete them first")
        job = settings.model_copy(
            update={"brokers": brokers, "home": home, "registry": settings.registry_uri, "metrics_port": free_port()}
        )
        source = stack.enter_context(replaying(brokers, options))
        process = stack.enter_context(running(job))
        watcher = Watcher(brokers, pipeline.topics()[1:], settings.client)
        stack.callback(watcher.close)
        result = Demo(pipeline, job, history, watcher, process).run(source)
    wrong = does_not_add_up(result)
    period = "the whole of 2013" if options.all_year else "October to December 2013"
    if options.partitions > 1 and (settings.order or pipeline.events.order) == "arrival":
        period += (
            f", a backlog of {options.partitions} partitions in order of arrival (--order event reads them in order of time)"
        )
    print_summary(result, pipeline.name, period, settings.registry_uri, wrong)
    if options.json_file:
        options.json_file.write_text(json.dumps(result, indent=2) + "\n")
    if wrong:
        raise DemoError(f"the counts do not add up: {wrong}")


def interrupt() -> None:
    """SIGTERM ends the demo as Ctrl-C does: with everything that it started."""
    raise KeyboardInterrupt


def ready(pipeline: Pipeline, settings: JobSettings, progress: Callable[[str, float], None]) -> None:
    """Feature repo and model: made if they are not there."""
    prepare_stored(pipeline, settings, progress)
    try:
        resolve(settings.registry_uri, pipeline.model.name, into=settings.home / "models")
    except ModelNotFound:
        progress("no model yet: training one", 0.0)
        train(pipeline, settings, seed=0, until=pipeline.model.trained_until, progress=progress)


@contextmanager
def running(settings: JobSettings) -> Iterator[subprocess.Popen[bytes]]:
    """The job, as `headrace run flights` in a process of its own, from when it is ready. Raises DemoError if it dies before."""
    command = [sys.executable, "-m", "ops", "run", "flights"]
    environment = os.environ | as_environment(settings)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, process_group=0)
    try:
        for worker in range(settings.workers):
            while not _get(f"http://127.0.0.1:{settings.metrics_port + worker}/readyz"):
                if process.poll() is not None:
                    raise DemoError("the job did not start: see above")
                time.sleep(0.05)
        yield process
    finally:
        end([process], grace=40)


@contextmanager
def replaying(brokers: str, options: DemoOptions) -> Iterator[subprocess.Popen[str]]:
    """The replay in a process of its own; it gets its messages ready and waits for a line on its standard input."""
    command = [sys.executable, "-m", "ops.replay", "flights", "--brokers", brokers, "--malformed", "--wait"]
    command += [] if options.all_year else ["--start", f"{OCTOBER:%Y-%m-%d}"]
    command += ["--speed", str(options.speed)] if options.speed else []
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@dataclass
class Demo:
    """What the demo runs on, once everything is up."""

    pipeline: Pipeline
    settings: JobSettings
    history: pa.Table
    watcher: Watcher
    process: subprocess.Popen[bytes]

    def run(self, source: subprocess.Popen[str]) -> dict[str, Any]:
        """Replays, waits until all is decided, probes the latency, and sums up."""
        decisions, dead, drift = self.pipeline.sinks[0].topic, self.pipeline.events.dead, self.pipeline.topics()[-1]
        batch = self.history.combine_chunks().to_batches()[0]
        expected = mask(compile_expression(self.pipeline.decide_on, batch.schema), batch)
        messages, sent = self.replay(source, int(expected.sum()))
        planted = messages - self.history.num_rows
        steps = self.steps()
        if not self.watcher.count(decisions):
            raise DemoError(f"no decision came within {QUIET_SECONDS:.0f} s")
        table = pl.read_ndjson(b"\n".join(self.watcher.values[decisions]))
        letters = pl.DataFrame([json.loads(value) for value in self.watcher.values[dead]], infer_schema_length=None)
        took = self.watcher.last_came(decisions) - sent["began"]
        result = {
            "events": messages,
            "events_per_s": round(messages / took),
            "seconds": round(took, 2),
            "decisions": table.n_unique("decision_id"),
            "duplicates": table.height - table.n_unique("decision_id"),
            "by_decision": dict(table["decision"].value_counts().sort("count", descending=True).iter_rows()),
            "dead_letters": dict(sorted(letters["code"].value_counts().iter_rows())) if letters.height else {},
            "expected": {"decisions": int(expected.sum()), "dead_letters": planted},
            "auc": round(self.auc(batch, expected, table), 4),
            "steps": steps,
            "model_version": int(table["model_version"][-1]),
            "latency_ms": {"p50": None, "p99": None},
        }
        if not does_not_add_up(result):
            result["latency_ms"] = self.latency(decisions)
        end([self.process], grace=40)
        if self.process.returncode != 0:
            raise DemoError(f"the job did not leave cleanly: code {self.process.returncode}")
        self.watcher.read_to_end()
        return result | {"drift": self.drift(drift)}

    def replay(self, source: subprocess.Popen[str], expected: int) -> tuple[int, dict[str, Any]]:
        """Lets the replay begin and waits until everything is decided, or nothing comes any more.

        Returns the number of messages, and what the replay says of itself.
        """
        decisions, dead, drift = self.pipeline.sinks[0].topic, self.pipeline.events.dead, self.pipeline.topics()[-1]
        messages = said(source)["ready"]
        planted = messages - self.history.num_rows
        assert source.stdin is not None
        source.stdin.write("\n")
        source.stdin.flush()
        moved, seen = time.monotonic(), -1
        with live_view(self.watcher, decisions, dead, drift, messages) as show:
            while self.watcher.count(decisions) < expected or self.watcher.count(dead) < planted:
                self.check(source)
                read = int(self.rows_read())
                done = self.watcher.count(decisions) + self.watcher.count(dead) + read
                moved, seen = (time.monotonic(), done) if done != seen else (moved, seen)
                if time.monotonic() - moved > QUIET_SECONDS and source.poll() is not None:
                    break
                show(read)
                time.sleep(0.25)
            show(messages)
        return messages, said(source)

    def latency(self, decisions: str) -> dict[str, float]:
        """Milliseconds from when an event should be sent to when its decision is here, at a steady rate."""
        print(f"measuring latency: {PROBE_EVENTS:,} more events, {PROBE_RATE:,.0f} a second", flush=True)
        again = as_new(self.history.slice(self.history.num_rows - PROBE_EVENTS), self.pipeline)
        took = probe(self.settings.brokers, self.settings.client, self.pipeline, again, PROBE_RATE, self.watcher, decisions)
        return {f"p{round(share * 100)}": round(float(np.quantile(took, share)), 2) for share in (0.5, 0.99)}

    def check(self, source: subprocess.Popen[str]) -> None:
        """Raises DemoError if the job or the replay has died, or the watcher failed."""
        if self.process.poll() is not None:
            raise DemoError(f"the job died (code {self.process.returncode}): see above")
        if source.poll() not in (None, 0):
            raise DemoError(f"the replay died (code {source.returncode}): see above")
        if self.watcher.failed:
            raise self.watcher.failed

    def samples(self) -> dict[tuple[str, str], float]:
        """The job's counters by (name, stage), added up over its workers."""
        totals: dict[tuple[str, str], float] = {}
        for worker in range(self.settings.workers):
            page = _get(f"http://127.0.0.1:{self.settings.metrics_port + worker}/metrics") or ""
            for family in text_string_to_metric_families(page):
                for sample in family.samples:
                    key = sample.name, sample.labels.get("stage", "")
                    totals[key] = totals.get(key, 0.0) + sample.value
        return totals

    def rows_read(self) -> float:
        """Messages the job has read so far."""
        return self.samples().get(("headrace_rows_total", "event"), 0.0)

    def steps(self) -> dict[str, float]:
        """Seconds of work per stage, over all workers; drift is on a thread of its own."""
        samples = self.samples()
        return {stage: round(samples.get(("headrace_seconds_total", stage), 0.0), 3) for stage in STAGES}

    def auc(self, batch: pa.RecordBatch, expected: np.ndarray, decisions: pl.DataFrame) -> float:
        """Of decisions after the stored features were made, on what came true later."""
        label = self.pipeline.label
        assert label is not None
        decided = batch.filter(pa.array(expected))
        true = labels(batch, decided, label, self.pipeline.events.time)
        truth = pl.DataFrame(
            {"event_id": pl.Series(decided[self.pipeline.events.id]), "at": pl.Series(decided["at"]), "label": pl.Series(true)}
        )
        after = truth.filter(pl.col("at") >= self.pipeline.model.trained_until)
        first = decisions.unique("decision_id", keep="first", maintain_order=True).select("event_id", "score")
        judged = after.join(first, on="event_id").drop_nulls()
        return auc(judged["label"].to_numpy(), judged["score"].to_numpy())

    def drift(self, topic: str) -> list[dict[str, Any]]:
        """The alarms of what was replayed, one for each feature, window and statistic."""
        last = self.history[self.pipeline.events.time][-1].as_py().isoformat()
        reports = [report for report in map(json.loads, self.watcher.values[topic]) if report["window_start"] < last]
        return [
            {"feature": r["feature"], "window": r["window_start"], **{k: r[k] for k in ("statistic", "value", "threshold")}}
            for r in reports
            if r["alarmed"]
        ]


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next line of a process, which is JSON. Raises DemoError if it ends instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DemoError(f"the replay ended with code {process.wait()}: see above")
    return dict(json.loads(line))


def does_not_add_up(result: dict[str, Any]) -> str:
    """What came out and should not have, or should have and did not; empty if there is nothing."""
    expected, letters = result["expected"], sum(result["dead_letters"].values())
    wrong = []
    if result["decisions"] != expected["decisions"]:
        wrong.append(f"expected {expected['decisions']:,} decisions, got {result['decisions']:,}")
    if result["duplicates"]:
        wrong.append(f"{result['duplicates']:,} decisions came more than once")
    if letters != expected["dead_letters"]:
        wrong.append(f"expected {expected['dead_letters']} dead letters, got {letters}")
    return ", ".join(wrong)


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.read().decode()
    except OSError:
        return None
