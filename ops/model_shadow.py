"""The process that scores what a job has decided on by a shadow, another version of its model; `Keeper` has one running while
a version has the alias.

It may hang, crash or be slow: what decides shares nothing with it but a folder (models/shadow.py).
"""

import argparse
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from models.engine import Engine, Matrix, TimedOut
from models.registry import SHADOW, ModelNotFound, Version, newest, resolve
from models.shadow import CHAMPION, COMPARED, READY, SCORE, SUFFIX, Compared, shadow_folder
from models.spec import assemble

if TYPE_CHECKING:
    from models.policy import Policy
    from streams.pipeline import Pipeline
    from streams.settings import JobSettings

ROWS, IDLE_SECONDS, TELL_SECONDS = 4096, 0.1, 1.0
SILENT_LIMITS, LEAST_SILENT_SECONDS = 3.0, 60.0
REFUSED = 3


class Keeper:
    """Has a process that scores by the version with the alias shadow, while one has it. Close it."""

    def __init__(self, called: str, pipeline: "Pipeline", settings: "JobSettings", say: Callable[[str], None]) -> None:
        self._called, self._pipeline, self._settings, self._say = called, pipeline, settings, say
        self._models = settings.home / "models"
        self._folder = shadow_folder(self._models, pipeline.name)
        self._of: tuple[int, str] = (0, "")
        self._process: subprocess.Popen[bytes] | None = None
        _clear(self._folder)
        self._silent = max(LEAST_SILENT_SECONDS, SILENT_LIMITS * pipeline.model.limit)

    def look(self) -> None:
        """Starts, ends or starts again, as the registry says now. Raises what the registry raises."""
        uri, name = self._settings.registry_uri, self._pipeline.model.name
        try:
            found = newest(uri, name, SHADOW)
        except ModelNotFound:
            found = (0, "")
        if found != self._of:
            self.close()
            if found[0]:
                self._start(resolve(uri, name, into=self._models, alias=SHADOW))
            self._of = found
        elif self._process is not None and (code := self._process.poll()) is not None:
            self.close()
            if code != REFUSED:
                self._say(f"model {name}: the shadow, version {found[0]}, ended with code {code}: it is started again")
                self._start(resolve(uri, name, into=self._models, alias=SHADOW))
        elif self._process is not None and self._hangs():
            self._say(
                f"model {name}: the shadow, version {found[0]}, said nothing for {self._silent:.0f} s: it is started again"
            )
            self.close()
            self._start(resolve(uri, name, into=self._models, alias=SHADOW))

    def close(self) -> None:
        """Ends the process, and what waits for it is given up."""
        from ops.workers import end

        if self._process is not None:
            end([self._process], 2.0)
            self._process = None
        _clear(self._folder)

    def _start(self, version: Version) -> None:
        from ops.workers import as_environment

        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._folder / COMPARED).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.model_shadow", self._called, str(version.version), str(version.folder)],
            env=os.environ | as_environment(self._settings),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        self._since = time.time()

    def _hangs(self) -> bool:
        """Whether it has not written down anything for long, though batches wait."""
        with suppress(OSError):
            told = (self._folder / COMPARED).stat().st_mtime
            return time.time() - max(told, self._since) > self._silent and any(self._folder.glob(f"*{SUFFIX}"))
        return time.time() - self._since > self._silent


def _clear(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for file in [folder / READY, *folder.glob(f"*{SUFFIX}"), *folder.glob("*.part")]:
            file.unlink(missing_ok=True)


class Scoring:
    """Scores the batches of a folder by an engine, and compares."""

    def __init__(self, folder: Path, engine: Engine, policy: "Callable[[pa.Schema], Policy] | None", version: int) -> None:
        self._folder, self._engine, self._compile, self._version = folder, engine, policy, version
        self._policy: Policy | None = None
        self.compared = Compared(0, version)

    def turn(self) -> int:
        """Scores what waits, worker by worker in its order, and takes it away; how many batches there were."""
        files = sorted(self._folder.glob(f"*{SUFFIX}"))
        for file in files:
            with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
                for k in range(reader.num_record_batches):
                    batch = reader.get_batch(k)
                    champion = int(reader.schema.metadata[CHAMPION])
                    if champion != self.compared.champion:
                        self.compared = Compared(champion, self._version)
                    for start in range(0, batch.num_rows, ROWS):
                        self._score(batch.slice(start, ROWS))
            file.unlink(missing_ok=True)
        return len(files)

    def _score(self, batch: pa.RecordBatch) -> None:
        ours = batch.column(SCORE).to_numpy(zero_copy_only=False)
        batch = batch.drop_columns([SCORE])
        matrix, _ = assemble(batch, self._engine.spec)
        began = time.perf_counter()
        theirs = self._scores(matrix)
        took = time.perf_counter() - began
        decisions = None
        if self._compile is not None:
            self._policy = self._policy or self._compile(batch.schema)
            decisions = self._policy(batch, ours, {}).decision, self._policy(batch, theirs, {}).decision
        self.compared.add(ours, theirs, decisions, took)

    def _scores(self, matrix: Matrix) -> Matrix:
        try:
            return self._engine.infer(matrix)
        except (RuntimeError, TimedOut):
            return np.full(len(matrix), np.nan, np.float32)


def score(pipeline: "Pipeline", settings: "JobSettings", version: int, folder: Path, goes_on: Callable[[float], bool]) -> int:
    """Loads a version, tries it, and scores until `goes_on`, which waits so many seconds, says that it is over. Returns the
    exit code: REFUSED for a version that cannot be used."""
    from models.news import reason_of
    from ops.model_news import tried

    shared = shadow_folder(settings.home / "models", pipeline.name)
    try:
        engine = tried(pipeline, settings)(Version(pipeline.model.name, version, "", folder))
        if engine.spec.outputs > 1:
            raise ValueError(f"expected one output to compare, got {engine.spec.outputs}")
    except ValueError as error:
        Compared(0, version, refused=reason_of(error)).write(shared)
        return REFUSED
    scoring = Scoring(shared, engine, pipeline.policy.compile if pipeline.policy else None, version)
    scoring.compared.write(shared)
    (shared / READY).touch()
    told, waits = time.monotonic(), 0.0
    while goes_on(waits):
        waits = 0.0 if scoring.turn() else IDLE_SECONDS
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            scoring.compared.write(shared)
    (shared / READY).unlink(missing_ok=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the process; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m ops.model_shadow")
    parser.add_argument("pipeline")
    parser.add_argument("version", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    os.nice(19)  # those that decide go first
    from ops.errors import hush, report
    from streams.pipeline import load
    from streams.settings import JobSettings

    hush()

    def goes_on(seconds: float) -> bool:
        """False when the process that started this one is gone, or has had enough."""
        return not select.select([sys.stdin], [], [], seconds)[0]

    try:
        return score(load(options.pipeline), JobSettings(), options.version, options.folder, goes_on)
    except BaseException as error:  # noqa: BLE001 - whatever it is, people must see it
        return report(error)


if __name__ == "__main__":
    sys.exit(main())
