"""`headrace run --restart`: a job that dies is started again, with back-off and a limit, and what kills it is searched for.

The process that starts the workers has imported everything and loaded every kernel before, and starts no thread: a worker is a
fork of it, ready in a tenth of the time that a new process takes. When one worker dies the others are killed at once, since
Bytewax's own notice takes ten seconds, and all start again from the last durable epoch. So it is where the job runs on several
machines, which meet before each start (ops/meeting.py).
"""

import os
import selectors
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from confluent_kafka import KafkaException

from ops.beginning import Begun, begin
from ops.errors import FAILED, report
from ops.logs import say
from ops.meeting import BYE, CLOSED, GONE, LEAVE, Link
from ops.suspects import Found, Kept, after
from ops.worker import leave_with_parent, work
from ops.workers import GRACE_SECONDS, OF_ANOTHER, WORDS_SECONDS, WorkerDiedError, grace, heard, on_signals
from sinks.messages import DeliveryError
from sinks.staged import FencedError, StaleSnapshotError
from streams.pipeline import Pipeline
from streams.reader import SourceError
from streams.rehearsal import warm_before_fork
from streams.settings import JobSettings
from streams.start import RecoveryError, made_for, store_of
from streams.trail import ALL, Trail

LOOK_SECONDS = 0.02
FINAL, NOT_READY, OUTSIDE, AWAY = 3, 4, 5, 6
FROM_OUTSIDE = (DeliveryError, SourceError, KafkaException, OSError)
LONGEST_WAIT = 30.0
MOST_ASIDE = 10
OF_THE_DISK = ("disk is full", "disk I/O error")
"""What SQLite says, whoever raises it."""


@dataclass
class Worker:
    """A forked worker: its number of all, what it says on stderr, and how it ended (None: it has not)."""

    number: int
    of: int
    pid: int
    stderr: int
    said: str = ""
    words: list[str] = field(default_factory=list)
    code: int | None = None

    def read(self) -> bool:
        """Takes what it has said; False at the end."""
        try:
            data = os.read(self.stderr, 65_536)
        except BlockingIOError:
            return False
        *lines, self.said = (self.said + data.decode(errors="replace")).split("\n")
        for line in lines:
            if words := heard(line, self.number):
                self.words.append(words)
        return bool(data)

    def ended(self, wait: bool = False) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    @property
    def lost_another(self) -> bool:
        """Whether it has died of another worker's end, as it says itself."""
        return (self.code or 0) > 0 and any(told in line for told in OF_ANOTHER for line in self.words)

    def last_words(self) -> str:
        """What it died of."""
        who = f"worker {self.number} of {self.of}"
        if self.words:
            return f"{who}: {self.words[0]}"
        code = self.code or 0
        return (
            f"{who} was killed by {signal.Signals(-code).name}"
            if code < 0
            else f"{who} ended with code {code} and said nothing"
        )


@dataclass(frozen=True)
class Death:
    """How a life of the job ended. code: of the worker that died first; AWAY: another machine's life did; 0: it was asked to
    leave, or its source has ended. for_others: only another machine was asked to."""

    code: int
    words: str = ""
    for_others: bool = False

    @property
    def by_a_message(self) -> bool:
        """Whether a message may be what it died of; nobody knows, but these are not the world's doing."""
        return self.code not in (FINAL, NOT_READY, OUTSIDE, AWAY)


