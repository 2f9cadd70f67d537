"""Gives memory back to the system that a backlog needed and nobody uses now: glibc keeps what lies between what is used."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sinks.journal import step_back

EVERY_SECONDS, MOST_SECONDS, LEAST = 30.0, 600.0, 64e6
"""Giving back holds who asks for memory meanwhile, for a millisecond, or for tens of them after a backlog: so it is done now
and then, only while so many more bytes are used than there were at the best, and more seldom where it has brought nothing."""


class Tidy:
    """Looks at the memory of a process. used: its resident bytes; give_back: returns what is free to the system."""

    def __init__(self, used: Callable[[], int], give_back: Callable[[], object], seconds: float = EVERY_SECONDS) -> None:
        """wait: the seconds until the next look."""
        self._used, self._give_back, self._seconds = used, give_back, seconds
        self.wait = seconds
        self._best = used()

    def look(self) -> bool:
        """Gives back if there may be much to give; whether it did."""
        before = self._used()
        self._best = min(self._best, before)
        if before < self._best + LEAST:
            return False
        self._give_back()
        after = self._used()
        self._best = min(self._best, after)
        self.wait = self._seconds if before - after >= LEAST else min(2 * self.wait, MOST_SECONDS)
        return True


def resident() -> int:
    """The resident bytes of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def tidying(seconds: float = EVERY_SECONDS) -> Iterator[None]:
    """Has a thread look while this lasts; not where the C library has no malloc_trim."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        yield
        return
    ended, tidy = threading.Event(), Tidy(resident, lambda: trim(0), seconds)

    def looks() -> None:
        step_back()
        while not ended.wait(tidy.wait):
            tidy.look()

    thread = threading.Thread(target=looks, name="tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
