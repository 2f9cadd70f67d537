"""A pipeline tried out: its own history through the real job and an embedded broker, or a few events in memory."""

import json
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from prometheus_client import CollectorRegistry

from features.expressions import compile_expression, mask
from features.training import labels
from models.metrics import auc
from models.registry import ModelNotFound, Version, resolve
from models.spec import ModelSpec
from ops.avro_messages import avro_schema, encode_avro
from ops.broker import embedded
from ops.fake_registry import fake_registry
from ops.register import stored_names
from ops.replay import between, encode, replay
from ops.topics import counts, create
from ops.train import Progress, prepare_stored, train
from ops.watch import Watcher
from sinks.memory import MemorySink
from streams.inputs import features_of, needed, require
from streams.pipeline import Pipeline
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource

SETTLED_SECONDS, QUIET_SECONDS = 2.0, 30.0


class CannotTryError(RuntimeError):
    """The pipeline cannot be tried, or what came out is not what went in; the message says why."""


@dataclass(frozen=True)
class Trial:
    """What came of a trial. trained: whether the model was made for it. decisions: the values of the topic of the first sink,
    in their order; dead: those of the dead letters. auc: of the scores, on what came true later; None where that is not known.
    seconds: from when the job was ready until all was delivered. unused: the features that the model does not take."""

    trained: bool
    model_version: int
    events: int
    expected: int
    seconds: float
    decisions: list[dict[str, Any]]
    dead: list[dict[str, Any]]
    auc: float | None
    unused: tuple[str, ...]


def trial(pipeline: Pipeline, settings: JobSettings, *, seed: int, progress: Progress) -> Trial:
    """Makes the model if there is none, and decides what of the history it was not trained on.

    The job keeps what it has to in a temporary folder, and its broker forgets everything. Raises CannotTryError, and what
    training and the job raise.
    """
    model, topic = pipeline.model, pipeline.events
    if model.history is None:
        raise CannotTryError(f"pipeline {pipeline.name}: its Model needs history, which is what it is tried on")
    if topic.decoder is not None:
        raise CannotTryError(f"pipeline {pipeline.name}: expected events in JSON or Avro, got a decoder of its own")
    trained = False
    try:
        prepare_stored(pipeline, settings, progress)
        version = resolve(settings.registry_uri, model.name, into=settings.home / "models")
    except ModelNotFound:
        if model.train is None:
            raise
        progress("no model yet: training one", 0.0)
        train(pipeline, settings, seed=seed, until=model.trained_until, progress=progress)
        version = resolve(settings.registry_uri, model.name, into=settings.home / "models")
        trained = True
    unused = _unused(pipeline, settings, version)
    table = model.history()
    table = between(table, topic.time, model.trained_until, None) if topic.time in table.column_names else table
    if table.num_rows == 0:
        raise CannotTryError(f"pipeline {pipeline.name}: its history has no events from {model.until or 'its beginning'} on")
    batch = table.combine_chunks().to_batches()[0]
    reads = pa.array(mask(compile_expression(pipeline.decide_on, batch.schema), batch))
    decided = batch.filter(reads)
    decisions, dead, seconds = _through_a_broker(pipeline, settings, table, decided.num_rows, progress)
    if len(decisions) != decided.num_rows:
        first = f": {dead[0]['reason']}" if dead else ""
        raise CannotTryError(
            f"pipeline {pipeline.name}: expected {decided.num_rows:,} decisions, got {len(decisions):,} and {len(dead):,} dead "
            f"letters{first}"
        )
    reached = _auc(pipeline, batch, decided, decisions)
    return Trial(trained, version.version, table.num_rows, decided.num_rows, seconds, decisions, dead, reached, unused)


def decide(
    pipeline: Pipeline, events: Sequence[Mapping[str, Any]], settings: JobSettings | None = None
) -> list[dict[str, Any]]:
    """The messages of the first sink for these events, each as it would be on the topic, decided in memory by the champion.
    The events are JSON's objects, whatever format the topic has.

    Raises ValueError with the reason of the first event that cannot be decoded, and what the job raises.
    """
    values = [json.dumps(event).encode() for event in events]
    sink = MemorySink()
    with tempfile.TemporaryDirectory() as temporary:
        job = _job(settings or JobSettings(), Path(temporary), recovery=False)
        source = MemorySource([[(None, value) for value in values]])
        told = replace(pipeline, events=replace(pipeline.events, format=None))
        run(told, job, registry=CollectorRegistry(), source=source, sink=sink)
    if dead := sink.values(pipeline.events.dead):
        raise ValueError(json.loads(dead[0])["reason"])
    return [json.loads(value) for value in sink.values(pipeline.sinks[0].topic)]


