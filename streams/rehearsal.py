"""A rehearsal: a made-up event of each kind goes through every step before the first real one comes.

Kernels are compiled then (the first time on a machine that takes a quarter of a minute) and libraries loaded.
"""

import gc
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
from prometheus_client import CollectorRegistry

from features.memo import Memo
from features.schema import Integer, Kind, Number, Schema, Text, Time, Vector
from features.state import State
from features.streaming import Cut, Group
from models.registry import resolve, without_pool
from sinks.messages import Encoder
from sinks.records import shaped
from streams.decide import Work, answers, together
from streams.decode import APPENDED, PROVENANCE
from streams.exchange import Gathered
from streams.job import Job
from streams.pipeline import Decisions, Pipeline
from streams.record import entry
from streams.routing import page_name, shard_name
from streams.settings import JobSettings


def rehearse(job: Job) -> Work:
    """Runs what a job's steps call, on rows whose outcome nobody sees, which it returns as they are before they are scored.
    Raises what they raise."""
    pipeline = job.pipeline
    rows = examples(pipeline.events.schema)
    n = rows.num_rows
    numbers = [pa.array([0] * n, field.type) for field in PROVENANCE if field.name != "_key"]
    provenance = [pa.array([b"rehearsal"] * n, pa.binary()), *numbers]
    raw = pa.RecordBatch.from_arrays([*provenance, pa.array([b"{}"] * n, pa.binary())], [*PROVENANCE.names, "_value"])
    job.decoder(raw)
    reads = np.ones(n, np.bool_)
    times = [pa.array([0] * n, Time.arrow)] if pipeline.events.time == APPENDED else []
    columns = [*rows.columns, *raw.columns, *times]
    batch = pa.RecordBatch.from_arrays(columns, [*rows.schema.names, *raw.schema.names, *([APPENDED] if times else [])])
    seen = Memo(batch)
    for group, cutter in zip(pipeline.groups, job.cutters, strict=True):
        keep(group, cutter(seen, reads))
    gathered = Gathered(batch.select(job.kept), np.full((len(job.streaming_names), n), np.nan))
    work = together([(shard_name(0), gathered)], job.streaming_names, job.deciding)
    work = work.deciding.complete(work)
    scored = rehearse_deciding(job, work, pipeline.sinks)
    if pipeline.drift:
        job.reference.count(scored.matrix, scored.scores)
    return work


def rehearse_deciding(job: Job, work: Work, own: Sequence[Decisions]) -> Work:
    """The steps that a version of the model has a part in; returns what it has scored. own: sinks that may encode as they like,
    which they do on the dataflow's thread alone; the others are made use of on any."""
    pipeline = job.pipeline
    work = work.deciding.score(work)
    sinks = [sink for sink in pipeline.sinks if sink.encode is None or sink in own]
    decisions, _ = answers(work, sinks, Encoder())
    if pipeline.record:
        shaped(pa.Table.from_batches([job.log_rows([entry(work, decisions, 0)])]))
    return work


def warm_before_fork(pipeline: Pipeline, settings: JobSettings) -> None:
    """Imports and loads what a job's workers need, in a process that forks them: it leaves no thread and no file open.

    What fails here fails again in the workers, which say so. Stored features and engines with threads of their own are left
    to the workers.
    """
    without_pool()
    job = Job(pipeline, settings, CollectorRegistry(), time.time_ns)
    for shard in range(pipeline.shards):
        page_name(shard, 0)
    with suppress(Exception):
        model = pipeline.model
        forks = model.threads == 1 and model.engine is None  # neither threads nor CUDA outlive a fork
        if forks and pipeline.stored is None and not pipeline.push:
            rehearse(job)
        else:
            resolve(settings.registry_uri, pipeline.model.name, into=settings.home / "models")
    job.close()
    del job
    gc.collect()
    gc.freeze()


def keep(group: Group, cut: Cut) -> None:
    """Feeds a cut to a state, then so many entities that the table grows and some have to leave, and moves it."""
    state = State(group, most=8)
    state.update(cut)
    many = np.arange(1, 65)
    rows = cut.take(np.resize(np.arange(len(cut.row)), len(many)))
    for _ in range(2):
        state.update(rows._replace(hash=many.astype(np.uint64), bits=np.full(len(many), 0xFFFF_FFFF, np.uint32)))
        many += len(many)
        state.changed()
    State(group).load([state.dump()])


def examples(schema: Schema) -> pa.RecordBatch:
    """A row of each kind of event (one, where there are no kinds) with a value in every field."""
    n = max(1, len(schema.kinds))
    columns = []
    for field in schema.fields.values():
        match field:
            case Kind():
                columns.append(pa.DictionaryArray.from_arrays(pa.array(range(n), pa.int8()), list(field.values)))
            case Text() | Integer(secret=True):
                columns.append(pa.array(["rehearsal"] * n))
            case Time():
                columns.append(pa.array([field.bounds_us[0]] * n).cast(field.arrow))
            case Vector():
                columns.append(pa.array([[max(0.0, field.low)] * field.width] * n, field.arrow))
            case Integer() | Number():
                columns.append(pa.array([field.low] * n, field.arrow))
    return pa.RecordBatch.from_arrays(columns, schema=schema.arrow())
