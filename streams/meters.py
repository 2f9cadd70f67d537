"""What a job counts, in the registry it is given. The stages are the seven words."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from features.pushing import Pushing
from models.shadow import Compared
from streams.collectors import (
    LagCollector,
    ModelCollector,
    PushCollector,
    RecordCollector,
    ShadowCollector,
    StateCollector,
    StoredCollector,
)

STAGES = ("event", "features", "batch", "model", "decision", "sink", "drift")
HOPS = ("broker", "flow")
AT_ONCE = 1024
"""Rows that have passed, at which they are counted: of a batch of a few that is most of the work."""
OUTCOMES, WHYS = ("used", "dropped"), ("idle", "evicted")
EDGES = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0])

I64 = npt.NDArray[np.int64]
Step = tuple[str, float, float]
"""A stage, and when it began and ended with a batch, by perf_counter."""


class Spent:
    """What a stage has worked, as one thread counts it: a counter of Prometheus takes ten times as long, for each of a batch's
    dozen blocks."""

    __slots__ = ("rows", "seconds")

    def __init__(self) -> None:
        self.rows, self.seconds = 0, 0.0


class Stage:
    """A block of a stage's work, from `started` on. What raises is not counted. steps: where it is written down, too."""

    __slots__ = ("_name", "_rows", "_spent", "_steps", "started")

    def __init__(self, name: str, spent: Spent, rows: int, steps: list[Step] | None) -> None:
        self._name, self._spent, self._rows, self._steps = name, spent, rows, steps

    def __enter__(self) -> None:
        self.started = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            ended = perf_counter()
            self._spent.seconds += ended - self.started
            self._spent.rows += self._rows
            if self._steps is not None:
                self._steps.append((self._name, self.started, ended))