def run_again(
    pipeline: Pipeline,
    settings: JobSettings,
    door: Callable[[], None],
    called: str,
    *,
    anew: bool = False,
    rebuilt: bool = False,
) -> int:
    """Runs a job until it is asked to leave, and starts it again when it dies; returns the exit code of `door` if that refuses.

    door: what is checked before the first start, in a process of its own. called: what the pipeline is on the command line.
    anew: it begins elsewhere than where it was, so that what is known of messages that killed it is of others. rebuilt: it
    reads again what it was past. Raises WorkerDiedError, which says what the last death was, where the first start is refused,
    deaths are too many (`restart_deaths` within `restart_seconds`), or the recovery store is gone.
    """

    def tell(words: str, level: str = "error", **fields: Any) -> None:
        say(f"{pipeline.name}: {words}", level=level, topic=pipeline.events.topic, **fields)

    folder = settings.home / "restart" / pipeline.name
    folder.mkdir(parents=True, exist_ok=True)
    trail, kept = Trail(folder / "trail"), Kept.load(folder / "deaths.json")
    if code := refused(door, lambda: warm_before_fork(pipeline, settings)):
        return code
    if anew or rebuilt:
        kept = Kept(kept.file, aside={} if anew else kept.aside)
        kept.save()
    searches = settings.recovery and settings.machines == 1 and (settings.order or pipeline.events.order) == "arrival"
    asked, lives, in_vain = threading.Event(), 0, 0
    store, had = store_of(pipeline, settings), False
    deaths, found = Patience(settings.restart_deaths, settings.restart_seconds), Patience(MOST_ASIDE, settings.restart_seconds)
    with on_signals(asked.set):
        while True:
            there = made_for(store) is not None
            if had and not there:
                raise WorkerDiedError(f"{store} was there and is gone: headrace run again says how to go on")
            had = there
            if kept.search and trail.past(kept.search.ranges):
                kept.search = None
            trail.clear()
            before = trail.safe()
            begun = begin(pipeline, settings, called, asked, partial(tell, level="info"), rebuilds=rebuilt and not lives)
            if begun is None:
                return 0
            death = life(pipeline, settings, kept, lives, asked, begun)
            lives += 1
            if death.for_others and not asked.is_set():
                continue
            if not death.code:
                return 0
            if asked.is_set() or death.code == FINAL or (death.code == NOT_READY and lives == 1):
                raise WorkerDiedError(death.words)
            searched = kept.search
            message = None
            if searches and death.by_a_message:
                kept.search, message = after(kept.search, trail.worked())
                if message:
                    set_aside(kept, message, death, pipeline, tell)
                kept.save()
            piece = kept.search.piece if kept.search else 0
            narrowed = message or (piece and kept.search != searched)
            counts = not narrowed and death.code != AWAY
            if (counts and deaths.ends(time.monotonic())) or (message and found.ends(time.monotonic())):
                raise WorkerDiedError(f"gave up after {lives} deaths, the last one: {death.words}")
            in_vain = 0 if not counts or trail.safe() > before else in_vain + 1
            seconds = pause(in_vain)
            careful = f", {piece} messages at a time where it died" if piece else ""
            again = f"started again{f' in {seconds:.1f} s' if seconds else ''}{careful}"
            tell(f"{death.words}; {again}", exit_code=death.code, deaths=lives, in_work=trail.worked())
            if asked.wait(seconds):
                return 0


def pause(in_vain: int) -> float:
    """The seconds to wait after so many deaths, one after the other, that brought the job no further."""
    return 0.0 if in_vain < 2 else float(min(LONGEST_WAIT, 0.5 * 2 ** (in_vain - 2)))


