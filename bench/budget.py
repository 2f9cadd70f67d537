"""What a budget of time does under overload, and what batches do for a slow model.

python -m bench.budget                                 # about five minutes
python -m bench.budget --milliseconds 20 --json budget.json

The real flow with its recovery store; source and sink are in memory, so that what is seen is headrace and not a broker. Each
poll and each hand-over is timed by them, not by the job. **Overload**: all messages are due at once, four partitions, a model
of two layers of 1,024. **Half**: half of what was decided a second under overload comes, at its time. **A slow model** takes 20
ms for a call, whatever its size; messages of eight partitions come at their time, and latency is from then to the hand-over.
The same job with an engine call for each partition and poll is what it is compared with: which load has a p99 of 100 ms?
No figures if a decision is lost or doubled.
"""

import argparse
import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import orjson
import pyarrow as pa
from onnx import helper
from prometheus_client import CollectorRegistry

from bench.figures import Figure, WrongError, figure, shown
from bench.proving.job import ALL, COUNT, NAME, SUM, event, graph_of, pipeline
from bench.show import made, say, write
from models.engine import Engine, OnnxEngine
from models.spec import Input, ModelSpec
from sinks.messages import Messages
from streams.budget import AS_SET, LATE, Budget
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.polling import Polled
from streams.routing import shard_number
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemoryPartition, MemorySource

GOAL_LATE, GOAL_TIMES, SLOW_SECONDS, SLOW_P99_MS = 0.001, 5.0, 0.02, 100.0
KEYS, WIDTH = 1_000, 1_024
SETTLED = 0.2
"""Of a run, at its beginning, that is not counted."""
INPUTS = tuple(Input(name, "number", ()) for name in ("n", COUNT, SUM, ALL))


