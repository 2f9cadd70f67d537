"""The process that scores what a job has decided on by a shadow, another version of its model; `Keeper` has one running while
a version has the alias.

It may hang, crash or be slow: what decides shares nothing with it but a folder (models/shadow.py).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from models.engine import Engine, Matrix
from models.guard import Guard
from models.news import sample
from models.registry import SHADOW, ModelNotFound, Version, newest, resolve
from models.shadow import CHAMPION, READY, SCORE, SUFFIX, Compared, shadow_folder
from models.spec import assemble
from ops.beside import fork, least
from ops.errors import report

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from models.policy import Policy
    from streams.pipeline import Pipeline
    from streams.settings import JobSettings

PROCESS = "headrace-shadow"
ROWS, IDLE_SECONDS, TELL_SECONDS = 1024, 0.1, 1.0
FIRST_TO_GO = "1000"
SILENT_SECONDS = 600.0
REST_SECONDS, MOST_REST_SECONDS = 10.0, 600.0
LOAD_SECONDS, TIMES_LONGER, LEAST_CALL_SECONDS = 60.0, 10.0, 2.0
"""Of a core, which this process may wait for: of loading and trying; and a call that takes so many times what one of ROWS rows
of its sample took, and so many seconds at least, is one that hangs."""
REFUSED, HANGS = 3, -signal.SIGPROF


class Keeper:
    """Has a process that scores by the version with the alias shadow, while one has it. Close it.

    It is a fork of this process, which has imported what it needs, and has no engine of its own. After one has ended by itself
    there is none for `rest` seconds, and for twice as long each time, at most MOST_REST_SECONDS. That begins anew with one that
    lasted for so long, and with another version.
    """

    def __init__(
        self, pipeline: "Pipeline", settings: "JobSettings", say: Callable[..., None], rest: float = REST_SECONDS
    ) -> None:
        self._pipeline, self._settings, self._say = pipeline, settings, say
        self._models = settings.home / "models"
        self._folder = shadow_folder(self._models, pipeline.name)
        self._of: tuple[int, str] | None = None
        self._refused: tuple[int, str] | None = None
        self._process: ForkProcess | None = None
        self._since = 0.0
        self._rest = self._pause = rest
        self._ended: tuple[int, str] | None = None
        self._until = 0.0
        self._silent = SILENT_SECONDS
        _clear(self._folder)

    def look(self) -> None:
        """Starts, ends or starts again, as the registry says now. Raises what the registry raises."""
        name = self._pipeline.model.name
        try:
            found = newest(self._settings.registry_uri, name, SHADOW)
        except ModelNotFound:
            found = None
        if found != self._ended:
            self._ended, self._pause = None, self._rest
        if self._process is not None and found is not None and found == self._of:
            code = self._process.exitcode
            if code is None and not self._says_nothing():
                return
            if code == REFUSED:
                self._refused = found
                self._tell(found, "is refused: headrace models diff says why", "warning")
            else:
                self._rests(found, code)
        self.close()
        if found is None or found == self._refused or (self._ended and time.monotonic() < self._until):
            return
        self._start(found)
        if not self._ended:
            self._tell(found, "scores what the champion decides on")

    def close(self) -> None:
        """Ends the process, and what waits for it is given up."""
        if self._process is not None:
            self._process.kill()  # it may hang, and has nothing to lose
            self._process.join()
        self._process = self._of = None
        _clear(self._folder)

    def _rests(self, found: tuple[int, str], code: int | None) -> None:
        if code is not None and time.time() - self._since > MOST_REST_SECONDS:
            self._pause = self._rest
        why = {None: f"said nothing for {self._silent:.0f} s", HANGS: "hung in a call"}.get(code, f"ended with code {code}")
        self._tell(found, f"{why}: it rests for {self._pause:g} s", "warning")
        if code == HANGS:
            with suppress(OSError, pa.ArrowInvalid):
                hung(self._folder, found[0])
        self._ended, self._until = found, time.monotonic() + self._pause
        self._pause = min(2 * self._pause, MOST_REST_SECONDS)

    def _start(self, found: tuple[int, str]) -> None:
        version = resolve(self._settings.registry_uri, self._pipeline.model.name, into=self._models, alias=SHADOW)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._process = fork(work, self._pipeline, self._settings, version.version, version.folder)
        self._of, self._since = found, time.time()

    def _tell(self, found: tuple[int, str], words: str, level: str = "info") -> None:
        name, (version, digest) = self._pipeline.model.name, found
        told = {"model": name, "model_version": version, "model_digest": digest}
        self._say(f"model {name}: the shadow, version {version}, {words}", level=level, **told)

    def _says_nothing(self) -> bool:
        """Whether it has not said for long that it is ready."""
        told = self._since
        with suppress(OSError):
            told = max(told, (self._folder / READY).stat().st_mtime)
        return time.time() - told > self._silent


def hung(folder: Path, version: int) -> None:
    """Writes down that a version has hung at the first batch that waits, which its process would have taken away."""
    for file in sorted(folder.glob(f"*{SUFFIX}"))[:1]:
        champion, batch = _read(file)
        compared = Compared.read(folder)
        if compared is None or (compared.champion, compared.shadow) != (champion, version):
            compared = Compared(champion, version)
        compared.dropped, compared.trouble = compared.dropped + batch.num_rows, "it hung in a call"
        compared.write(folder)


def _read(file: Path) -> tuple[int, pa.RecordBatch]:
    """The champion's version, and what it decided."""
    with pa.ipc.open_file(pa.py_buffer(file.read_bytes())) as reader:
        return int(reader.schema.metadata[CHAMPION]), reader.get_batch(0)


