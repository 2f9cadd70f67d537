"""Gives memory back to the system that a backlog needed and nobody uses now: glibc keeps what lies between what is used."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_SECONDS, MOST_LOOKS, LEAST, SHARE = 30.0, 20, 16e6, 0.03
"""Giving back holds who asks for memory meanwhile, for a millisecond, or for tens of them after a backlog: so it is done only
while so many more bytes, and such a share more, are used than there were at the best; and where it has brought less than that,
more and more seldom, until as much is used again; and once when the process has less than half of the work."""


class Tidy:
    """Looks at the memory of a process, every EVERY_SECONDS. used: its resident bytes; give_back: returns what is free to the
    system; worked: the seconds of a core that it has had."""

    def __init__(
        self, used: Callable[[], int], give_back: Callable[[], object], worked: Callable[[], float] = time.process_time
    ) -> None:
        self._used, self._give_back, self._worked = used, give_back, worked
        self._best = self._left = used()
        self._pause = self._rest = 1
        self._since, self._busiest, self._calmed = worked(), 0.0, False

    def look(self) -> bool:
        """Gives back if there may be much to give; whether it did."""
        before, worked = self._used(), self._worked()
        busy, self._since = worked - self._since, worked
        calm = busy < self._busiest / 2 and not self._calmed
        self._busiest = max(self._busiest, busy)
        self._best, self._left = min(self._best, before), min(self._left, before)
        least = max(LEAST, SHARE * self._best)
        grown = before >= self._left + least
        self._rest -= 1
        if before < self._best + least or (self._rest > 0 and not grown and not calm):
            return False
        self._give_back()
        self._busiest, self._calmed = busy, calm or (self._calmed and not grown)
        self._left = self._used()
        self._best = min(self._best, self._left)
        worth = grown or before - self._left >= least
        self._pause = self._rest = 1 if worth else min(2 * self._pause, MOST_LOOKS)
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
    ended, tidy = threading.Event(), Tidy(resident, lambda: trim(0))

    def looks() -> None:
        while not ended.wait(seconds):
            tidy.look()

    thread = threading.Thread(target=looks, name="tidy", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
