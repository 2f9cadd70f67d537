"""CPU and memory of process trees, and of the whole machine, while a run lasts."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

MACHINE = "machine"


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

    def others(self, start: float, end: float) -> float | None:
        """Cores that went to anything but what is sampled: other processes, the kernel's own work, a hypervisor."""
        whole = self.cores(MACHINE, start, end)
        if whole is None:
            return None
        return round(max(0.0, whole - sum(self.cores(name, start, end) or 0.0 for name in self.seen if name != MACHINE)), 3)

    def over_time(self, name: str, start: float, end: float, most: int = 240) -> list[list[float]]:
        """[seconds since `start`, memory MB], at most `most` of them."""
        inside = [[round(at - start, 1), round(memory, 1)] for at, _, memory in self.seen.get(name, []) if start <= at <= end]
        return inside[:: max(1, -(-len(inside) // most))]

    def memory_mb(self, name: str, start: float, end: float) -> float | None:
        """The most memory seen between two moments."""
        inside = [memory for at, _, memory in self.seen.get(name, []) if start <= at <= end]
        return round(max(inside), 1) if inside else None


@contextmanager
def sampling(pids: Mapping[str, int], every: float = 1.0, again: int = 10) -> Iterator[Samples]:
    """Looks at the processes of `pids` and all their children each `every` seconds; for new children at every `again`th look,
    since that means looking at every process there is."""
    samples, stop = Samples({name: [] for name in [*pids, MACHINE]}), threading.Event()
    trees: dict[str, dict[int, psutil.Process]] = {name: {} for name in pids}
    used: dict[str, dict[int, float]] = {name: {} for name in pids}

    def look(number: int) -> None:
        whole = psutil.cpu_times()
        idle = whole.idle + getattr(whole, "iowait", 0.0)
        twice = getattr(whole, "guest", 0.0) + getattr(whole, "guest_nice", 0.0)  # it is in user and nice, too
        samples.seen[MACHINE].append((time.monotonic(), sum(whole) - idle - twice, 0.0))
        for name, pid in pids.items():
            if number % again == 0:
                with contextlib.suppress(psutil.Error):
                    root = psutil.Process(pid)
                    trees[name] = {process.pid: process for process in [root, *root.children(recursive=True)]}
            memory = 0.0
            for process in trees[name].values():
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    used[name][process.pid] = times.user + times.system
                    memory += process.memory_info().rss / 1e6
            samples.seen[name].append((time.monotonic(), sum(used[name].values()), memory))

    def watch() -> None:
        number = 0
        while not stop.wait(every if number else 0):
            look(number)
            number += 1

    thread = threading.Thread(target=watch, name="samples", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
