"""Systems under test: each a command line run as a child process, headrace itself too."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.workloads import Workload
from ops.broker import free_port
from streams.meters import STAGES

ROOT = Path(__file__).parent.parent
GRACE_SECONDS = 40.0
QUIET_SECONDS, AGAIN_SECONDS = 10.0, 0.2
"""A page says something every five seconds at least. One that is not there yet is asked again."""


class SystemDiedError(RuntimeError):
    """A system under test did not start, or died; the message has its last words."""


@dataclass(frozen=True)
class System:
    """A system under test. command: a template with {brokers} {input} {output} {model} {width} {linger} {home} {repo}
    {workers} {python}; empty: headrace itself. settings: headrace's own
    (streams/settings.py), and what is printed beside the figures. passes_on: it is a relay: its answers are the messages.
    more: what headrace's pipeline file has at its end. page: whether headrace serves its page, and somebody looks at it."""

    name: str
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    passes_on: bool = False
    more: str = ""
    page: bool = False


@dataclass
class Reader:
    """Who has a page open. looked: how often it has shown something."""

    page: str
    looked: int = 0

    def has_looked(self) -> bool:
        """Whether it has shown anything."""
        return self.looked > 0

    def read(self, goes_on: Callable[[], bool]) -> None:
        """Reads what the page says while `goes_on`; opens it again when it is gone."""
        while goes_on():
            with suppress(OSError, HTTPException), urllib.request.urlopen(self.page, timeout=QUIET_SECONDS) as events:
                for line in events:
                    self.looked += line.startswith(b"data:")
            time.sleep(AGAIN_SECONDS)


