"""Aggregates over sliding windows by going through all that was seen: the definition.

At an event at time t a window of length `over` with tile g covers [floor(t, g) - over, t], up to and including the event before
this one. Where events come out of order, two things are added to that:

- the tile of t is seen whole, with what is later in it and already there;
- an entity remembers no more than [floor(T, g) - over, T], with T the latest time at which it was updated. An update in an
  earlier tile than that of T is late: it is dropped, or used as far as it falls into what is remembered.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kernels.windows.cpu import RANKS, REGISTERS


@dataclass(frozen=True)
class Event:
    """One event of a stream, in arrival order: `slot` its entity (-1: none), `value` None if it does not update."""

    slot: int
    time: int
    value: float | None
    reads: bool
    code: int = 0


@dataclass(frozen=True)
class Seen:
    """What a window holds at an event at `time`: (time, value, code) in order of arrival; `over` and `half_life` as times."""

    time: int
    over: int
    half_life: float
    held: list[tuple[int, float, int]]


def window(
    events: Sequence[Event], over: int, tile: int, late: bool = True, half_life: float = 0.0
) -> tuple[list[Seen], int, int]:
    """What is seen by each event that reads, and how many late updates were used, and dropped."""
    kept: dict[int, list[tuple[int, float, int]]] = {}
    out, used, dropped = [], 0, 0
    for event in events:
        mine = kept.setdefault(event.slot, []) if event.slot >= 0 else []
        newest = max((time for time, _, _ in mine), default=event.time)
        if event.reads:
            since = max(event.time // tile * tile, newest // tile * tile) - over
            until = event.time // tile * tile + tile
            out.append(Seen(event.time, over, half_life, [each for each in mine if since <= each[0] < until]))
        if event.value is None or event.slot < 0:
            continue
        if event.time < newest // tile * tile:
            if not late or event.time < newest // tile * tile - over:
                dropped += 1
                continue
            used += 1
        mine.append((event.time, event.value, event.code))
    return out, used, dropped


def _mean(seen: Seen) -> float:
    return _sum(seen) / len(seen.held) if seen.held else math.nan


def _sum(seen: Seen) -> float:
    return math.fsum(value for _, value, _ in seen.held)


def _std(seen: Seen) -> float:
    """Of a sample: divided by count - 1."""
    mean, n = _mean(seen), len(seen.held)
    return math.sqrt(math.fsum((value - mean) ** 2 for _, value, _ in seen.held) / (n - 1)) if n > 1 else math.nan


def _newest(seen: Seen) -> tuple[int, float]:
    """The latest time and its value; of one time, the one that came later."""
    latest = max(time for time, _, _ in seen.held)
    return latest, [value for time, value, _ in seen.held if time == latest][-1]


def _decayed(seen: Seen) -> float:
    return math.fsum(value * 2.0 ** ((time - seen.time) / seen.half_life) for time, value, _ in seen.held)


def _different(seen: Seen) -> float:
    """Exactly; the kernel's is an estimate, which is `sketched`."""
    return float(len({code for _, _, code in seen.held}))


AGGREGATES: dict[str, Callable[[Seen], float]] = {
    "count": lambda seen: float(len(seen.held)),
    "sum": _sum,
    "mean": _mean,
    "min": lambda seen: min((value for _, value, _ in seen.held), default=math.nan),
    "max": lambda seen: max((value for _, value, _ in seen.held), default=math.nan),
    "std": _std,
    "last": lambda seen: _newest(seen)[1] if seen.held else math.nan,
    "age": lambda seen: max(seen.time - _newest(seen)[0], 0) / 1e6 if seen.held else math.nan,
    "distinct": _different,
    "rate": lambda seen: len(seen.held) / (seen.over / 1e6),
    "decayed": _decayed,
}


def sketched(codes: Sequence[int]) -> float:
    """How many different codes of 52 bits there are, as HyperLogLog with REGISTERS registers estimates it.

    Each code goes to the register of its low bits, which keeps the highest place of the first 1 in the rest of the bits.
    O. Ertl, New cardinality estimation algorithms for HyperLogLog sketches (2017), says what follows from the registers.
    """
    m = REGISTERS
    registers = [0] * m
    for code in codes:
        rest = code // m
        rank = next((k + 1 for k in range(RANKS) if rest >> k & 1), RANKS + 1)
        registers[code % m] = max(registers[code % m], rank)
    shares = [registers.count(rank) / m for rank in range(RANKS + 2)]
    if shares[0] == 1:
        return 0.0
    z = _tau(1 - shares[RANKS + 1])
    for rank in range(RANKS, 0, -1):
        z = (z + shares[rank]) / 2
    return m / (2 * math.log(2) * (z + _sigma(shares[0])))


def _sigma(x: float) -> float:
    """x + sum of x^(2^k) 2^(k - 1), k = 1, 2, ..."""
    return x + math.fsum(x ** (2**k) * 2.0 ** (k - 1) for k in range(1, 40) if x ** (2**k) > 0)


def _tau(x: float) -> float:
    """(1 - x - sum of (1 - x^(2^-k))^2 2^-k, k = 1, 2, ...) / 3; nothing at 0."""
    return (1 - x - math.fsum((1 - x ** (2.0**-k)) ** 2 * 2.0**-k for k in range(1, 60))) / 3 if x > 0 else 0.0