class StageCollector:
    """What each stage has worked: on the dataflow's thread, and aside on another of its own."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self.spent, self.aside = ({name: Spent() for name in STAGES} for _ in range(2))

    def collect(self) -> Iterable[Metric]:
        labels = ["pipeline", "stage"]
        rows = CounterMetricFamily("headrace_rows", "Rows that a stage has handled", labels=labels)
        seconds = CounterMetricFamily(
            "headrace_seconds", "Seconds a stage has worked, drift's on its own thread, too", labels=labels
        )
        for name in STAGES:
            spent, aside = self.spent[name], self.aside[name]
            rows.add_metric([self._pipeline, name], spent.rows + aside.rows)
            seconds.add_metric([self._pipeline, name], spent.seconds + aside.seconds)
        return [rows, seconds]


class HopCollector:
    """How long rows took for each hop, counted many at a time."""

    def __init__(self, pipeline: str, edges: npt.NDArray[np.float64]) -> None:
        self._pipeline, self._edges = pipeline, edges
        self._counts = {hop: np.zeros(len(edges) + 1, np.int64) for hop in HOPS}
        self._sums = dict.fromkeys(HOPS, 0.0)
        self._waiting: list[tuple[I64, I64, int]] = []
        self._rows = 0
        self._lock = threading.Lock()

    def passed(self, appended_at: pa.Array, polled_at: pa.Array, now: int) -> None:
        """Rows were handed over now (ns) that the broker has stamped (int64 [n], ms; 0: it has not) and that were polled (int64
        [n], ns). They are counted with those of other batches, and when somebody asks; copied until then, since a row keeps the
        whole poll that it is of."""
        with self._lock:
            self._waiting.append((appended_at.to_numpy().copy(), polled_at.to_numpy().copy(), now))
            self._rows += len(polled_at)
            if self._rows >= AT_ONCE:
                self._count()

    def add(self, hop: str, seconds: npt.NDArray[np.float64]) -> None:
        """Rows that took so long; clocks that disagree make no time negative."""
        seconds = np.maximum(seconds, 0.0)
        self._counts[hop] += np.bincount(np.searchsorted(self._edges, seconds), minlength=len(self._edges) + 1)
        self._sums[hop] += float(seconds.sum())

    def collect(self) -> Iterable[Metric]:
        text = "From the broker's stamp of an event to its poll, and from its poll to the hand-over of its decision"
        family = HistogramMetricFamily("headrace_hop_seconds", text, labels=["pipeline", "hop"])
        names = [*map(str, self._edges.tolist()), "+Inf"]
        with self._lock:
            self._count()
            for hop, counts in self._counts.items():
                buckets = list(zip(names, np.cumsum(counts).tolist(), strict=True))
                family.add_metric([self._pipeline, hop], buckets, self._sums[hop])
        return [family]

    def _count(self) -> None:
        """Counts what has passed. The lock is held."""
        if not self._waiting:
            return
        waiting, self._waiting, self._rows = self._waiting, [], 0
        appended_at = np.concatenate([appended for appended, _, _ in waiting])
        polled_at = np.concatenate([polled for _, polled, _ in waiting])
        now = np.repeat([now for _, _, now in waiting], [len(polled) for _, polled, _ in waiting])
        self.add("broker", (polled_at / 1e9 - appended_at / 1e3)[appended_at > 0])
        self.add("flow", (now - polled_at) / 1e9)


class Meters:
    """The metrics of one pipeline on one worker. budget_seconds: what an event may take, where that is bounded.

    Counters by a label that is known beforehand begin at 0 (`codes`, `outcomes`, `watched`): of a series that begins at 1
    Prometheus knows no increase.
    """

    def __init__(self, registry: CollectorRegistry, pipeline: str, budget_seconds: float | None = None) -> None:
        self._stages = StageCollector(pipeline)
        registry.register(self._stages)
        self._registry, self._pipeline = registry, pipeline
        self._known: dict[tuple[Counter, str], Counter] = {}
        self._of_drift: dict[tuple[str, str], tuple[Gauge, Counter]] = {}
        self._dead = Counter("headrace_dead_letters", "Messages sent to dead letters", ["pipeline", "code"], registry=registry)
        self._decisions = Counter("headrace_decisions", "Decisions", ["pipeline", "decision"], registry=registry)
        self._flags = Counter("headrace_flags", "Decisions with a flag", ["pipeline", "flag"], registry=registry)
        self.batch_rows = Histogram(
            "headrace_batch_rows", "Rows in a batch given to the model", ["pipeline"],
            buckets=[4**k for k in range(9)], registry=registry,
        ).labels(pipeline)  # fmt: skip
        statistic = ["pipeline", "feature", "statistic"]
        self._drift = Gauge("headrace_drift", "The last window's statistic", statistic, registry=registry)
        self._alarms = Counter("headrace_drift_alarms", "Windows that alarmed", statistic, registry=registry)
        entity = ["pipeline", "entity"]
        self._late = Counter("headrace_late_updates", "Late updates of windows", [*entity, "outcome"], registry=registry)
        self._gone = Counter("headrace_entities_gone", "Entities forgotten", [*entity, "why"], registry=registry)
        self._entities = Gauge("headrace_entities", "Entities with streaming features", entity, registry=registry)
        self._of_state: dict[str, tuple[tuple[int, int], tuple[int, int, int]]] = {}
        text = "Seconds that an event may take from its poll to the hand-over of its decision"
        budget = Gauge("headrace_budget_seconds", text, ["pipeline"], registry=registry)
        edges = EDGES
        if budget_seconds is not None:
            budget.labels(pipeline).set(budget_seconds)
            edges = np.union1d(EDGES, [budget_seconds])  # so that a quantile is over the budget if and only if it is
        drift_late = Counter("headrace_drift_late_rows", "Rows of windows already judged", ["pipeline"], registry=registry)
        self.drift_late = drift_late.labels(pipeline)
        early = Counter("headrace_early_releases", "Rows released before their turn", ["pipeline"], registry=registry)
        self.early = early.labels(pipeline)
        left = Gauge("headrace_rebuild_left", "Messages to read again before deciding goes on", ["pipeline"], registry=registry)
        self.rebuild_left = left.labels(pipeline)
        failed = Counter("headrace_commits_failed", "Commits of safe positions refused", ["pipeline"], registry=registry)
        self.commits_failed = failed.labels(pipeline)
        unscored = Counter(
            "headrace_model_failed_rows", "Rows the model threw at, or was let be", ["pipeline"], registry=registry
        )
        self.model_failed = unscored.labels(pipeline)
        swaps = Counter("headrace_model_swaps", "Times that a version of the model took over", ["pipeline"], registry=registry)
        self.model_swaps = swaps.labels(pipeline)
        refused = Counter("headrace_model_refused", "Versions of the model that were refused", ["pipeline"], registry=registry)
        self.model_refused = refused.labels(pipeline)
        left_out = Counter("headrace_shadow_left_out", "Rows that the shadow was not given", ["pipeline"], registry=registry)
        self.shadow_left_out = left_out.labels(pipeline)
        self.hops = HopCollector(pipeline, edges)
        registry.register(self.hops)

    def codes(self, codes: Iterable[str]) -> None:
        """What dead letters there may be."""
        for code in codes:
            self._dead.labels(self._pipeline, code)

    def outcomes(self, decisions: Iterable[str], flags: Iterable[str]) -> None:
        """What may be decided, and what decisions may say of themselves."""
        for counter, names in ((self._decisions, decisions), (self._flags, flags)):
            for name in names:
                self._of(counter, name)

    def watched(self, features: Iterable[str], statistics: Iterable[str]) -> None:
        """Whose drift may alarm, and by what."""
        for feature, statistic in product(features, statistics):
            self._alarms.labels(self._pipeline, feature, statistic)

    def lags(self, lags: Mapping[int, Callable[[], int | None]]) -> None:
        """Shows how many messages are after what was decided, by partition."""
        self._registry.register(LagCollector(self._pipeline, lags))

    def stored(self, counts: Callable[[], dict[str, dict[str, int]]], failures: Callable[[], int]) -> None:
        """Shows what stored features count, by view, and how often their store failed."""
        self._registry.register(StoredCollector(self._pipeline, counts, failures))

    def pushing(self, pushing: Mapping[str, Pushing]) -> None:
        """Shows what is pushed to Feast, by push source."""
        self._registry.register(PushCollector(self._pipeline, pushing))

    def states(self, sizes: Callable[[], dict[str, int]]) -> None:
        """Shows the bytes of the streaming features' state by entity."""
        self._registry.register(StateCollector(self._pipeline, sizes))

    def model(self, version: Callable[[], int], engine: Callable[[], str], resting: Callable[[], bool]) -> None:
        """Shows which version of the model decides, what computes it, and whether it is let be."""
        self._registry.register(ModelCollector(self._pipeline, version, engine, resting))

    def shadow(self, compared: Callable[[], Compared | None]) -> None:
        """Shows how a shadow compares."""
        self._registry.register(ShadowCollector(self._pipeline, compared))

    def recording(self, rows: Callable[[], int]) -> None:
        """Shows how many decisions are in the record."""
        self._registry.register(RecordCollector(self._pipeline, rows))

    def stage(self, name: str, rows: int = 0, steps: list[Step] | None = None, aside: bool = False) -> "Stage":
        """Times the block as work of a stage on `rows` rows. steps: of a batch that is traced. aside: on the stage's own
        thread, not on the dataflow's."""
        return Stage(name, (self._stages.aside if aside else self._stages.spent)[name], rows, steps)

    def spent(self, name: str, seconds: float) -> None:
        """Counts seconds of a stage's work on the dataflow's thread."""
        self._stages.spent[name].seconds += seconds

    def dead(self, counts: dict[str, int]) -> None:
        """Counts dead letters by code."""
        for code, count in counts.items():
            self._dead.labels(self._pipeline, code).inc(count)

    def decided(self, decisions: Iterable[tuple[str, int]], flags: Iterable[tuple[Sequence[str], int]]) -> None:
        """Counts decisions, and the flags among them: how many rows had which."""
        for decision, count in decisions:
            self._of(self._decisions, decision).inc(count)
        for names, count in flags:
            for flag in names:
                self._of(self._flags, flag).inc(count)

    def state(self, entity: str, late: tuple[int, int], held: tuple[int, int, int]) -> None:
        """Shows a state's entities, and counts what is new: late updates used and dropped; held, expired, evicted."""
        if entity not in self._of_state:
            self._of_state[entity] = (0, 0), (0, 0, 0)
            for counter, names in ((self._late, OUTCOMES), (self._gone, WHYS)):
                for name in names:
                    counter.labels(self._pipeline, entity, name)
        old_late, old_held = self._of_state[entity]
        if late == old_late and held == old_held:
            return
        self._of_state[entity] = late, held
        self._entities.labels(self._pipeline, entity).set(held[0])
        for outcome, now, before in zip(OUTCOMES, late, old_late, strict=True):
            if now > before:
                self._late.labels(self._pipeline, entity, outcome).inc(now - before)
        for why, now, before in zip(WHYS, held[1:], old_held[1:], strict=True):
            if now > before:
                self._gone.labels(self._pipeline, entity, why).inc(now - before)

    def _of(self, counter: Counter, label: str) -> Counter:
        """The pipeline's counter with this label; prometheus_client looks them up in ten times the time."""
        found = self._known.get((counter, label))
        if found is None:
            found = self._known[counter, label] = counter.labels(self._pipeline, label)
        return found

    def drift(self, feature: str, statistic: str, value: float, alarmed: bool) -> None:
        """Shows a closed window's statistic, and counts its alarm."""
        found = self._of_drift.get((feature, statistic))
        if found is None:
            labels = self._pipeline, feature, statistic
            found = self._of_drift[feature, statistic] = self._drift.labels(*labels), self._alarms.labels(*labels)
        shown, alarms = found
        shown.set(value)
        alarms.inc(int(alarmed))