@dataclass
class Running:
    """A system that has been started. log: what it said. metrics: where its workers serve them. reader: who has its page open,
    if it has one."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics: tuple[str, ...] = ()
    reader: Reader | None = None

    def died(self) -> str:
        """Its last words if it is no longer there, else nothing."""
        code = self.process.poll()
        if code is None:
            return ""
        said = self.log.read_text(errors="replace").strip().splitlines()[-8:]
        return f"it ended with code {code}: {' | '.join(said) or 'it said nothing'}"


def fill(template: str, values: Mapping[str, str]) -> list[str]:
    """The words of a command line with its placeholders filled in; braces that are no placeholder stay."""
    words = []
    for word in shlex.split(template):
        for name, value in values.items():
            word = word.replace("{" + name + "}", value)
        words.append(word)
    return words


@contextmanager
def started(system: System, workload: Workload, values: Mapping[str, str]) -> Iterator[Running]:
    """Runs the system until this ends; then it is asked to leave by SIGTERM, and killed with all it started if it does not.

    values: of the placeholders. Raises SystemDiedError if it cannot be started.
    """
    home = Path(values["home"])
    home.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    metrics: tuple[str, ...] = ()
    environment["PYTHONPATH"] = str(ROOT)
    if system.command:
        command = fill(system.command, {**values, "python": sys.executable})
    else:
        command, more, metrics = headrace(system, workload, values)
        environment |= more
    log = home / "system.log"
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise SystemDiedError(f"{system.name}: cannot start {command[0]}: {error.strerror}") from None
    reader = Reader(f"http://127.0.0.1:{environment['HEADRACE_PAGE_PORT']}/events") if system.page else None
    if reader:
        threading.Thread(target=reader.read, args=(lambda: process.poll() is None,), name="reader", daemon=True).start()
    try:
        yield Running(process, log, metrics, reader)
    finally:
        leave(process)


def headrace(
    system: System, workload: Workload, values: Mapping[str, str]
) -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """The command, its environment and the addresses of its metrics."""
    home, job = Path(values["home"]), workload.job()
    workers = int(system.settings.get("workers", values["workers"]))
    file = home / "job.py"
    text = job.pipeline + system.more
    file.write_text(text.replace("{input}", values["input"]).replace("{output}", values["output"]))
    port = free_ports(workers + system.page)
    settings = {
        "HEADRACE_BROKERS": values["brokers"],
        "HEADRACE_HOME": str(home),
        "HEADRACE_WORKERS": str(workers),
        "HEADRACE_METRICS_PORT": str(port),
        "HEADRACE_KAFKA": json.dumps({"linger.ms": values["linger"]}),
        "HEADRACE_PAGE_PORT": str(port + workers if system.page else 0),
        **{f"HEADRACE_{name.upper()}": str(value) for name, value in system.settings.items()},
    }
    command = [sys.executable, "-m", "ops", "run", f"{file}:job", "--from", "earliest"]
    pages = tuple(f"http://127.0.0.1:{port + worker}" for worker in range(workers))
    return command, job.environment | settings, pages


def free_ports(count: int) -> int:
    """The first of `count` ports in a row on 127.0.0.1 that nobody listens on."""
    while True:
        first = free_port()
        if first + count <= 65_535 and all(_free(first + k) for k in range(1, count)):
            return first


def _free(port: int) -> bool:
    with socket.socket() as listener, suppress(OSError):
        listener.bind(("127.0.0.1", port))
        return True
    return False


def leave(process: subprocess.Popen[bytes], grace: float = GRACE_SECONDS) -> None:
    """SIGTERM, and after `grace` seconds SIGKILL to the whole process group of the process."""
    if process.poll() is None:
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_ready(running: Running, wait: float = 120.0) -> None:
    """Waits until every worker says that it is ready, and somebody has seen the page, if there is one. Raises
    SystemDiedError."""
    deadline = time.monotonic() + wait
    asked: list[Callable[[], bool]] = [partial(_answers, f"{worker}/readyz") for worker in running.metrics]
    if running.reader:
        asked.append(running.reader.has_looked)
    for done in asked:
        while not done():
            if dead := running.died():
                raise SystemDiedError(dead)
            if time.monotonic() > deadline:
                raise SystemDiedError(f"not ready after {wait:.0f} s, see {running.log}")
            time.sleep(0.1)


@dataclass(frozen=True)
class Counters:
    """headrace's counters at one moment, over all workers: seconds by stage, events, batches and the rows in them; of its
    state the entities and the bytes, by entity."""

    seconds: dict[str, float]
    events: float
    batches: float
    rows: float
    entities: dict[str, float]
    bytes: dict[str, float]

    def state(self, shards: int) -> dict[str, Any]:
        """What is held of each entity: how many, MB in all and for each of so many shards."""
        return {
            name: {"entities": int(count), "mb": round(size / 1e6, 1), "mb_a_shard": round(size / 1e6 / shards, 2)}
            for name, count in self.entities.items()
            if (size := self.bytes.get(name, 0.0))
        }

    def since(self, before: "Counters") -> dict[str, Any]:
        """stages: µs per event by stage; batch_rows: mean."""
        events, batches = self.events - before.events, self.batches - before.batches
        if events <= 0:
            return {"stages": None, "batch_rows": None}
        stages = {name: round((self.seconds[name] - before.seconds[name]) * 1e6 / events, 3) for name in STAGES}
        mean = round((self.rows - before.rows) / batches, 2) if batches else None
        return {"stages": stages, "batch_rows": {"mean": mean, "batches": int(batches)}}


def counters(running: Running) -> Counters | None:
    """headrace's counters now; None for a system that shows none."""
    totals: dict[tuple[str, str], float] = {}
    for page in running.metrics:
        for family in text_string_to_metric_families(_get(f"{page}/metrics") or ""):
            for sample in family.samples:
                key = sample.name, sample.labels.get("stage", sample.labels.get("entity", ""))
                totals[key] = totals.get(key, 0.0) + sample.value
    if not totals:
        return None
    seconds = {stage: totals.get(("headrace_seconds_total", stage), 0.0) for stage in STAGES}
    batches, rows = (totals.get((f"headrace_batch_rows_{part}", ""), 0.0) for part in ("count", "sum"))
    entities, sizes = (
        {label: value for (name, label), value in totals.items() if name == wanted and label}
        for wanted in ("headrace_entities", "headrace_state_bytes")
    )
    return Counters(seconds, totals.get(("headrace_rows_total", "event"), 0.0), batches, rows, entities, sizes)


def _answers(url: str) -> bool:
    return _get(url) is not None


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return None
