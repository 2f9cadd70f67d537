"""The highest rate at which a system holds a bound on its latency."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METRICS = ("p50", "p90", "p99", "p999", "max", "mean")
MOST_RATE = 200_000.0
CLOSE = 1.1
GROWTH = 0.01
LATE = "generator behind its schedule"


@dataclass(frozen=True)
class Bound:
    """A metric of the latency and the most ms that it may have."""

    metric: str
    ms: float

    def __str__(self) -> str:
        return f"{self.metric}={self.ms:g}ms"

    def broken(self, run: dict[str, Any]) -> str:
        """Why a run does not hold it; empty if it does. What waits for its answer must not grow by more than 1% of the rate."""
        if not run["valid"]:
            return str(run["why_not"])
        got = run["latency_ms"][self.metric]
        if got > self.ms:
            return f"{self.metric} {got:g} ms"
        if run["lag"]["growth_per_s"] > GROWTH * run["rate"]:
            return f"what waits grows by {run['lag']['growth_per_s']:g} answers a second"
        return ""


def bound(text: str) -> Bound:
    """Of "p99=15ms". Raises ValueError."""
    match = re.fullmatch(r"(\w+)=([0-9.]+)(ms|s)", text)
    if not match or match[1] not in METRICS:
        raise ValueError(f"--slo {text}: expected METRIC=NUMBERms with one of {', '.join(METRICS)}")
    return Bound(match[1], float(match[2]) * (1000 if match[3] == "s" else 1))


def highest(measure: Callable[[float], dict[str, Any]], limit: Bound, start: float, most: float = MOST_RATE) -> dict[str, Any]:
    """Doubles the rate from `start` while `measure(rate)` (a run) holds the bound, then halves the gap until it is within 10%.

    A rate that fails is tried once more before it counts, unless it fails by more than double: one pause of the machine is no
    property of a system. Returns rate (None: not even `start` held), failed_at and why (None: `most` held, or the generator
    could do no more and why says so), and the rates that were tried.
    """
    tried: list[list[Any]] = []

    def holds(rate: float) -> str:
        why = ""
        for _ in range(2):
            run = measure(rate)
            why = limit.broken(run)
            tried.append([rate, why or None])
            if not why or (run["valid"] and run["latency_ms"][limit.metric] > 2 * limit.ms):
                break
        return why

    good, bad, why, rate = None, None, "", start
    while True:
        failed = holds(rate)
        if failed:
            bad, why = rate, failed
        else:
            good = rate
        if good is None or good >= most or (bad is not None and bad / good <= CLOSE):
            break
        rate = float(round(min(2 * good, most))) if bad is None else float(round((good * bad) ** 0.5))
        if rate in (good, bad):
            break
    return {"rate": good, "failed_at": bad, "why": why or None, "ended_by_generator": LATE in why, "tried": tried}
