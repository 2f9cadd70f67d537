"""One worker of a job: the dataflow in this thread, metrics and health beside it, SIGTERM to drain and leave."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pyarrow as pa
from prometheus_client import CollectorRegistry, Gauge, disable_created_metrics

from ops.beside import until_parent_ends
from ops.errors import FAILED, hush, report
from ops.faults import killed_at
from ops.logs import say, speak
from ops.server import Health, at, serve
from streams.pipeline import Pipeline, load
from streams.run import run
from streams.settings import JobSettings

SWITCH_SECONDS = 0.0005
"""Who wants the interpreter waits for so long before he who has it is asked to let go. Python's own 5 ms are waited for again
and again by the dataflow, which lets go in each call of a kernel or of the model, while a thread beside it loads a version."""

POOL = "ARROW_DEFAULT_MEMORY_POOL"
"""Arrow's own variable, which stands if it is set. Otherwise its memory comes from the system's allocator: mimalloc, Arrow's
choice, is no faster here and keeps more after each backlog, where no one can give it back (streams/tidy.py)."""


def work(
    pipeline: Pipeline,
    settings: JobSettings,
    worker: int = 0,
    addresses: Sequence[str] = (),
    *,
    restarts: int | None = None,
    on_ready: Callable[[], None] = lambda: None,
    **parts: Any,
) -> None:
    """Runs a worker until it is asked to leave by SIGTERM or SIGINT. Raises what stopped it otherwise.

    restarts: how often the job has been started again, for its metrics. parts: see streams/run.py.
    """
    speak(settings.log, pipeline.name, worker)
    stop = threading.Event()
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a line a counter of when it began, which nobody asks for
    health, registry = Health(), CollectorRegistry(auto_describe=True)  # so that one may ask for some of them by name
    port = settings.metrics_port
    server = serve(settings.metrics_host, port + worker % settings.workers, registry, health) if port else None

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    if restarts is not None:
        times = Gauge("headrace_restarts", "Times that the job was started again", ["pipeline"], registry=registry)
        times.labels(pipeline.name).set(restarts)

    def ready() -> None:
        health.ready = True
        on_ready()
        where = f", metrics on http://{at(settings.metrics_host, server.server_port)}/metrics" if server else ""
        say(f"{pipeline.name}: worker {worker} of {max(1, len(addresses))} ready{where}", out=True)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    if POOL not in os.environ:
        pa.set_memory_pool(pa.system_memory_pool())
    try:
        killed = killed_at(os.environ, worker, restarts or 0)
        run(
            pipeline,
            settings,
            registry=registry,
            worker=worker,
            addresses=addresses,
            stop=stop,
            on_ready=ready,
            say=say,
            at=killed,
            moved=health.moved,
            **parts,
        )
    finally:
        sys.setswitchinterval(interval)
        health.failed = True
        for number, handler in before.items():
            signal.signal(number, handler)
        if server:
            server.close()


def leave_with_parent() -> None:
    """Ends this process when standard input ends, which is when the process that started it is gone."""

    def watch() -> None:
        until_parent_ends()
        os._exit(FAILED)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a worker that ops/workers.py starts; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m ops.worker")
    parser.add_argument("pipeline")
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--addresses", required=True, help="all workers' addresses, separated by ;")
    options = parser.parse_args(arguments)
    hush()
    leave_with_parent()
    try:
        work(load(options.pipeline), JobSettings(), options.worker, options.addresses.split(";"))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process and people must see it
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
