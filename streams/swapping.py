"""Another version of the model takes the place of the one in use, between two batches.

models/news.py says in a file what was found and checked. A thread beside the dataflow reads it, loads the version, has it
rehearse, and swaps. What is on its way by then is decided by the version that it began with. The version before is kept, ready.
"""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.news import Good, News, key, news_file, reason_of, state_of
from models.registry import DigestMismatch
from models.spec import digest
from streams.decide import Deciding, Work
from streams.drift import thresholds
from streams.job import Champion, Job
from streams.rehearsal import rehearse_deciding

LOOK_SECONDS, PATIENCE_SECONDS = 0.25, 120.0
KEPT = 2


class Swapping:
    """Swaps the model of an open job. Close it before the job."""

    def __init__(self, job: Job, rehearsed: Work, seconds: float = LOOK_SECONDS) -> None:
        """rehearsed: what a new version has to decide before it does so in earnest (streams/rehearsal.py)."""
        self._job, self._rehearsed, self._seconds = job, rehearsed, seconds
        self._file = news_file(job.settings.home / "models", job.pipeline.name)
        self._patience = max(PATIENCE_SECONDS, 5 * job.settings.model_look_seconds)
        self._ready = [(job.champion_in_use, job.deciding)]
        self._said = set(News.read(self._file).refused)
        self._failed = set[str]()  # here: what the look refused, a later one may find good
        self._read, self._looked, self._alone = job.news_read, time.time(), False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends its thread, and closes the engines that it opened and that do not decide."""
        self._stop.set()
        self._thread.join()
        for champion, _ in self._ready:
            if champion is not self._job.champion_in_use and champion is not self._job.champion:
                champion.engine.close()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the version in use goes on, and people hear of it
                self._say(f"the news of it cannot be used: {type(error).__name__}: {error}", level="warning")

    def _look(self) -> None:
        with suppress(FileNotFoundError):
            written = self._file.stat().st_mtime_ns
            if written != self._read:
                self._read, self._looked, self._alone = written, time.time(), False
                self._take(News.read(self._file))
        if time.time() - self._looked > self._patience and not self._alone:
            self._alone = True
            self._say(f"nobody has looked for another version for {self._patience:.0f} s: start the job again", level="warning")

    def _take(self, news: News) -> None:
        job = self._job
        news = news.of(job.pipeline.model.name)
        for called in news.refused.keys() - self._said:
            self._refuse(called, news.refused[called])
        if not news.good or (good := news.good[0])[:2] == (job.deciding.names.model_version, job.deciding.digest):
            return
        if (called := key(good.version, good.digest)) in self._failed or called in news.refused:
            return
        kept = [each for each in self._ready if (each[0].version, each[0].digest) == good[:2]]
        try:
            found = kept[0] if kept else self._made(good)
        except Exception as error:  # noqa: BLE001 - whatever a version raises, the one in use goes on
            self._failed.add(called)
            self._refuse(called, reason_of(error))
            return
        before = job.deciding.names.model_version
        job.swap(*found)
        self._rehearsed = self._rehearsed._replace(deciding=found[1])
        self._ready = [*(each for each in self._ready if each is not found), found][-KEPT:]  # works on their way hold theirs
        words = f"version {good.version} decides from now on, before it version {before} did"
        self._say(words, model_version=good.version, model_digest=good.digest, before=before)

    def _made(self, good: Good) -> tuple[Champion, Deciding]:
        """A version ready to decide."""
        job = self._job
        folder = self._file.parent / good.folder
        as_it_was = _as_it_was(good, folder)
        if not as_it_was and (got := digest(folder)) != good.digest:
            raise DigestMismatch(f"{folder}: expected digest {good.digest}, got {got}")
        champion, deciding = job.made(good, checked=as_it_was)  # else from the version's own files alone
        if job.pipeline.drift and champion.reference:
            thresholds(champion.reference, job.pipeline.drift.rate)
        rehearse_deciding(job, self._rehearsed._replace(deciding=deciding), [])
        return champion, deciding

    def _refuse(self, called: str, reason: str) -> None:
        self._said.add(called)
        self._job.meters.model_refused.inc()
        number, _, begins = called.partition("-")
        self._say(f"version {number} is refused: {reason}", level="warning", model_version=int(number), model_digest=begins)

    def _say(self, words: str, **fields: Any) -> None:
        name = self._job.pipeline.model.name
        self._job.say(f"model {name}: {words}", model=name, **fields)


def _as_it_was(good: Good, folder: Path) -> bool:
    """Whether a version's files, and what was made from them, are in the state in which they were tried."""
    try:
        return bool(good.state) and state_of(folder) == good.state
    except OSError:  # some went while it looked
        return False