def _clear(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for file in [folder / READY, *folder.glob(f"*{SUFFIX}"), *folder.glob("*.part")]:
            file.unlink(missing_ok=True)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Has the kernel end this process, by SIGPROF, if it takes more seconds of a core: nobody can end a call within it."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


class Limited:
    """An engine whose calls end the process that makes them where they take many times what one of its sample took."""

    def __init__(self, engine: Engine) -> None:
        self.spec, self.kind, self._engine = engine.spec, engine.kind, engine
        self.warm, self.profile, self.close = engine.warm, engine.profile, engine.close
        rows = np.resize(sample(engine.spec, None), (ROWS, engine.spec.columns))
        began = time.process_time()
        Guard(engine).infer(rows)
        self.seconds = max(LEAST_CALL_SECONDS, TIMES_LONGER * (time.process_time() - began))

    def infer(self, matrix: Matrix, out: Matrix | None = None) -> Matrix:
        with at_most(self.seconds):
            return self._engine.infer(matrix, out)


class Scoring:
    """Scores the batches of a folder by an engine, and compares. beat: called after each call of the engine."""

    def __init__(
        self, folder: Path, engine: Engine, pipeline: "Pipeline", version: int, beat: Callable[[], None] = lambda: None
    ) -> None:
        self._folder, self._guard, self._spec, self._pipeline = folder, Guard(engine), engine.spec, pipeline
        self._version, self._beat = version, beat
        self._policy: Policy | None = None
        before = Compared.read(folder)
        same = before is not None and (before.shadow, before.refused) == (version, "")
        self.compared = before if before is not None and same else Compared(0, version)
        self._by_champion = {self.compared.champion: self.compared}

    def turn(self) -> int:
        """Scores what waits, worker by worker in its order, and takes it away; how many batches there were."""
        files = sorted(self._folder.glob(f"*{SUFFIX}"))
        for file in files:
            with suppress(FileNotFoundError):
                self._batch(*_read(file))
            file.unlink(missing_ok=True)
        return len(files)

    def _batch(self, champion: int, batch: pa.RecordBatch) -> None:
        if champion not in self._by_champion:
            kept = [*self._by_champion.items()][-1:]
            self._by_champion = dict([*kept, (champion, Compared(champion, self._version))])
            self.compared = self._by_champion[champion]
        compared = self._by_champion[champion]
        for start in range(0, batch.num_rows, ROWS):
            rows = batch.slice(start, ROWS)
            try:
                self._score(rows, compared)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next batch may be well
                compared.dropped, compared.trouble = compared.dropped + rows.num_rows, f"{type(error).__name__}: {error}"
            self._beat()

    def _score(self, batch: pa.RecordBatch, compared: Compared) -> None:
        ours = batch.column(SCORE).to_numpy(zero_copy_only=False)
        batch = batch.drop_columns([SCORE])
        matrix, _ = assemble(batch, self._spec)
        began = time.perf_counter()
        theirs = self._guard.infer(matrix)
        took, decisions = time.perf_counter() - began, None
        if self._pipeline.policy is not None:
            self._policy = self._policy or self._pipeline.policy.compile(self._columns(batch))
            decisions = self._policy(batch, ours, {}).decision, self._policy(batch, theirs, {}).decision
        compared.add(ours, theirs, decisions, took)

    def _columns(self, batch: pa.RecordBatch) -> pa.Schema:
        """What the job's own policy is compiled over: an event's columns, and what is computed, as float64."""
        own = self._pipeline.columns
        return pa.schema([*own, *(pa.field(name, pa.float64()) for name in batch.schema.names if name not in own.names)])


def score(pipeline: "Pipeline", settings: "JobSettings", version: int, folder: Path, goes_on: Callable[[float], bool]) -> int:
    """Loads a version, tries it, and scores until `goes_on`, which waits so many seconds, says that it is over. Returns the
    exit code: REFUSED for a version that cannot be used."""
    from models.news import reason_of
    from ops.model_news import tried

    shared = shadow_folder(settings.home / "models", pipeline.name)
    unlimited = replace(pipeline, model=replace(pipeline.model, limit=0.0))
    try:
        with at_most(LOAD_SECONDS):
            engine = Limited(tried(unlimited, settings)(Version(pipeline.model.name, version, "", folder)))
        if engine.spec.outputs > 1:
            raise ValueError(f"expected one output to compare, got {engine.spec.outputs}")
    except ValueError as error:
        Compared(0, version, refused=reason_of(error)).write(shared)
        return REFUSED
    told = -TELL_SECONDS

    def beat() -> None:
        nonlocal told
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            with suppress(OSError):  # the disk is full: what is known stays known
                (shared / READY).touch()
                scoring.compared.write(shared)

    scoring = Scoring(shared, engine, pipeline, version, beat)
    waits = 0.0
    while goes_on(waits):
        beat()
        waits = 0.0 if scoring.turn() else IDLE_SECONDS
    with suppress(OSError):
        scoring.compared.write(shared)
    return 0


def work(pipeline: "Pipeline", settings: "JobSettings", version: int, folder: Path) -> None:
    """What the process does, until the one that started it is gone."""
    parent = os.getppid()
    least()
    for file, said in (("oom_score_adj", FIRST_TO_GO), ("comm", PROCESS)):
        with suppress(OSError):
            Path("/proc/self", file).write_text(said)

    def goes_on(seconds: float) -> bool:
        time.sleep(seconds)
        return os.getppid() == parent

    try:
        code = score(pipeline, settings, version, folder, goes_on)
    except BaseException as error:  # noqa: BLE001 - whatever it is, people must see it
        code = report(error)
    sys.exit(code)