def _unused(pipeline: Pipeline, settings: JobSettings, version: Version) -> tuple[str, ...]:
    """The features that the model does not take. Raises InputsDifferError where it does not fit, before anything is started."""
    inputs = needed(pipeline, ModelSpec.read(version.folder))
    features = features_of(pipeline, stored_names(pipeline, settings))
    return require(f"model {version.name} version {version.version}", inputs, f"pipeline {pipeline.name}", features)


def _through_a_broker(
    pipeline: Pipeline, settings: JobSettings, table: pa.Table, expected: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """The decisions, the dead letters, and the seconds that they took."""
    topic = pipeline.events
    with tempfile.TemporaryDirectory() as temporary, fake_registry() as registry, embedded() as broker:
        if topic.format is None:
            keys, values = encode(table, topic.schema, topic.keys or (topic.id,))
        else:
            id = registry.add(avro_schema(topic.schema))
            keys, values = encode_avro(table, topic.schema, topic.keys or (topic.id,), id)
            pipeline = replace(pipeline, events=replace(topic, format=replace(topic.format, registry=registry.address)))
        progress("an embedded broker: sending the events", 0.0)
        create(broker.address, pipeline.topics(), 1, {})
        replay({"bootstrap.servers": broker.address}, topic.topic, keys, values, np.zeros(len(values), np.int64), None)
        job = _job(settings, Path(temporary), brokers=broker.address, kafka={})
        progress("deciding them", 0.0)
        watch = Watch(pipeline.name, len(values), expected)
        try:
            run(pipeline, job, registry=watch.registry, stop=watch.stop, on_ready=watch.thread.start)
        finally:
            watch.stop.set()
        decisions, dead = (_read(broker.address, name) for name in (pipeline.sinks[0].topic, topic.dead))
    return decisions, dead, watch.seconds


class Watch:
    """Lets a job leave once it has read so many events and decided what it can, on a thread that starts when it is ready.

    seconds: from then until it was done.
    """

    def __init__(self, pipeline: str, events: int, decisions: int) -> None:
        self.registry = CollectorRegistry()
        self.stop = threading.Event()
        self.seconds = 0.0
        self._pipeline = pipeline
        self._wanted = events, decisions
        self.thread = threading.Thread(target=self._watch, name="trial", daemon=True)

    def _watch(self) -> None:
        started = moved = time.monotonic()
        seen = (0, 0)
        while not self.stop.wait(0.02):
            now, counts = time.monotonic(), (self._rows("event"), self._rows("decision"))
            if counts != seen:
                seen, moved, self.seconds = counts, now, now - started
            read, decided = (count >= wanted for count, wanted in zip(counts, self._wanted, strict=True))
            if (read and decided) or now - moved > (SETTLED_SECONDS if read else QUIET_SECONDS):
                self.stop.set()

    def _rows(self, stage: str) -> int:
        labels = {"pipeline": self._pipeline, "stage": stage}
        return int(self.registry.get_sample_value("headrace_rows_total", labels) or 0)


def _read(brokers: str, topic: str, patience: float = 20.0) -> list[dict[str, Any]]:
    """Every message of a topic. Raises CannotTryError if some do not come in time."""
    expected = sum(counts(brokers, [topic], {})[topic] or ())
    watcher, deadline = Watcher(brokers, [topic], {}), time.monotonic() + patience
    try:
        while watcher.count(topic) < expected:
            if watcher.failed or time.monotonic() > deadline:
                said = watcher.failed or f"got {watcher.count(topic):,} in {patience:.0f} s"
                raise CannotTryError(f"topic {topic}: expected {expected:,} messages: {said}")
            time.sleep(0.01)
    finally:
        watcher.close()
    return [json.loads(value) for value in watcher.values[topic]]


def _job(settings: JobSettings, home: Path, **more: Any) -> JobSettings:
    """The settings of a job that leaves nothing behind and takes its model from where it is."""
    return settings.model_copy(
        update={"home": home, "registry": settings.registry_uri, "metrics_port": 0, "workers": 1, **more}
    )


def _auc(
    pipeline: Pipeline, events: pa.RecordBatch, decided: pa.RecordBatch, decisions: Sequence[Mapping[str, Any]]
) -> float | None:
    if pipeline.label is None or pipeline.sinks[0].encode is not None:
        return None
    true = labels(events, decided, pipeline.label, pipeline.events.time)
    truth = pl.DataFrame({"event_id": pl.Series(decided[pipeline.events.id]), "label": pl.Series(true)})
    scores = pl.DataFrame({name: [decision[name] for decision in decisions] for name in ("event_id", "score")}, strict=False)
    scores = scores.cast({"score": pl.Float64})
    judged = truth.join(scores, on="event_id").drop_nulls()
    found = auc(judged["label"].to_numpy(), judged["score"].to_numpy()) if judged.height else float("nan")
    return None if np.isnan(found) else found