class Patience:
    """Ends when something has come more than `most` times within `seconds`."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._times = deque[float]()

    def ends(self, now: float) -> bool:
        """It has come again, at this time."""
        self._times.append(now)
        while self._times[0] < now - self._seconds:
            self._times.popleft()
        return len(self._times) > self._most


def set_aside(kept: Kept, found: Found, death: Death, pipeline: Pipeline, tell: Callable[..., None]) -> None:
    """Notes a message that is worked on no more."""
    seen = f"{found.deaths} deaths, the last two of this message alone"
    if not pipeline.events.schema.secrets:
        seen += f": {death.words}"
    kept.aside[found.partition, found.offset] = seen
    place = f"{pipeline.events.topic}/{found.partition}@{found.offset}"
    told = {"kind": "dead_letter", "code": "poison", "partition": found.partition, "offset": found.offset}
    tell(f"{place} is set aside as a dead letter (poison): {seen}", **told)


def refused(door: Callable[[], None], meanwhile: Callable[[], None]) -> int:
    """The exit code of a process that opens `door`, which may start threads."""
    pid = forked()
    if not pid:
        leave(door)
    try:
        meanwhile()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return code


def life(pipeline: Pipeline, settings: JobSettings, kept: Kept, lives: int, asked: threading.Event, begun: Begun) -> Death:
    """Starts all workers of this machine, waits for the first to die or all to leave, and ends them all."""
    held, alive = os.pipe()
    workers = list[Worker]()
    selector = selectors.DefaultSelector()
    first = settings.machine * settings.workers
    try:
        for number in range(first, first + settings.workers):
            reads, writes = os.pipe()
            pid = forked()
            if not pid:
                os.close(alive)
                os.dup2(held, 0)
                os.dup2(writes, 2)
                be_worker(pipeline, settings, number, begun, kept, lives)
            os.close(writes)
            os.set_blocking(reads, False)
            workers.append(Worker(number, len(begun.addresses), pid, reads))
            selector.register(reads, selectors.EVENT_READ, workers[-1])
        return wait(workers, selector, asked, grace(settings), begun.link)
    finally:
        for worker in workers:
            if not worker.ended():
                os.kill(worker.pid, signal.SIGKILL)
        for worker in workers:
            worker.ended(wait=True)
            os.close(worker.stderr)
        if begun.link is not None:
            begun.link.close()
        selector.close()
        os.close(held)
        os.close(alive)


def wait(
    workers: Sequence[Worker],
    selector: selectors.BaseSelector,
    asked: threading.Event,
    seconds: float = GRACE_SECONDS,
    link: Link | None = None,
) -> Death:
    """Waits until one dies, or all have left, for which they have so many seconds once asked. Of one that has only lost another
    it is not known yet why: who fails has more to do before it is gone than who has lost it, so that is waited for a little."""
    told, leaves, gone, deadline, until = False, False, "", 0.0, 0.0
    while True:
        for key, _ in selector.select(LOOK_SECONDS):
            if not key.data.read():
                selector.unregister(key.fileobj)
        while link and (said := link.next()):
            leaves = leaves or said[0] == LEAVE
            gone = said[1] if said[0] == GONE or (said[0] == CLOSED and not told) else gone
        left = [worker for worker in workers if not worker.ended()]
        died = [worker for worker in workers if worker.code and not (told and worker.code == -signal.SIGTERM)]
        for worker in died:
            while worker.read():
                continue
        if gone and all(worker.lost_another for worker in died):
            return Death(AWAY, gone)
        if died:
            first = min(died, key=lambda worker: (worker.lost_another, (worker.code or 0) > 0))
            until = until or time.monotonic() + WORDS_SECONDS
            if first.lost_another and (left or link) and time.monotonic() < until:
                continue
            if link:
                link.say(GONE, first.last_words())
            return Death(first.code or FAILED, first.last_words())
        if not left:
            if link:
                link.say(BYE)
            return Death(0, for_others=leaves)
        if (asked.is_set() or leaves) and not told:
            told, deadline = True, time.monotonic() + seconds
            if link and not leaves:
                link.say(LEAVE)
            for worker in left:
                os.kill(worker.pid, signal.SIGTERM)
        if told and time.monotonic() > deadline:
            slow = (
                f"worker {', '.join(str(worker.number) for worker in left)} did not leave within {seconds:.0f} s and was killed"
            )
            if not asked.is_set():
                return Death(AWAY, slow)
            raise WorkerDiedError(slow)


def be_worker(pipeline: Pipeline, settings: JobSettings, number: int, begun: Begun, kept: Kept, lives: int) -> NoReturn:
    """What a fork does: works, and leaves with a code that says what kind of an end it was."""
    ready = False

    def now_ready() -> None:
        nonlocal ready
        ready = True

    def kind(error: BaseException) -> int:
        if isinstance(error, RecoveryError | FencedError | StaleSnapshotError):
            return FINAL
        if not ready:
            return NOT_READY
        if any(words in str(error) for words in OF_THE_DISK):
            return OUTSIDE
        return OUTSIDE if isinstance(error, FROM_OUTSIDE) and "too large" not in str(error) else FAILED

    def do() -> None:
        leave_with_parent()
        if begun.link is not None:
            begun.link.close()  # this process' end of it, so that it ends with its parent's
        search = kept.search
        careful = search.ranges if search and search.piece else None
        trail = Trail(kept.file.with_name("trail"), careful, search.piece if search and search.piece else ALL)
        all_of_them = begun.addresses if len(begun.addresses) > 1 else ()
        parts: dict[str, Any] = {"trail": trail, "aside": kept.aside}
        if begun.epoch is not None:
            parts["epoch"] = begun.epoch
        work(pipeline, settings, number, all_of_them, restarts=lives, on_ready=now_ready, **parts)

    leave(do, kind)


def forked() -> int:
    """os.fork(), with nothing left to be said twice, and the child in a process group of its own, without signal handlers."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
    return pid


def leave(do: Callable[[], None], kind: Callable[[BaseException], int] = lambda error: FAILED) -> NoReturn:
    """Does it and ends the process, which is a fork: nothing that the other has open is closed."""
    code = 0
    try:
        do()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends this process and people must see it
        report(error)
        code = kind(error)
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)
