"""Schedules: when each message is to be sent, fixed before the first is, in ns from the start."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
KINDS = ("constant", "poisson", "bursts")
BURST_SECONDS, QUIET_SHARE = 1.0, 0.5


def schedule(kind: str, rate: float, seconds: float, seed: int = 0) -> I64:
    """i64 [n], never decreasing: intended send times in ns from the start, `rate` messages a second over `seconds`.

    kind: "constant" (evenly spaced), "poisson" (independent gaps), "bursts" (each second half a second at 1.5 times the rate
    and half a second at half of it), or a recorded trace: a file with one time a line, in seconds, or a .npy of ns, which is
    taken as it is where rate is 0 and else stretched to the rate. Raises ValueError.
    """
    if seconds <= 0 or rate < 0 or (rate == 0 and kind in KINDS):
        raise ValueError(f"schedule {kind}: expected a rate and seconds above 0, got {rate:g} and {seconds:g}")
    if kind == "constant":
        return (np.arange(round(rate * seconds)) * (1e9 / rate)).astype(np.int64)
    if kind == "poisson":
        rng = np.random.default_rng(seed)
        gaps = rng.exponential(1e9 / rate, int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10))
        times = np.cumsum(gaps)
        return times[times < seconds * 1e9].astype(np.int64)
    if kind == "bursts":
        return _bursts(rate, seconds)
    return trace(Path(kind), rate, seconds)


def _bursts(rate: float, seconds: float) -> I64:
    """Message k is sent when the integral of the rate over time has reached k."""
    halves = np.arange(0, np.ceil(seconds / BURST_SECONDS) + 1, QUIET_SHARE) * BURST_SECONDS
    each = np.where(np.arange(len(halves) - 1) % 2 == 0, 1.5, 0.5) * rate * BURST_SECONDS * QUIET_SHARE
    done = np.concatenate([[0.0], np.cumsum(each)])
    n = round(float(np.interp(seconds, halves, done)))
    return (np.interp(np.arange(n), done, halves) * 1e9).astype(np.int64)


def trace(file: Path, rate: float, seconds: float) -> I64:
    """A recorded trace from its first message on, repeated where it is shorter than `seconds`."""
    if not file.is_file():
        raise ValueError(f"schedule {file}: expected {', '.join(KINDS)} or a file with a time in seconds a line")
    times = np.load(file) if file.suffix == ".npy" else np.loadtxt(file, ndmin=1) * 1e9
    if len(times) < 2 or (np.diff(times) < 0).any() or times[-1] <= times[0]:
        raise ValueError(f"schedule {file}: expected at least two times that never decrease, got {len(times)}")
    times = (times - times[0]).astype(np.float64)
    step = times[-1] / (len(times) - 1)
    if rate:
        times *= 1e9 / rate / step
        step = 1e9 / rate
    length = times[-1] + step
    again = int(np.ceil(seconds * 1e9 / length))
    whole = (times[None, :] + np.arange(again)[:, None] * length).ravel()
    return whole[whole < seconds * 1e9].astype(np.int64)
