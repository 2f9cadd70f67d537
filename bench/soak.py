"""The long run: a job under load for as long as you like, with faults in it, watched.

    python -m bench.soak --minutes 60 --json soak.json --png docs/soak.png

The load is 70% of the highest rate, which is measured first (--rate sets another): what is decided of a load that is sent
as fast as it can be, and counted, on the same cores, once the state is as large as it gets. The job is killed once and stopped
once and started again, in the first third; after that the broker stands still for five seconds and is stopped and started, in
turns, again and again (--every). After every second of these, and at the end, the load rests for 0.3 of that time. Each
decision is counted as it comes, with read_committed.

Judged is the job's last life once each fault of the broker has come over it, by slopes (the median of those between any two
samples): what is grown by over that span, against what is allowed. What a first backlog leaves is no slope; what each further
one adds is. Of memory it is what is kept in the rests, in their last quarter: under load it holds what an epoch takes in, and
an epoch is longer where the machine has less time for it; that is told beside it. The recovery store, whose epochs rest with
the load, file handles, threads and p99 are judged under load. Left out there is what a fault or a rest shows in: half a minute
of the p99, and of the others a minute and a half, by which the memory that a backlog needed has been given back. Of the
store what is in use counts: its files keep the size of the largest backlog. Below half an hour growth is told and no fault.
"""

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.brokers import Served, counting, make
from bench.machine import commit, machine, versions
from bench.options import leave_on_sigterm
from bench.proving.chart import drawn
from bench.proving.lives import Life, Stand, StuckError, living, settle
from bench.proving.load import PARTITIONS
from bench.proving.scenes import Own, own, up
from bench.proving.stream import SECONDS_A_BIN, STEP_US, WINDOW_US, Counted, Stream, counted, streaming
from bench.proving.vitals import Trend, Vitals, trend, watched
from bench.show import say

STILL_SECONDS, AFTER_SECONDS, GIVEN_BACK_SECONDS, SETTLE_SHARE = 5.0, 30.0, 90.0, 0.15
ANY_RATE, FULL, FULL_SECONDS, TOP_SECONDS = 1e6, PARTITIONS * WINDOW_US // STEP_US, 300.0, 20.0
REST, REST_SHARE, KEPT_SHARE = "rest", 0.3, 0.25
JUDGED_MINUTES = 30.0
KILLED_AT, STOPPED_AT, BROKER_FROM = 0.1, 0.2, 0.35
ALLOWED = {
    "memory MB": (0.05, 5.0),
    "handles": (0.0, 3.0),
    "threads": (0.0, 2.0),
    "store MB": (0.1, 5.0),
    "p99 ms": (0.25, 5.0),
}
AT_REST = "memory MB"
OF_THE_BROKER = ("broker SIGSTOP", "broker stopped and started")
SEGMENTS = {"segment.bytes": str(64 * 1024 * 1024), "retention.ms": "900000"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if anything was lost, doubled or wrong, or grows."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--share", type=float, default=0.7, help="of the highest rate")
    parser.add_argument("--rate", type=float, default=None, help="messages a second, instead")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mode", choices=["exactly_once", "at_least_once"], default="exactly_once")
    parser.add_argument("--epoch", type=float, default=0.25)
    parser.add_argument("--every", type=float, default=300, help="seconds between two faults of the broker")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--png", type=Path, default=None)
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    head, dirty = commit()
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as folder, own(Path(folder)) as broker:
        settings: dict[str, Any] = {"delivery": options.mode, "epoch_seconds": options.epoch}
        rate = options.rate
        if rate is None:
            highest = top(Stand.made(broker.served, Path(folder), "top", "", settings), options.workers)
            rate = options.share * highest
            say(f"highest rate {highest:,.0f} messages/s, {options.share:.0%} of it: {rate:,.0f}")
        seen = run(Stand.made(broker.served, Path(folder), "soak", "", settings), broker, rate, options)
    found = wrong(seen, options.mode, options.minutes >= JUDGED_MINUTES)
    settings |= {"rate": round(rate), "workers": options.workers, "minutes": options.minutes}
    whole: dict[str, Any] = {"kind": "soak", "settings": settings}
    whole |= {"commit": head, "dirty": dirty, "machine": machine(), "versions": versions(), **seen, "wrong": found}
    if options.json:
        options.json.write_text(json.dumps(whole) + "\n")
    if options.png:
        drawn(seen["over_time"], seen["faults"]).savefig(options.png, dpi=110)
    print("\n".join([*seen["said"], "WRONG: " + "; ".join(found) if found else "as promised"]))
    return bool(found)


