"""One worker of a job: the dataflow in this thread, metrics and health beside it, SIGTERM to drain and leave."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from prometheus_client import CollectorRegistry

from ops.errors import report
from ops.server import Health, serve
from streams.pipeline import Pipeline, load
from streams.run import run
from streams.settings import JobSettings


def work(
    pipeline: Pipeline, settings: JobSettings, worker: int = 0, addresses: Sequence[str] = (), say_ready: bool = True
) -> None:
    """Runs a worker until it is asked to leave by SIGTERM or SIGINT. Raises what stopped it otherwise."""
    stop = threading.Event()
    health, registry = Health(), CollectorRegistry()
    server = serve(settings.metrics_port + worker, registry, health) if settings.metrics_port else None

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    def ready() -> None:
        health.ready = True
        if say_ready:
            where = f", metrics on http://127.0.0.1:{server.server_port}/metrics" if server else ""
            print(f"{pipeline.name}: worker {worker} of {max(1, len(addresses))} ready{where}", flush=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    try:
        run(pipeline, settings, registry=registry, worker=worker, addresses=addresses, stop=stop, on_ready=ready)
    finally:
        health.alive = False
        if server:
            server.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a worker that ops/workers.py starts; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m ops.worker")
    parser.add_argument("pipeline")
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--addresses", required=True, help="all workers' addresses, separated by ;")
    options = parser.parse_args(arguments)
    try:
        work(load(options.pipeline), JobSettings(), options.worker, options.addresses.split(";"))
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process and people must see it
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