class Due(MemorySource):
    """Messages that come at a rate (0: all are there). polls: (partition, first offset, end, when, monotonic s)."""

    def __init__(self, messages: int, partitions: int, rate: float) -> None:
        each = messages // partitions
        super().__init__(
            [
                [(None, event(f"p{partition}-k{n % KEYS}", f"s{n % KEYS}", n)) for n in range(each)]
                for partition in range(partitions)
            ]
        )
        self.rate, self.began = rate, 0.0
        self.polls: list[tuple[int, int, int, float]] = []

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> "_DuePartition":
        return _DuePartition(self, for_part, self._logs[shard_number(for_part)], resume_state)

    def due(self, partition: int, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """When messages come, monotonic seconds."""
        return self.began + (offsets * self.partitions + partition) / (self.rate or np.inf)


class _DuePartition(MemoryPartition):
    def __init__(self, source: Due, name: str, log: pa.RecordBatch, resume: int | None) -> None:
        super().__init__(name, log, resume, 4096, threading.Event(), True, source.gate, source.beginning, source.committed)
        self._source = source

    def poll(self, wait: float = 0.0) -> Polled | None:
        source, now = self._source, time.monotonic()
        source.began = source.began or now
        rows = 4096
        if source.rate:
            come = int(((now - source.began) * source.rate - self._number) // source.partitions) + 1
            rows = min(come - self._position, rows)
            if rows <= 0 and self._position < self._log.num_rows:
                time.sleep(min(wait, 1e-3))
                return None
        polled = self._take(rows)
        source.polls.append((self._number, self._position, self._position + polled.rows, now))
        return polled


@dataclass
class Handed:
    """A sink that knows when each message was handed over."""

    written: list[tuple[float, list[bytes]]] = field(default_factory=list)

    def write(self, messages: Messages) -> None:
        self.written.append((time.monotonic(), messages.values))

    def flush(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Seen:
    """Of each message in the order of its hand-over: from its poll, or when it was due, to that, s; whether it was flagged
    late; when it was handed over, monotonic s."""

    took: npt.NDArray[np.float64]
    late: npt.NDArray[np.bool_]
    at: npt.NDArray[np.float64]

    @property
    def settled(self) -> "Seen":
        """Without the beginning."""
        of = self.at >= self.at[0] + SETTLED * (self.at[-1] - self.at[0])
        return Seen(self.took[of], self.late[of], self.at[of])

    @property
    def a_second(self) -> float:
        """Raises WrongError where all was handed over at once."""
        if self.at[-1] == self.at[0]:
            raise WrongError("expected several hand-overs, got one: more messages are needed")
        return len(self.at) / float(self.at[-1] - self.at[0])

    @property
    def p99_ms(self) -> float:
        """Of those that were not flagged. Raises WrongError where all were."""
        if self.late.all():
            raise WrongError("expected decisions in time, got none: the budget is too small for this machine")
        return float(np.quantile(self.took[~self.late], 0.99) * 1e3)


class Slow:
    """Scores in so many seconds, however many rows there are."""

    spec = ModelSpec(NAME, INPUTS)
    kind = "asleep"

    def warm(self) -> None: ...

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(sizes, SLOW_SECONDS)

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        time.sleep(SLOW_SECONDS)
        return np.zeros(len(matrix), np.float32)

    def close(self) -> None: ...


class Apart(Slow):
    """Scores what came of each partition by a call of its own."""

    def __init__(self, source: Due) -> None:
        self._source, self._scored = source, 0

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        polls = self._source.polls[self._scored :]
        self._scored += len(polls)
        time.sleep(SLOW_SECONDS * max(0, len({partition for partition, *_ in polls}) - 1))
        return super().infer(matrix)


def layers(folder: Path) -> OnnxEngine:
    """A model of two layers of WIDTH."""
    rng = np.random.default_rng(0)
    sizes = [(len(INPUTS), WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    numbers = {f"w{k}": (rng.standard_normal(size) / 50).astype(np.float32) for k, size in enumerate(sizes)}
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "x"], ["full"]),
        helper.make_node("Tanh", ["full"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w0"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["h2"]),
        helper.make_node("MatMul", ["h2", "w2"], ["a2"]),
        helper.make_node("Sigmoid", ["a2"], ["score"]),
    ]
    graph = graph_of(nodes, len(INPUTS), numbers | {"zero": np.zeros(1, np.float32)})
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    ModelSpec(NAME, INPUTS).write(folder)
    return OnnxEngine(folder)


def job(home: Path, made_of: Pipeline, engine: Engine, source: Due, by_poll: bool) -> Seen:
    """Runs a job until its log is read; by_poll: times count from there. Raises WrongError for a decision lost or doubled."""
    sink, settings = Handed(), JobSettings(home=home, recovery=True, metrics_port=0)
    run(made_of, settings, registry=CollectorRegistry(), source=source, sink=sink, champion=Champion(1, engine, None))
    return seen(source, sink, by_poll)


def seen(source: Due, sink: Handed, by_poll: bool) -> Seen:
    """What the source and the sink saw."""
    sizes = [log.num_rows for log in source._logs]
    begun = [source.due(partition, np.arange(size)) for partition, size in enumerate(sizes)]
    for partition, first, end, when in source.polls if by_poll else ():
        begun[partition][first:end] = when
    decided = [orjson.loads(value) for _, values in sink.written for value in values]
    places = [tuple(map(int, one["decision_id"].rsplit("/", 2)[1:])) for one in decided]
    if len(set(places)) != len(places) or len(places) != sum(sizes):
        raise WrongError(f"expected {sum(sizes):,} decisions, got {len(places):,} of {len(set(places)):,} messages")
    at = np.repeat([when for when, _ in sink.written], [len(values) for _, values in sink.written])
    from_ = np.array([begun[partition][offset] for partition, offset in places])
    return Seen(at - from_, np.array([LATE in one["flags"] for one in decided]), at)


def budget(home: Path, milliseconds: float, messages: int, turns: int) -> list[Figure]:
    """Overload without a budget and with one of each kind, then half of the load, in turns: the machine may be faster now and
    slower then."""
    engine, took = layers(home / "model"), dict[tuple[str, str, float | None], list[float]]()

    def of(name: str, kind: Budget | None, rate: float, count: int) -> Seen:
        say(f"{name}: {count:,} messages{f' at {rate:,.0f} a second' if rate else ', all there'}")
        made_of = replace(pipeline("budget"), budget=kind)
        place = Path(tempfile.mkdtemp(dir=home))
        return job(place, made_of, engine, Due(count, 4, rate), by_poll=True).settled

    def note(what: str, unit: str, value: float, goal: float | None = None) -> None:
        took.setdefault((what, unit, goal), []).append(value)

    for turn in range(1, turns + 1):
        free = of(f"turn {turn} of {turns}: overload, no budget", None, 0, messages)
        note("overload, no budget: decisions a second", "1/s", free.a_second)
        note("overload, no budget: poll to hand-over, p99", "ms", free.p99_ms)
        slowest = free.a_second
        for kind in AS_SET:
            one = of(f"overload, {kind}", Budget(milliseconds, kind), 0, messages)
            name = f"{milliseconds:g} ms, {kind}, overload"
            note(f"{name}: decisions a second", "1/s", one.a_second)
            note(f"{name}: flagged late", "%", 100 * float(one.late.mean()))
            note(f"{name}: the others, p99", "ms", one.p99_ms, milliseconds)
            slowest = min(slowest, one.a_second)
        half = of("half", Budget(milliseconds), slowest / 2, int(slowest * 7.5))
        late = 100 * float(half.late.mean())
        note(f"{milliseconds:g} ms, half of that load: flagged late", "%", late, 100 * GOAL_LATE)
    return [figure("budget", what, unit, values, goal) for (what, unit, goal), values in took.items()]


def slow(home: Path, seconds: float) -> list[Figure]:
    """The highest load, of doubled ones, with a p99 of SLOW_P99_MS, with a call for all and a call for each partition."""

    def p99(rate: float, apart: bool, number: int) -> float:
        source = Due(max(400, int(rate * seconds)), 8, rate)
        one = job(home / f"slow-{number}", pipeline("slow"), Apart(source) if apart else Slow(), source, by_poll=False)
        say(f"slow model, {'a call for each' if apart else 'together'}, {rate:,.0f}/s: p99 {one.settled.p99_ms:.0f} ms")
        return one.settled.p99_ms

    numbers = itertools.count()
    apart = highest(lambda rate: p99(rate, True, next(numbers)))
    together = highest(lambda rate: p99(rate, False, next(numbers)))
    what = f"model of {SLOW_SECONDS * 1e3:.0f} ms a call, 8 partitions, p99 of {SLOW_P99_MS:.0f} ms"
    return [
        figure("budget", f"{what}: a call for each partition", "1/s", [apart]),
        figure("budget", f"{what}: all together", "1/s", [together]),
        figure("budget", f"{what}: times the load, {GOAL_TIMES:g} at least", "", [together / apart]),
    ]


def highest(p99: Callable[[float], float], first: float = 25.0, most: float = 100_000.0) -> float:
    """The highest of doubled rates that has a p99 of SLOW_P99_MS. Raises WrongError where the first has not."""
    rate = 0.0
    for each in itertools.takewhile(lambda each: each <= most, (first * 2**k for k in itertools.count())):
        if p99(each) > SLOW_P99_MS:
            break
        rate = each
    if not rate:
        raise WrongError(f"expected {first:g} messages a second with a p99 of {SLOW_P99_MS:g} ms, got more")
    return rate


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.budget", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, default=10.0, help="the budget  [default: 10]")
    parser.add_argument("--messages", type=int, default=60_000, help="under overload  [default: 60,000]")
    parser.add_argument("--turns", type=int, default=5, help="of overload and half of it  [default: 5]")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load of the slow model  [default: 4]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    settings = {"messages": options.messages, "turns": options.turns, "seconds": options.seconds}
    told = made("budget", {"name": "budget"}, settings)
    with tempfile.TemporaryDirectory(prefix="headrace-budget-") as folder:
        try:
            figures = budget(Path(folder), options.milliseconds, options.messages, options.turns)
            figures += slow(Path(folder), options.seconds)
        except WrongError as error:
            print(f"bench.budget: {error}: no figures", file=sys.stderr)
            return 1
    print("\n".join(map(shown, figures)))
    if options.json:
        write(told | {"figures": figures}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
