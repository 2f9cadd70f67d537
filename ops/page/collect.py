"""Looks at a job on a thread, as long as somebody wants to see it, and no longer: once a second, or as often as may be for a
hundredth of a core, and after five seconds at the latest."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from ops.errors import explain

EVERY_SECONDS, MOST_SECONDS, LINGER_SECONDS = 1.0, 5.0, 3.0
SHARE = 0.01
Look = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Snapshot:
    """What was seen at a look, as JSON. number: of all looks; settled: rates are known, which takes two looks, or will not be.

    drift: another number whenever drift's windows are others. brief: without them, for who has them already.
    """

    number: int
    settled: bool
    drift: int
    whole: bytes
    brief: bytes


class Collector:
    """Keeps the newest snapshot. opened: what looks, from when it is needed until nobody has wanted it for `linger` seconds.

    A look comes every so many seconds; more rarely, but after `most` at the latest, where this process would take more than
    that `share` of a core with it.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Look]],
        every: float = EVERY_SECONDS,
        linger: float = LINGER_SECONDS,
        share: float = SHARE,
        most: float = MOST_SECONDS,
    ) -> None:
        self._opened, self._every, self._linger = opened, every, linger
        self._share, self._most = share, most
        self._changed = threading.Condition()
        self._wanting, self._left_at, self._ends = 0, float("-inf"), False
        self._numbers = count(1)
        self._newest: Snapshot | None = None
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Somebody wants to see it while this lasts."""
        with self._changed:
            self._wanting += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._wanting -= 1
                self._left_at = time.monotonic()

    def after(self, number: int, seconds: float) -> Snapshot | None:
        """The newest snapshot if it comes after that number, for which this waits so many seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None and self._newest.number > number, seconds)
            found = self._newest
        return found if found is not None and found.number > number else None

    def close(self) -> None:
        """Ends the thread, when it has looked."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._begins():
            try:
                with self._opened() as look:
                    self._look_on(look)
            except Exception as error:  # noqa: BLE001 - whatever it is, the page says it, and the next look may go well
                self._publish({"trouble": explain(error)}, settled=True)
                self._pause(self._every)
            with self._changed:
                if not self._wanting:
                    self._newest = None  # whoever comes next is not shown what was

    def _look_on(self, look: Look) -> None:
        between = self._every
        for looks in count(1):
            began, used = time.monotonic(), time.process_time()
            self._publish(look(), settled=looks > 1)
            self._pause(max(self._every / 4, between - (time.monotonic() - began)))
            if not self._goes_on():
                return
            if looks > 1:  # to begin takes more, once
                between = min(max(self._every, (time.process_time() - used) / self._share), self._most)

    def _begins(self) -> bool:
        """Waits until somebody wants it; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanting > 0 or self._ends)
            return not self._ends

    def _goes_on(self) -> bool:
        with self._changed:
            return not self._ends and (self._wanting > 0 or time.monotonic() - self._left_at < self._linger)

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ends, seconds)

    def _publish(self, said: dict[str, Any], *, settled: bool) -> None:
        said = {"at": round(time.time(), 3), **said}
        brief = {name: value for name, value in said.items() if name != "drift"}
        made = Snapshot(next(self._numbers), settled, int(said.get("drift_version", 0)), _json(said), _json(brief))
        with self._changed:
            self._newest = made
            self._changed.notify_all()


def _json(said: dict[str, Any]) -> bytes:
    """In one line, and in ASCII, as an event of a stream has to be."""
    return json.dumps(said, allow_nan=False, separators=(",", ":")).encode("ascii")
