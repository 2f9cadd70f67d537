"""Runs a pipeline's dataflow: one worker of a cluster, with recovery, until it is asked to leave."""

import gc
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from bytewax._bytewax import RecoveryConfig, cluster_main, init_db_dir, run_main
from prometheus_client import CollectorRegistry

from models.files import write_whole
from streams.checkpointer import KEPT_BY_BYTEWAX, checkpointing
from streams.flow import build
from streams.job import Job
from streams.peers import await_peers
from streams.pipeline import Pipeline
from streams.positions import forget_unfinished
from streams.rehearsal import rehearse
from streams.routing import check_workers
from streams.settings import JobSettings
from streams.start import MADE, RecoveryError, Start, check, needs, store_of
from streams.store import Store
from streams.swapping import Swapping
from streams.tidy import tidying

PEERS_SECONDS = 10.0


def run(
    pipeline: Pipeline,
    settings: JobSettings,
    *,
    registry: CollectorRegistry,
    worker: int = 0,
    addresses: Sequence[str] = (),
    stop: threading.Event | None = None,
    on_ready: Callable[[], None] = lambda: None,
    clock_ns: Callable[[], int] = time.time_ns,
    **parts: Any,
) -> None:
    """Runs worker number `worker` of len(addresses) (none: one worker) until `stop` is set or the source ends.

    `stop` lets the sources end, an epoch pass and everything be delivered. on_ready is called when every part is open. `parts`
    replaces the job's parts (streams/job.py). Raises what a step raised, as itself, and ValueError for a number of workers that
    does not divide 840.
    """
    if settings.recovery:
        begins = check(pipeline, settings, whole=False)
        parts = {"start": Start.load(store_of(pipeline, settings)), "epoch": begins} | parts
    workers = check_workers(max(1, len(addresses)))
    job = Job(pipeline, settings, registry, clock_ns, workers=workers, worker=worker, **parts)
    if stop is not None:
        job.stop = stop
    job.open()
    rehearsed = rehearse(job)
    gc.collect()
    gc.freeze()  # what is loaded now stays: the collector need not walk through a million objects of libraries again and again
    folder = recovery_folder(pipeline, settings, worker, workers) if settings.recovery else None
    here = job.workers_here
    kept = KEPT_BY_BYTEWAX if len(here) == workers else None
    recovery = RecoveryConfig(str(folder), kept) if folder else None
    epoch = timedelta(seconds=settings.epoch_seconds)
    flow = build(job)
    on_ready()
    try:
        with ExitStack() as around:
            around.enter_context(tidying())
            if folder and worker == here.start:
                around.enter_context(checkpointing(folder))
            if settings.model_look_seconds:
                around.enter_context(closing(Swapping(job, rehearsed)))
            del rehearsed  # a version that goes is to be freed
            around.enter_context(native_errors_to(settings.home / f"native-{worker}.log"))
            if len(addresses) > 1:
                host = addresses[worker].rpartition(":")[0]
                await_peers([each for each in addresses[:worker] if each.startswith(f"{host}:")], PEERS_SECONDS)
                cluster_main(flow, list(addresses), worker, epoch_interval=epoch, recovery_config=recovery)
            else:
                run_main(flow, epoch_interval=epoch, recovery_config=recovery)
        if pipeline.record:
            job.journal.flush()
        job.finish()
    except BaseException as error:
        inner = innermost(error)
        if inner is error:
            raise
        raise inner from None
    finally:
        job.close()


@contextmanager
def native_errors_to(log: Path) -> Iterator[None]:
    """What native code writes to stderr (Rust's panics, librdkafka's log) goes to a file: people get the Python error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    python_stderr = sys.stderr
    python_stderr.flush()
    kept = os.dup(2)
    try:
        with log.open("wb") as file, os.fdopen(os.dup(kept), "w", buffering=1) as ours:
            os.dup2(file.fileno(), 2)
            if python_stderr is sys.__stderr__:
                sys.stderr = ours
            yield
    finally:
        sys.stderr = python_stderr
        os.dup2(kept, 2)
        os.close(kept)


def innermost(error: BaseException) -> BaseException:
    """The Python error at the bottom of what Bytewax raised."""
    seen: set[int] = set()
    while id(error) not in seen and (
        error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__)
    ):
        seen.add(id(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error


def recovery_folder(pipeline: Pipeline, settings: JobSettings, worker: int = 0, workers: int = 1, wait: float = 30.0) -> Path:
    """The recovery store of a pipeline; worker 0 makes it, the others wait for it. A new one has as many partitions as workers,
    if the settings do not say how many: each worker then writes one, and reads one when the job starts again.

    Raises TimeoutError after `wait` seconds.
    """
    folder = store_of(pipeline, settings)
    made = folder / MADE
    if worker == 0 and made.exists():
        forget_unfinished(folder)
    if worker == 0 and not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _without_unused(folder, pipeline.name)
        making = folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        init_db_dir(making, settings.recovery_partitions or workers)
        for file in making.iterdir():
            file.rename(folder / file.name)  # whole, whenever it is killed
        making.rmdir()
        write_whole(made, json.dumps(needs(pipeline, settings)))
    deadline = time.monotonic() + wait
    while not made.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"recovery store {folder}: worker 0 did not make it within {wait:.0f} s")
        time.sleep(0.05)
    return folder


def _without_unused(folder: Path, name: str) -> None:
    """Deletes what was left of a store that was being made. Raises RecoveryError for one that was in use."""
    try:
        with Store(folder) as store:
            files, used = store.files, store.progress.epoch is not None
        what = f"recovery store {folder}: it does not say what it was made for ({MADE} is gone)" if used else ""
    except RecoveryError as error:
        what = str(error)
    if what:
        raise RecoveryError(
            f"{what}: headrace run {name} --rebuild makes the state anew from the topic and goes on where it was"
        )
    for file in files:
        for each in folder.glob(f"{file.name}*"):
            each.unlink()
