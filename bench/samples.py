"""CPU and memory of process trees while a run lasts."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil


@dataclass
class Samples:
    """What was seen: for each name [(seconds on CLOCK_MONOTONIC, CPU seconds so far, memory MB)]."""

    seen: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)

    def cores(self, name: str, start: float, end: float) -> float | None:
        """Cores used on average between two moments, monotonic seconds."""
        inside = [sample for sample in self.seen.get(name, []) if start <= sample[0] <= end]
        if len(inside) < 2:
            return None
        return round((inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0]), 3)

    def memory_mb(self, name: str, start: float, end: float) -> float | None:
        """The most memory seen between two moments."""
        inside = [memory for at, _, memory in self.seen.get(name, []) if start <= at <= end]
        return round(max(inside), 1) if inside else None


@contextmanager
def sampling(pids: Mapping[str, int], every: float = 1.0) -> Iterator[Samples]:
    """Looks at the processes of `pids` and all their children each `every` seconds."""
    samples, stop = Samples({name: [] for name in pids}), threading.Event()
    roots = {name: psutil.Process(pid) for name, pid in pids.items() if psutil.pid_exists(pid)}

    def look() -> None:
        gone: dict[str, dict[int, float]] = {name: {} for name in roots}
        while not stop.wait(every):
            for name, root in roots.items():
                memory = 0.0
                with contextlib.suppress(psutil.Error):
                    for process in [root, *root.children(recursive=True)]:
                        with contextlib.suppress(psutil.Error), process.oneshot():
                            times = process.cpu_times()
                            gone[name][process.pid] = times.user + times.system
                            memory += process.memory_info().rss / 1e6
                    samples.seen[name].append((time.monotonic(), sum(gone[name].values()), memory))

    thread = threading.Thread(target=look, name="samples", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
