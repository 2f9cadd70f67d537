"""What a long run uses over time, and whether it grows."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

LOOK_SECONDS = 1.0
MOST_PAIRS = 400


@dataclass
class Vitals:
    """[(monotonic seconds, life, memory MB, handles, threads, MB in use of the recovery store)]; life: the process' number."""

    seen: list[tuple[float, int, float, int, int, float]] = field(default_factory=list)


@contextmanager
def watched(pid: Callable[[], tuple[int, int]], store: Path) -> Iterator[Vitals]:
    """Looks each second at a process and its children while this lasts. pid: the number of the life, and its process."""
    vitals, ended = Vitals(), threading.Event()

    def look() -> None:
        life, root = pid()
        memory, handles, threads = 0.0, 0, 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error), each.oneshot():
                    memory += each.memory_info().rss / 1e6
                    handles += each.num_fds()
                    threads += each.num_threads()
        if memory:
            vitals.seen.append((time.monotonic(), life, memory, handles, threads, used_mb(store)))

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            look()

    thread = threading.Thread(target=watch, name="vitals")
    thread.start()
    try:
        yield vitals
    finally:
        ended.set()
        thread.join()


def used_mb(folder: Path) -> float:
    """MB in the files of a folder, less what is free in those of SQLite: they keep the size that they once needed."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size - (free_bytes(file) if file.suffix == ".sqlite3" else 0)
    return total / 1e6


def free_bytes(file: Path) -> int:
    """The bytes of an SQLite file's free pages, by its header (https://www.sqlite.org/fileformat.html, 1.3)."""
    with file.open("rb") as opened:
        header = opened.read(100)
    page, free = int.from_bytes(header[16:18], "big"), int.from_bytes(header[36:40], "big")
    return (65_536 if page == 1 else page) * free


def slope(series: Sequence[tuple[float, float]]) -> float:
    """What a series of (seconds, value) grows by in a second: the median of the slopes between its points (Theil and Sen).

    >>> slope([(0, 1), (1, 3), (2, 5), (3, 99), (4, 9)])
    2.0
    """
    if len(series) < 2:
        return 0.0
    some = np.array(series[:: -(-len(series) // MOST_PAIRS)], np.float64)
    first, second = np.triu_indices(len(some), 1)
    return float(np.median((some[second, 1] - some[first, 1]) / (some[second, 0] - some[first, 0])))


@dataclass(frozen=True)
class Trend:
    """A series judged. median, growth: over the span, in its own unit; grown: by more than is allowed."""

    name: str
    median: float
    growth: float
    allowed: float

    @property
    def grown(self) -> bool:
        return self.growth > self.allowed

    def __str__(self) -> str:
        how = f"grows by {self.growth:+.3g} over the span, {self.allowed:.3g} allowed"
        return f"{self.name}: median {self.median:.4g}, {how}{': GROWS' if self.grown else ''}"


def trend(name: str, series: Sequence[tuple[float, float]], share: float, least: float) -> Trend:
    """Judges a series: it may grow by `share` of its median over its span, and by `least` in its own unit."""
    if len(series) < 2:
        return Trend(name, float("nan"), 0.0, least)
    middle = float(np.median([value for _, value in series]))
    return Trend(name, middle, slope(series) * (series[-1][0] - series[0][0]), max(least, share * middle))
