"""Another version of the model takes the place of the one in use, between two batches.

models/news.py says in a file what was found and checked. A thread beside the dataflow reads it, loads the version, has it
rehearse, and swaps. What is on its way by then is decided by the version that it began with. The version before is kept, ready.
"""

import os
import sys
import threading
from contextlib import suppress
from dataclasses import replace

from models.news import News, news_file, reason_of
from streams.decide import Deciding, Work
from streams.drift import thresholds
from streams.job import Champion, Job
from streams.rehearsal import rehearse_deciding

LOOK_SECONDS = 0.25
KEPT = 2
NICE = 10


class Swapping:
    """Swaps the model of an open job that has a registry. Close it before the job."""

    def __init__(self, job: Job, rehearsed: Work, seconds: float = LOOK_SECONDS) -> None:
        """rehearsed: what a new version has to decide before it does so in earnest (streams/rehearsal.py)."""
        self._job, self._rehearsed, self._seconds = job, rehearsed, seconds
        self._folder = job.settings.home / "models"
        self._file = news_file(self._folder, job.pipeline.model.name)
        self._ready: dict[str, tuple[Champion, Deciding]] = {job.deciding.digest: (job.champion_in_use, job.deciding)}
        self._stop = threading.Event()
        self._refused = set(News.read(self._file).refused)
        self._seen = 0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends its thread, and closes the engines that it opened and that do not decide."""
        self._stop.set()
        self._thread.join()
        for champion, _ in self._ready.values():
            if champion is not self._job.champion_in_use:
                champion.engine.close()

    def _run(self) -> None:
        _step_back()
        while not self._stop.wait(self._seconds):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the version in use goes on, and people hear of it
                self._say(f"the news of it cannot be used: {error}")

    def _look(self) -> None:
        with suppress(FileNotFoundError):
            written = self._file.stat().st_mtime_ns
            if written != self._seen:
                self._seen = written
                self._take(News.read(self._file))

    def _take(self, news: News) -> None:
        for version in news.refused.keys() - self._refused:
            self._refuse(version, news.refused[version])
        if news.digest in ("", self._job.deciding.digest) or str(news.version) in self._refused:
            return
        try:
            found = self._ready.pop(news.digest, None) or self._made(news)
        except Exception as error:  # noqa: BLE001 - whatever a version raises, the one in use goes on
            self._refuse(str(news.version), reason_of(error))
            return
        before = self._job.deciding.names.model_version
        self._job.swap(*found)
        self._ready[news.digest] = found
        while len(self._ready) > KEPT:
            del self._ready[next(iter(self._ready))]  # what is on its way by it still holds it
        self._say(f"version {news.version} decides from now on, before it version {before} did")

    def _made(self, news: News) -> tuple[Champion, Deciding]:
        """A version ready to decide."""
        job, folder = self._job, self._folder / news.folder
        drift = job.pipeline.drift
        champion = job.loaded(news.version, news.digest, folder, checked=True)
        if drift and champion.reference:
            thresholds(champion.reference, drift.rate)
        deciding = job.decided_by(champion)
        rehearse_deciding(job, replace(self._rehearsed, deciding=deciding))
        return champion, deciding

    def _refuse(self, version: str, reason: str) -> None:
        self._refused.add(version)
        self._job.meters.model_refused.inc()
        self._say(f"version {version} is refused: {reason}")

    def _say(self, words: str) -> None:
        self._job.say(f"model {self._job.pipeline.model.name}: {words}")


def _step_back() -> None:
    """This thread has time: the one that decides goes first. Only Linux knows of threads' own priorities."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
