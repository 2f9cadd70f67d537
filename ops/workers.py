"""A job as a cluster of processes on this machine: all start, all stop, and if one dies the others do not go on without it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from ops.broker import free_port
from streams.settings import JobSettings

GRACE_SECONDS = 30.0


class WorkerDiedError(RuntimeError):
    """A worker ended by itself."""


def run_cluster(pipeline: str, settings: JobSettings) -> None:
    """Starts settings.workers workers of a pipeline and waits for them; SIGTERM and SIGINT let all of them drain and leave.

    Raises WorkerDiedError if one dies (it has said why on stderr); the others are ended.
    """
    addresses = ";".join(f"127.0.0.1:{free_port()}" for _ in range(settings.workers))
    environment = os.environ | as_environment(settings)
    command = [sys.executable, "-m", "ops.worker", pipeline, "--addresses", addresses, "--worker"]
    processes = [
        subprocess.Popen([*command, str(number)], env=environment, start_new_session=True) for number in range(settings.workers)
    ]
    asked = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        for process in processes:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        while any(process.poll() is None for process in processes):
            died = [number for number, process in enumerate(processes) if process.poll() not in (None, 0)]
            if died:
                raise WorkerDiedError(f"worker {died[0]} of {settings.workers} died (code {processes[died[0]].returncode})")
            time.sleep(0.05)
        died = [number for number, process in enumerate(processes) if process.returncode != 0]
        if died:
            raise WorkerDiedError(f"worker {died[0]} of {settings.workers} died (code {processes[died[0]].returncode})")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        end(processes, GRACE_SECONDS if asked else 2.0)


def end(processes: list[subprocess.Popen[bytes]], grace: float) -> None:
    """Asks the processes to leave, and after `grace` seconds kills those that did not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def as_environment(settings: JobSettings) -> dict[str, str]:
    """The settings as variables that a child process reads them from."""
    import json

    values = settings.model_dump(mode="json")
    return {
        f"HEADRACE_{name.upper()}": json.dumps(v) if isinstance(v, dict | bool) else str(v) for name, v in values.items()
    } | {"HEADRACE_HOME": str(Path(settings.home).absolute())}
