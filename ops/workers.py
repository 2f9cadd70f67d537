"""A job as a cluster of processes on this machine: all start, all stop, and if one dies the others do not go on without it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from pydantic import SecretStr

from ops.broker import free_port
from ops.errors import PREFIX
from ops.logs import as_json, parsed, say
from streams.settings import JobSettings

GRACE_SECONDS = 30.0
LOOK_SECONDS, WORDS_SECONDS = 0.05, 5.0
OF_ANOTHER = ("Send thread panic", "MergeQueue poisoned", "timely communication error")
"""What a worker says that has lost another."""

Said = queue.SimpleQueue[tuple[int, str]]


class WorkerDiedError(RuntimeError):
    """A worker ended by itself; the message says which, and what it said."""


@dataclass(frozen=True)
class Member:
    """A worker's process, and the thread that reads what it says on stderr."""

    number: int
    process: subprocess.Popen[str]
    listener: threading.Thread


def run_cluster(pipeline: str, settings: JobSettings) -> None:
    """Starts settings.workers workers of a pipeline and waits for them; SIGTERM and SIGINT let all of them drain and leave.

    Raises WorkerDiedError if one dies; the others are ended.
    """
    addresses = ";".join(f"127.0.0.1:{free_port()}" for _ in range(settings.workers))
    command = [sys.executable, "-m", "ops.worker", pipeline, "--addresses", addresses, "--worker"]
    environment = os.environ | as_environment(settings)
    asked, said, members, told = threading.Event(), Said(), list[Member](), False
    with on_signals(asked.set):
        try:
            for number in range(settings.workers):
                members.append(start([*command, str(number)], environment, number, said))
            while any(member.process.poll() is None for member in members):
                if any(member.process.poll() not in (None, 0) for member in members):
                    raise WorkerDiedError(last_words(members, said))
                if asked.is_set() and not told:
                    told = True
                    deadline = time.monotonic() + grace(settings)
                    for member in members:
                        member.process.terminate()
                if told and time.monotonic() > deadline:
                    slow = ", ".join(str(member.number) for member in members if member.process.poll() is None)
                    raise WorkerDiedError(f"worker {slow} did not leave within {grace(settings):.0f} s and was killed")
                time.sleep(LOOK_SECONDS)
            if any(member.process.returncode for member in members):
                raise WorkerDiedError(last_words(members, said))
        finally:
            end([member.process for member in members], 0)


def grace(settings: JobSettings) -> float:
    """The seconds that workers have to leave: the epoch has to end, and what is on its way to be delivered."""
    return GRACE_SECONDS + settings.epoch_seconds


def start(command: Sequence[str], environment: dict[str, str], number: int, said: Said) -> Member:
    """Starts one worker, which ends when this process does. Its errors go to `said`, all else on its stderr is passed on."""
    process = subprocess.Popen(
        command, env=environment, process_group=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    listener = threading.Thread(target=listen, args=(process.stderr, number, said), name=f"worker {number}", daemon=True)
    listener.start()
    return Member(number, process, listener)


def listen(lines: IO[str], number: int, said: Said) -> None:
    """Sorts what a worker says until it is gone."""
    with lines:
        for line in lines:
            if words := heard(line.rstrip("\n"), number):
                said.put((number, words))


def heard(line: str, number: int) -> str:
    """What a worker dies of, if a line of its stderr says that. Any other line is passed on; one in JSON is in any case."""
    if line.startswith(PREFIX):
        return line.removeprefix(PREFIX).strip()
    told = parsed(line) if as_json() else {}
    if told:
        print(f"{line}\n", end="", file=sys.stderr, flush=True)
        return str(told["message"]) if told["level"] == "critical" else ""
    say(line if as_json() else f"worker {number}: {line}", level="warning", worker=number)
    return ""


def last_words(members: Sequence[Member], said: Said) -> str:
    """What killed the cluster: of the workers that died, the first that a signal killed or that said more than that another is
    gone. For that it waits a little: who fails has more to do before it is gone than who has lost it."""
    words = list[tuple[int, str]]()
    until = time.monotonic() + WORDS_SECONDS
    while True:
        died = [member for member in members if member.process.poll() not in (None, 0)]
        for member in died:
            member.listener.join(1)
        words += [said.get() for _ in range(said.qsize())]
        own = [each for each in words if not any(told in each[1] for told in OF_ANOTHER)]
        killed = [member for member in died if member.process.returncode < 0]
        if own or killed or time.monotonic() > until or len(died) == len(members):
            break
        time.sleep(LOOK_SECONDS)
    for number, line in own or ([] if killed else words):
        return f"worker {number} of {len(members)}: {line}"
    first = (killed or died)[0]
    code = first.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code} and said nothing"
    return f"worker {first.number} of {len(members)} {how}"


@contextmanager
def on_signals(call: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `call` while this lasts."""

    def handle(number: int, frame: FrameType | None) -> None:
        call()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(processes: Sequence[subprocess.Popen[Any]], grace: float) -> None:
    """Asks the processes to leave, and after `grace` seconds kills those that did not."""
    for process in processes:
        if grace and process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin:
            process.stdin.close()


def as_environment(settings: JobSettings) -> dict[str, str]:
    """The settings as variables that a child process reads them from, what is secret too."""
    secrets = {name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)}
    values = settings.model_dump(mode="json") | secrets
    return {
        f"HEADRACE_{name.upper()}": json.dumps(v) if isinstance(v, dict | bool) else str(v)
        for name, v in values.items()
        if v is not None
    } | {"HEADRACE_HOME": str(Path(settings.home).absolute())}
