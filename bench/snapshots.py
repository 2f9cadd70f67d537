"""The pause between epochs while a million entities are under load, what an epoch writes, and coming back from it.

    python -m bench.snapshots                                  # a million cards, 10,000 events/s, an epoch of 250 ms, 40 s
    python -m bench.snapshots --entities 100000 --json out.json

The real flow with its recovery store on this disk; source and sink are in memory, so that what is seen is headrace, Bytewax and
the disk. Every card pays once as fast as it goes, then cards pay at random at the given rate and each is decided on. **The
pause** is the time for which the source was not asked: from the end of the last call before its snapshot to the first call
after it. It has the last batch's way through the flow in it, and up to a millisecond of idling. Then the job is started again
from the store; there are figures only if that knows every payment of the cards it decides on.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from bench.figures import Figure, WrongError, figure, shown
from bench.machine import commit, machine, versions
from bench.show import say
from features.schema import Integer, Number, Schema, Time
from features.spec import Window
from models.policy import Bands
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Decisions, Model, Pipeline
from streams.polling import Polled
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemoryPartition, MemorySource
from streams.topic import Topic

GOAL_MS = 20.0
PAYMENT = Schema(
    "Payment",
    version=1,
    fields={
        "at": Time(after="2024-01-01", before="2025-01-01"),
        "payment": Integer(low=0),
        "card": Integer(low=0),
        "amount": Number(low=0, high=1000),
    },
)
PIPELINE = Pipeline(
    name="snapshots",
    events=Topic("payments", schema=PAYMENT, time="at", key="card", id="payment"),
    decide_on="amount >= 500",
    features=[Window("card", "amount", over="2h", aggs=("count", "mean", "max"))],
    model=Model("snapshots"),
    policy=Bands(block=0.7, otherwise="allow"),
    sinks=[Decisions("decisions", features=True)],
)
MORE = 1_000
FIRST = np.datetime64("2024-03-01T00:00:00", "us")


class Nothing:
    """An engine that scores everything with 0."""

    spec = ModelSpec("snapshots", tuple(Input(name, "number", ()) for name in PIPELINE.feature_names(())))
    kind = "nothing"

    def warm(self) -> None: ...

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(sizes, 0.0)

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        return np.zeros(len(matrix), np.float32)

    def close(self) -> None: ...


class Paced(MemorySource):
    """Messages of which the first `at_once` are there, and the rest come at `rate` a second. pauses: (when, seconds,
    bytes written by then)."""

    def __init__(self, log: Sequence[tuple[bytes | None, bytes]], at_once: int, rate: float) -> None:
        super().__init__([log])
        self.at_once, self.rate = at_once, rate
        self.began = 0.0
        self.pauses: list[tuple[float, float, int]] = []

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_PacedPartition":
        return _PacedPartition(self, for_part, self._logs[0], resume_state)


class _PacedPartition(MemoryPartition):
    def __init__(self, source: Paced, name: str, log: object, resume: int | None) -> None:
        super().__init__(name, log, resume, 4096, threading.Event(), True, source.gate, source.beginning, source.committed)
        self._source = source
        self._left = self._asked = 0.0

    def next_batch(self) -> list[tuple[str, Polled]]:
        now = time.perf_counter()
        if self._asked:
            self._source.pauses.append((now, now - self._left, written()))
            self._asked = 0.0
        made = super().next_batch()
        self._left = time.perf_counter()
        return made

    def poll(self, wait: float = 0.0) -> Polled | None:
        source = self._source
        if self._position < source.at_once:
            return super().poll()
        source.began = source.began or time.perf_counter()
        due = source.at_once + int((time.perf_counter() - source.began) * source.rate)
        rows = min(due - self._position, 4096)
        if rows <= 0 and self._position < self._log.num_rows:
            time.sleep(min(wait, 1 / source.rate))
            return None
        return self._take(rows)

    def snapshot(self) -> int:
        self._asked = 1.0
        return super().snapshot()


def payments(entities: int, events: int) -> tuple[npt.NDArray[np.int64], list[tuple[bytes | None, bytes]]]:
    """The card of each payment, and the messages: each card once in an hour, then `events` of cards at random in a minute."""
    rng = np.random.default_rng(0)
    cards = np.concatenate([rng.permutation(entities), rng.integers(0, entities, events)])
    spread = np.concatenate([np.linspace(0, 3.6e9, entities), 3.6e9 + np.linspace(0, 6e7, events)]).astype(np.int64)
    times = np.datetime_as_string(FIRST + spread.astype("timedelta64[us]"), "us").tolist()
    amounts = np.where(np.arange(len(cards)) < entities, 1, 600).tolist()
    rows = zip(times, cards.tolist(), amounts, strict=True)
    return cards, [
        (None, b'{"at":"%bZ","payment":%d,"card":%d,"amount":%d}' % (at.encode(), k, card, one))
        for k, (at, card, one) in enumerate(rows)
    ]


def job(home: Path, epoch: float, source: Paced) -> MemorySink:
    """Runs the job until its log is read; the sink."""
    sink, settings = MemorySink(), JobSettings(home=home, recovery=True, metrics_port=0, epoch_seconds=epoch)
    run(PIPELINE, settings, registry=CollectorRegistry(), source=source, sink=sink, champion=Champion(1, Nothing(), None))
    return sink


def written() -> int:
    """The bytes that this process has written to files so far."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def measured(options: argparse.Namespace) -> list[Figure]:
    """Runs, starts again, compares. Raises WrongError where the state that came back is not what was."""
    events = int(options.rate * options.seconds)
    cards, log = payments(options.entities, events + MORE)
    with tempfile.TemporaryDirectory(prefix="headrace-snapshots-", dir=options.disk) as folder:
        home = Path(folder)
        source = Paced(log[:-MORE], options.entities, options.rate)
        say(f"{options.entities:,} cards at once, then {options.rate:,.0f} payments a second for {options.seconds:.0f} s")
        decided = len(job(home, options.epoch, source).values("decisions"))
        if decided != events:
            raise WrongError(f"expected {events} decisions, got {decided}")
        loaded = [pause for pause in source.pauses if pause[0] > source.began + options.seconds / 10]
        if len(loaded) < 3:
            raise WrongError(f"expected at least 3 epochs under load, got {len(loaded)}")
        kept = sum(file.stat().st_size for file in (home / "recovery").rglob("*"))
        started = time.perf_counter()
        found = [json.loads(value) for value in job(home, options.epoch, Paced(log, len(log), 1.0)).values("decisions")]
        resumed = time.perf_counter() - started
    before = np.bincount(cards[:-MORE], minlength=options.entities)
    counts: list[float] = [one["features"]["amount_count_2h_by_card"] for one in found]
    expected = []
    for card in cards[-MORE:]:
        expected.append(float(before[card]))
        before[card] += 1
    if counts != expected:
        raise WrongError(
            f"started again, {sum(a != b for a, b in zip(counts, expected, strict=False))} counts are not as before"
        )
    milliseconds = np.array([seconds for _, seconds, _ in loaded]) * 1e3
    sizes = np.diff([size for *_, size in loaded]) / 1e6
    what = f"{options.entities:,} entities, {options.rate:,.0f} events/s, epochs of {options.epoch * 1e3:.0f} ms"
    return [
        figure("snapshots", f"pause, p50: {what}", "ms", [float(np.quantile(milliseconds, 0.5))]),
        figure("snapshots", f"pause, p99 of {len(loaded)}", "ms", [float(np.quantile(milliseconds, 0.99))], GOAL_MS),
        figure("snapshots", "pause, longest", "ms", [float(milliseconds.max())]),
        figure("snapshots", "written in an epoch", "MB", sizes.tolist()),
        figure("snapshots", "the whole store", "MB", [kept / 1e6]),
        figure("snapshots", f"started again, {MORE:,} decided and left", "s", [resumed]),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.snapshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--epoch", type=float, default=0.25)
    parser.add_argument("--disk", type=Path, default=None, help="a folder on the disk to write to  [default: /tmp]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    try:
        figures = measured(options)
    except WrongError as error:
        print(f"bench.snapshots: {error}: no figures", file=sys.stderr)
        return 1
    print("\n".join(map(shown, figures)))
    if options.json:
        head, dirty = commit()
        told = {"kind": "snapshots", "figures": figures, "commit": head, "dirty": dirty}
        options.json.write_text(json.dumps(told | {"machine": machine(), "versions": versions()}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
