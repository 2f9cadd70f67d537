"""Does it stay as it was? Memory and latency over a long run, its first hour beside its last."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

HOUR = 3600.0
GROWN = 1.05


def first_and_last(series: Sequence[Sequence[float]], seconds: float) -> dict[str, Any]:
    """Of [seconds since the start, value]: medians over the first and the last hour (a third of it where it is shorter than
    three), and last / first."""
    part = min(HOUR, seconds / 3)
    first = [value for at, value in series if at <= part]
    last = [value for at, value in series if at >= seconds - part]
    if not first or not last:
        return {"first": None, "last": None, "ratio": None, "part_s": part}
    a, b = median(first), median(last)
    return {"first": round(a, 3), "last": round(b, 3), "ratio": round(b / a, 4) if a else None, "part_s": part}


def per_minute(intended_ns: npt.NDArray[np.int64], took_ns: npt.NDArray[np.int64], start_ns: int) -> list[list[float]]:
    """[seconds since the start, p50 ms, p99 ms] of each minute by intended send time."""
    minute = (intended_ns - start_ns) // 60_000_000_000
    made = []
    for number in np.unique(minute[minute >= 0]):
        inside = took_ns[minute == number] / 1e6
        made.append([float(number * 60), *(round(float(np.quantile(inside, share)), 3) for share in (0.5, 0.99))])
    return made


def verdict(soak: dict[str, Any]) -> str:
    """What is said of it, in a line."""
    memory, p99 = soak["memory_mb"], soak["p99_ms"]
    part = f"{memory['part_s'] / 60:.0f} minutes"
    grown = memory["ratio"] is not None and memory["ratio"] > GROWN
    return (
        f"memory {memory['first']} MB in the first {part}, {memory['last']} MB in the last: "
        f"{'GROWN' if grown else 'not grown'}; p99 {p99['first']} and {p99['last']} ms"
    )
