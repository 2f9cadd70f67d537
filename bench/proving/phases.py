"""One job under load through phases of several kinds, in turns, and how each kind compares with the first."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.brokers import counting
from bench.figures import Figure, figure, shown
from bench.proving.lives import Life, Stand, StuckError, living, settle
from bench.proving.scenes import own, up
from bench.proving.stream import BINS, SECONDS_A_BIN, Counted, Stream, counted, quantile, streaming
from bench.show import say, write
from bench.soak import top, topics

WARM_SECONDS = 60.0
"""A broker that has just been started compiles what it runs for about a minute, on the same cores."""


@dataclass(frozen=True)
class Kind:
    """A kind of phase: what is done when it begins, every `every` seconds in it, and when it ends."""

    name: str
    begin: Callable[[Life], None] = lambda life: None
    act: Callable[[Life], None] = lambda life: None
    end: Callable[[Life], None] = lambda life: None


@dataclass(frozen=True)
class Seen:
    """What was counted, the phases (kind, first and last second), what the job said, and what is wrong."""

    found: Counted
    phases: Sequence[tuple[str, float, float]]
    said: str
    wrong: list[str]


@contextmanager
def at_half(name: str, options: argparse.Namespace) -> Iterator[tuple[Stand, Path, float]]:
    """A broker with a job's topics, the folder of both, and a rate: options.rate, or half of the highest, which is measured."""
    with TemporaryDirectory(prefix=f"headrace-{name}-") as folder, own(Path(folder)) as broker:
        rate = options.rate
        if rate is None:
            rate = top(Stand.made(broker.served, Path(folder), "top", "", {}), options.workers) / 2
            say(f"half of the highest rate: {rate:,.0f} messages/s")
        stand = Stand.made(broker.served, Path(folder), name, "", {"model_look_seconds": 1})
        topics(broker.served, stand, appended=True)
        yield stand, Path(folder), rate


def told(
    head: dict[str, Any], figures: Sequence[Figure], wrong: Sequence[str], well: str, rate: float, options: argparse.Namespace
) -> int:
    """Prints and writes what was measured; the exit code: 1 if anything is wrong, or a goal was missed. well: nothing is."""
    print("\n".join(map(shown, figures)))
    print("WRONG: " + "; ".join(wrong) if wrong else well)
    settings = {"rate": round(rate), "seconds": options.seconds, "turns": options.turns, "workers": options.workers}
    write(head | {"settings": settings, "figures": figures, "wrong": wrong}, options.json)
    missed = [one for one in figures if "goal" in one and one["median"] > one["goal"]]
    return int(bool(wrong or missed))


def phased(stand: Stand, rate: float, workers: int, turns: int, seconds: float, every: float, kinds: Sequence[Kind]) -> Seen:
    """The job under a load of `rate` messages a second: `turns` times a phase of so many seconds of each kind."""
    stream = Stream(stand.load.name, rate)
    with counted(stand.served.address, stream, appended=True) as found, living(stand, workers, stand.load.name) as life:
        up(life)
        phases: list[tuple[str, float, float]] = []
        with streaming(stand.served.address, stream):
            at = WARM_SECONDS
            for kind in [*kinds] * turns:
                until, began = at + seconds, False
                while (now := time.monotonic() - stream.began) < until:
                    if life.process.poll() is not None:
                        raise StuckError(f"it died: {life.said()}")
                    if now >= at:
                        if not began:
                            kind.begin(life)
                            began = True
                        kind.act(life)
                    time.sleep(max(0.0, min(every, until - now)))
                kind.end(life)
                phases.append((kind.name, at + SECONDS_A_BIN, until))
                say(f"{until:6.0f} s  {kind.name}: {life.said()}")
                at = until
        with counting(stand.served, stand.load.target) as count:
            settle(life, count)
        died = life.leave()
        said = life.log.read_text()
        time.sleep(1)
    wrong = [f"it did not leave in order: {died}"] if died else []
    wrong += [f"{stream.sent - found.decided:,} lost"] if stream.sent != found.decided else []
    wrong += [f"{found.repeats:,} doubled"] if found.repeats else []
    wrong += [f"{found.wrong:,} know another count of their key"] if found.wrong else []
    return Seen(found, phases, said, wrong)


def windows(seen: Seen) -> Seen:
    """The same with each window of SECONDS_A_BIN as a phase: most of them have nothing of what happens once or twice in one."""
    phases = [
        (kind, window * SECONDS_A_BIN, (window + 1) * SECONDS_A_BIN)
        for kind, start, until in seen.phases
        for window in _windows(start, until)
    ]
    return replace(seen, phases=phases)


def _windows(start: float, until: float) -> range:
    """The numbers of the windows between two moments, as Counted.took has them."""
    return range(int(start / SECONDS_A_BIN), int(until / SECONDS_A_BIN))


def quantiles(seen: Seen, shares: Mapping[str, float]) -> dict[str, dict[str, list[float]]]:
    """By kind: of each phase the quantiles of its latencies, and its longest gap between two decisions, ms."""
    found, by_kind = seen.found, dict[str, dict[str, list[float]]]()
    for kind, start, until in seen.phases:
        counts = np.sum([found.took.get(window, np.zeros(BINS, np.int64)) for window in _windows(start, until)], axis=0)
        of = by_kind.setdefault(kind, {name: [] for name in [*shares, "longest gap"]})
        for name, share in shares.items():
            of[name].append(quantile(counts, share))
        of["longest gap"].append(found.longest_gap(start, until) * 1000)
    return by_kind


def compared(
    part: str, by_kind: Mapping[str, Mapping[str, list[float]]], more_ms: Mapping[str, float], times: Mapping[str, float]
) -> list[Figure]:
    """The figures of each kind, and how much more they are than the first kind's: ms and times, with these goals."""
    base, *_ = by_kind
    figures = []
    for kind, of in by_kind.items():
        for name, values in of.items():
            figures.append(figure(part, f"{name} {kind}", "ms", values))
            pairs = list(zip(by_kind[base][name], values, strict=True))
            if kind != base and name in more_ms:
                more = [after - before for before, after in pairs]
                figures.append(figure(part, f"{name} {kind}: more than {base}", "ms", more, more_ms[name]))
            if kind != base and name in times:
                ratio = [after / before for before, after in pairs]
                figures.append(figure(part, f"{name} {kind}: times that {base}", "", ratio, times[name]))
    return figures