def top(stand: Stand, workers: int) -> float:
    """The highest rate: decisions counted a second while messages are sent as fast as they can be, once the state is full."""
    topics(stand.served, stand)
    full, address = Stream(stand.load.name, ANY_RATE), stand.served.address
    with living(stand, workers, "top") as life:
        up(life)
        with counted(address, full) as found, streaming(address, full):
            deadline = time.monotonic() + FULL_SECONDS
            while found.decisions < FULL:
                if life.process.poll() is not None or time.monotonic() > deadline:
                    raise StuckError(f"{found.decisions:,} of {FULL:,} decisions that fill its state: {life.said()}")
                time.sleep(0.01)
            some, began = found.decisions, time.monotonic()
            time.sleep(TOP_SECONDS)
            rate = (found.decisions - some) / (time.monotonic() - began)
        life.kill()
    return rate


def topics(served: Served, stand: Stand, appended: bool = False) -> None:
    """The job's topics, whose messages are deleted once they are old. appended: decisions get the broker's time."""
    make(served, [stand.load.source], PARTITIONS, more=SEGMENTS)
    make(served, [stand.load.target], PARTITIONS, appended, more=SEGMENTS)
    make(served, [stand.load.letters], 1)


def run(stand: Stand, broker: Own, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """The long run itself, with its faults, and all that was seen."""
    served, seconds = stand.served, 60 * options.minutes
    topics(served, stand)
    plan, rests = faults(seconds, options.every)
    stream = Stream(stand.load.name, rate, rests=rests)
    store = stand.base.home / "recovery" / stand.load.name
    happened: list[dict[str, Any]] = [{"what": REST, "from_s": start, "to_s": start + length} for start, length in rests]
    lives: list[Life] = []
    with ExitStack() as stack:
        found = stack.enter_context(counted(served.address, stream))
        born = ExitStack()
        stack.callback(lambda: born.close())

        def live() -> None:
            life = born.enter_context(living(stand, options.workers, len(lives)))
            up(life)
            lives.append(life)

        live()
        vitals = stack.enter_context(watched(lambda: (len(lives), lives[-1].process.pid), store))
        with streaming(served.address, stream):
            acts = acting(broker, lives, live)
            for at, what in [*plan, (seconds, "")]:
                wait(stream.began + at, lives, found, seconds)
                if what:
                    began = time.monotonic()
                    acts[what]()
                    happened.append({"what": what, "from_s": began - stream.began, "to_s": time.monotonic() - stream.began})
                    say(f"{began - stream.began:6.0f} s  {what}: {time.monotonic() - began:.1f} s")
        with counting(served, stand.load.target) as count:
            settle(lives[-1], count)
        if died := lives[-1].leave():
            raise StuckError(f"SIGTERM: {died}")
        time.sleep(2)
    happened.sort(key=lambda each: float(each["from_s"]))
    return told(stream, found, vitals, happened, len(lives), seconds)


def faults(seconds: float, every: float) -> tuple[list[tuple[float, str]], list[tuple[float, float]]]:
    """The faults, (seconds from the start, what): the job's in the first third, then the broker's. And the rests of the load:
    (from when on, for how long)."""
    plan = [(KILLED_AT * seconds, "SIGKILL of the job"), (STOPPED_AT * seconds, "SIGTERM of the job")]
    rests = list[tuple[float, float]]()
    rest = REST_SHARE * min(every, seconds / 3)
    at, number = BROKER_FROM * seconds, 0
    while at < seconds - rest - 2 * AFTER_SECONDS:
        plan.append((at, OF_THE_BROKER[number % 2]))
        if number % 2 == 0 and at + every < seconds - rest:
            rests.append((at + every / 2, rest))
        at, number = at + every, number + 1
    return plan, [*rests, (seconds - rest, rest)]


def acting(broker: Own, lives: Sequence[Life], live: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """What is done for each fault."""

    def killed() -> None:
        lives[-1].kill()
        live()

    def stopped() -> None:
        if died := lives[-1].leave():
            raise StuckError(f"SIGTERM: {died}")
        live()

    def still() -> None:
        broker.signal(signal.SIGSTOP)
        time.sleep(STILL_SECONDS)
        broker.signal(signal.SIGCONT)

    def restarted() -> None:
        broker.stop()
        broker.start()

    return {
        "SIGKILL of the job": killed,
        "SIGTERM of the job": stopped,
        "broker SIGSTOP": still,
        "broker stopped and started": restarted,
    }


def wait(until: float, lives: Sequence[Life], found: Counted, seconds: float) -> None:
    """Waits for a moment, and tells each minute how far it is. Raises StuckError if the job dies."""
    told = time.monotonic() + 60
    while (now := time.monotonic()) < until:
        if lives[-1].process.poll() is not None:
            raise StuckError(f"the job died: {lives[-1].said()}")
        if now > told:
            told = now + 60
            done = now - found.stream.began
            seen = f"{found.decisions:,} decisions, {found.repeats:,} repeats, {found.wrong:,} wrong"
            say(f"{done:6.0f} s of {seconds:.0f}: {seen}")
        time.sleep(min(0.5, max(0.0, until - now)))


def told(
    stream: Stream, found: Counted, vitals: Vitals, happened: list[dict[str, Any]], lives: int, seconds: float
) -> dict[str, Any]:
    """All that was seen while there was load, judged."""
    seen = [each for each in vitals.seen if each[0] <= stream.began + seconds]
    last = next(each[0] for each in seen if each[1] == lives) - stream.began
    over_time = {
        name: [(round(each[0] - stream.began, 1), round(float(each[2 + k]), 2)) for each in seen]
        for k, name in enumerate(list(ALLOWED)[:4])
    }
    over_time["p99 ms"] = [(at, round(p99, 2)) for at, p99 in found.p99()]
    trends, beside = judged(over_time, happened, last)
    decided = found.decided
    counts = {"messages": stream.sent, "decided": decided, "lost": stream.sent - decided, "repeats": found.repeats}
    said = [
        f"{stream.sent:,} messages, {counts['lost']:,} lost, {found.repeats:,} repeats, {found.wrong:,} out of their "
        f"key's order or with another count of it; {lives} lives, {len(happened) - len(stream.rests)} faults",
        *map(str, trends),
        "not judged:",
        *map(str, beside),
    ]
    return {
        **counts,
        "state_wrong": found.wrong,
        "faults": happened,
        "trends": written(trends),
        "beside": written(beside),
        "over_time": over_time,
        "said": said,
    }


def judged(
    over_time: Mapping[str, Sequence[tuple[float, float]]], happened: Sequence[Mapping[str, Any]], last: float
) -> tuple[list[Trend], list[Trend]]:
    """What was seen over time, (seconds, value) of each, judged, and what is told beside it. happened: what, from_s, to_s;
    last: the seconds at which the job's last life began."""
    end = max(at for at, _ in over_time["memory MB"])
    once = [min((each["to_s"] for each in happened if each["what"] == what), default=0.0) for what in OF_THE_BROKER]
    start = max(last + SETTLE_SHARE * (end - last), *(to + GIVEN_BACK_SECONDS for to in once))
    rests = [(each["from_s"], each["to_s"]) for each in happened if each["what"] == REST]
    kept = [(begin + (1 - KEPT_SHARE) * (until - begin), until) for begin, until in rests]

    def within(at: float, spans: Sequence[tuple[float, float]]) -> bool:
        return any(a <= at <= b for a, b in spans)

    def calm(name: str) -> list[tuple[float, float]]:
        after = AFTER_SECONDS if name == "p99 ms" else GIVEN_BACK_SECONDS
        near = [(each["from_s"] - SECONDS_A_BIN, each["to_s"] + after) for each in happened]
        return [(at, value) for at, value in over_time[name] if at >= start and not within(at, near)]

    rested = [(at, value) for at, value in over_time[AT_REST] if at >= start and within(at, kept)]
    trends = [trend(name, rested if name == AT_REST else calm(name), *allowed) for name, allowed in ALLOWED.items()]
    return trends, [trend(f"{AT_REST} under load", calm(AT_REST), *ALLOWED[AT_REST])]


def written(trends: Sequence[Trend]) -> list[dict[str, Any]]:
    """Trends as they are kept; not those of too short a run."""
    return [asdict(each) | {"grown": each.grown} for each in trends if math.isfinite(each.median)]


def wrong(seen: dict[str, Any], mode: str, judged: bool = True) -> list[str]:
    """What is not as promised; judged: growth, too."""
    names = ["lost", "state_wrong", *(["repeats"] if mode == "exactly_once" else [])]
    found = [f"{name}: {seen[name]:,}" for name in names if seen[name]]
    grown = [Trend(each["name"], each["median"], each["growth"], each["allowed"]) for each in seen["trends"] if each["grown"]]
    return found + [f"{each.name} grows" for each in grown if judged]


if __name__ == "__main__":
    sys.exit(main())
