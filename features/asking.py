"""Asks the online store on threads of their own: for rows that are not there, and again for rows before they are too old.

A decision waits for the store only where it has no row at all, only for a time that is set, and only as long as the store
has answered in time before: while it is slow or down nobody waits, and what it says is there for the events after.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from features.rows import Read, Rows
from features.views import View
from kernels.stored_rows.cpu import U64

log = logging.getLogger(__name__)

MOST_WAITING = 100_000
AGAIN_SECONDS = 0.25
LOOK_SECONDS = 0.2
REFRESH_KEYS = 64
FILL_KEYS = 1024
SECONDS_EACH = 0.0002
REFRESH_SHARE = 0.2


class Asking:
    """The threads of one worker, started when they are first needed.

    read: for what is not there; again: another reader, for rows that are read again. patience: how many seconds one waits for
    the store; a fifth of a millisecond more for each entity that it is asked for.
    """

    def __init__(
        self,
        rows: Rows,
        views: Sequence[View],
        read: Read,
        again: Read,
        clock: Callable[[], float],
        patience: float,
    ) -> None:
        self._rows, self._views, self._read, self._again, self._clock = rows, views, read, again, clock
        self._patience = patience
        self.well = True
        self.asked = [0] * len(views)
        self.refreshed = [0] * len(views)
        self.failed = 0
        self._wanted: list[dict[int, bytes]] = [{} for _ in views]
        self._ticket = 0
        self._done = 0
        self._room = 0
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def want(self, view: int, hashes: U64, keys: Sequence[bytes], room: int) -> None:
        """Asks for entities that are not there; room: how many rows are needed at once."""
        with self._change:
            wanted = self._wanted[view]
            if len(wanted) < MOST_WAITING:
                wanted.update(zip(hashes.tolist(), keys, strict=True))
            self._room = max(self._room, room)
            self._ticket += 1
            self._change.notify_all()
        self._start("stored-misses", self._ask)

    def wait(self, entities: int) -> bool:
        """Waits for what was asked for, so many entities, if the store has been well; returns whether it has been answered."""
        with self._change:
            ticket = self._ticket
            if not self.well:
                return False
            patience = self._patience + SECONDS_EACH * entities
            answered = self._change.wait_for(lambda: self._done >= ticket, patience)
            if not answered:
                self._is_well(False, f"no answer in {patience:g} s")
            return answered and self.well

    def is_down(self, problem: str) -> None:
        """The store has failed somebody else: nobody waits for it until it has answered."""
        self.failed += 1
        with self._change:
            self._is_well(False, problem)

    def refresh(self) -> None:
        """Sees to it that rows are read again before they are too old, from now on."""
        self._start("stored-refresh", self._refresh)

    def close(self) -> None:
        """Ends the threads, but does not wait for a store that does not answer."""
        self._stop.set()
        with self._change:
            self._change.notify_all()
        for thread in self._threads.values():
            thread.join(1)

    def _start(self, name: str, work: Callable[[], None]) -> None:
        if name not in self._threads:
            self._threads[name] = threading.Thread(target=work, name=name, daemon=True)
            self._threads[name].start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._change:
                self._change.wait_for(lambda: self._stop.is_set() or any(self._wanted))
                wanted, self._wanted = self._wanted, [{} for _ in self._views]
                ticket, room = self._ticket, self._room
            began, problem = time.monotonic(), ""
            try:
                for view, asked in enumerate(wanted):
                    self._fill(view, list(asked), list(asked.values()), room)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, serving goes on
                problem = f"{type(error).__name__}: {error}"
                self.failed += 1
            seconds = time.monotonic() - began
            with self._change:
                self._done = ticket
                if problem or seconds <= self._patience + SECONDS_EACH * sum(map(len, wanted)):
                    self._is_well(not problem, problem)
                self._change.notify_all()
            if problem:
                self._stop.wait(AGAIN_SECONDS)

    def _fill(self, view: int, hashes: list[int], keys: list[bytes], room: int) -> None:
        """Reads entities and writes their rows, some at a time, since writing holds up whoever reads."""
        for start in range(0, len(keys), FILL_KEYS):
            some = keys[start : start + FILL_KEYS]
            now_us = round(self._clock() * 1_000_000)
            fetched = self._read(self._views[view], some)
            self._rows.put(view, np.array(hashes[start : start + FILL_KEYS], np.uint64), some, fetched, now_us, room)
            self.asked[view] += len(some)

    def _refresh(self) -> None:
        pause = LOOK_SECONDS
        while not self._stop.wait(pause):
            began, some, pause = time.monotonic(), 0, LOOK_SECONDS
            try:
                for view, described in enumerate(self._views):
                    now_us = round(self._clock() * 1_000_000)
                    hashes, keys = self._rows.due(view, now_us, REFRESH_KEYS)
                    if keys:
                        self._rows.put(view, hashes, keys, self._again(described, keys), now_us, only_known=True)
                        self.refreshed[view] += len(keys)
                        some += len(keys)
            except Exception as error:  # noqa: BLE001 - as above
                self.failed += 1
                pause = AGAIN_SECONDS
                with self._change:
                    self._is_well(False, f"{type(error).__name__}: {error}")
                continue
            if some:
                seconds = time.monotonic() - began
                pause = seconds * (1 / REFRESH_SHARE - 1)
                if seconds <= self._patience + SECONDS_EACH * some:
                    with self._change:
                        self._is_well(True)

    def _is_well(self, well: bool, problem: str = "") -> None:
        if well != self.well:
            self.well = well
            log.warning("features/stored: the online store %s", "answers again" if well else f"is not answering: {problem}")
