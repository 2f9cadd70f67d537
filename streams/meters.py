"""What a job counts, in the registry it is given. The stages are the seven words."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from features.pushing import Pushing
from models.shadow import Compared

STAGES = ("event", "features", "batch", "model", "decision", "sink", "drift")
HOPS = ("broker", "flow")
EDGES = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0])

Step = tuple[str, float, float]
"""A stage, and when it began and ended with a batch, by perf_counter."""


class Stage:
    """A block of a stage's work, from `started` on. What raises is not counted. steps: where it is written down, too."""

    __slots__ = ("_count", "_name", "_rows", "_seconds", "_steps", "started")

    def __init__(self, name: str, seconds: Counter, count: Counter, rows: int, steps: list[Step] | None) -> None:
        self._name, self._seconds, self._count, self._rows, self._steps = name, seconds, count, rows, steps

    def __enter__(self) -> None:
        self.started = perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            ended = perf_counter()
            self._seconds.inc(ended - self.started)
            if self._rows:
                self._count.inc(self._rows)
            if self._steps is not None:
                self._steps.append((self._name, self.started, ended))


class StoredCollector:
    """What stored features count themselves, looked up when somebody asks for the metrics."""

    def __init__(self, pipeline: str, counts: Callable[[], dict[str, dict[str, int]]], failures: Callable[[], int]) -> None:
        self._pipeline, self._counts, self._failures = pipeline, counts, failures

    def collect(self) -> Iterable[Metric]:
        labels = ["pipeline", "view"]
        rows = GaugeMetricFamily("headrace_stored_rows", "Rows of stored features held", labels=labels)
        told = {
            "asked": "Entities read from the store because they were not there",
            "refreshed": "Rows read again before they were too old",
            "given_up": "Rows that made room for others",
        }
        counters = {name: CounterMetricFamily(f"headrace_stored_{name}", text, labels=labels) for name, text in told.items()}
        for view, counts in self._counts().items():
            rows.add_metric([self._pipeline, view], counts["rows"])
            for name, counter in counters.items():
                counter.add_metric([self._pipeline, view], counts[name])
        failures = CounterMetricFamily("headrace_stored_failures", "Reads that the online store failed", labels=labels[:1])
        failures.add_metric([self._pipeline], self._failures())
        return [rows, *counters.values(), failures]


class PushCollector:
    """What is pushed to Feast, looked up when somebody asks for the metrics."""

    def __init__(self, pipeline: str, pushing: Mapping[str, Pushing]) -> None:
        self._pipeline, self._pushing = pipeline, pushing

    def collect(self) -> Iterable[Metric]:
        labels = ["pipeline", "source"]
        waiting = GaugeMetricFamily("headrace_push_waiting", "Values that wait to be pushed to Feast", labels=labels)
        written = CounterMetricFamily("headrace_pushed", "Values pushed to Feast", labels=labels)
        failures = CounterMetricFamily("headrace_push_failures", "Writes that Feast's store failed", labels=labels)
        given_up = CounterMetricFamily("headrace_push_given_up", "Values that made room for others, not pushed", labels=labels)
        for source, each in self._pushing.items():
            found = (waiting, each.waiting), (written, each.pushed), (failures, each.failed), (given_up, each.given_up)
            for family, value in found:
                family.add_metric([self._pipeline, source], value)
        return [waiting, written, failures, given_up]


class RecordCollector:
    """What is recorded, looked up when somebody asks for the metrics."""

    def __init__(self, pipeline: str, rows: Callable[[], int]) -> None:
        self._pipeline, self._rows = pipeline, rows

    def collect(self) -> Iterable[Metric]:
        rows = CounterMetricFamily("headrace_recorded_rows", "Decisions written to the record's log", labels=["pipeline"])
        rows.add_metric([self._pipeline], self._rows())
        return [rows]


class StateCollector:
    """What streaming features take of the memory, looked up when somebody asks for the metrics."""

    def __init__(self, pipeline: str, sizes: Callable[[], dict[str, int]]) -> None:
        self._pipeline, self._sizes = pipeline, sizes

    def collect(self) -> Iterable[Metric]:
        text = "Bytes of what is kept of an entity, with room to grow"
        family = GaugeMetricFamily("headrace_state_bytes", text, labels=["pipeline", "entity"])
        for entity, size in self._sizes().items():
            family.add_metric([self._pipeline, entity], size)
        return [family]


class HopCollector:
    """How long rows took for each hop, counted a batch at a time."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._counts = {hop: np.zeros(len(EDGES) + 1, np.int64) for hop in HOPS}
        self._sums = dict.fromkeys(HOPS, 0.0)

    def add(self, hop: str, seconds: npt.NDArray[np.float64]) -> None:
        """Rows that took so long; clocks that disagree make no time negative."""
        seconds = np.maximum(seconds, 0.0)
        self._counts[hop] += np.bincount(np.searchsorted(EDGES, seconds), minlength=len(EDGES) + 1)
        self._sums[hop] += float(seconds.sum())

    def collect(self) -> Iterable[Metric]:
        text = "From the broker's stamp of an event to its poll, and from its poll to the hand-over of its decision"
        family = HistogramMetricFamily("headrace_hop_seconds", text, labels=["pipeline", "hop"])
        names = [*map(str, EDGES.tolist()), "+Inf"]
        for hop, counts in self._counts.items():
            buckets = list(zip(names, np.cumsum(counts).tolist(), strict=True))
            family.add_metric([self._pipeline, hop], buckets, self._sums[hop])
        return [family]


class ShadowCollector:
    """How a shadow compares with the champion, looked up when somebody asks for the metrics."""

    def __init__(self, pipeline: str, compared: Callable[[], Compared | None]) -> None:
        self._pipeline, self._compared = pipeline, compared

    def collect(self) -> Iterable[Metric]:
        labels = ["pipeline", "champion", "shadow"]
        told = {
            "rows": "Events scored by the champion and its shadow",
            "failed": "Events that the champion scored and its shadow did not",
            "agreement": "Share of the same decisions",
            "mean_difference": "The shadow's score minus the champion's, in the mean",
            "mean_absolute_difference": "The same, without sign",
            "microseconds_a_row": "Of the shadow's calls",
        }
        families = {name: GaugeMetricFamily(f"headrace_shadow_{name}", text, labels=labels) for name, text in told.items()}
        compared = self._compared()
        if compared is not None and compared.champion and compared.heard_of:
            for name, value in compared.as_dict().items():
                if name in families and value is not None:
                    families[name].add_metric([self._pipeline, str(compared.champion), str(compared.shadow)], value)
        return list(families.values())


class ModelCollector:
    """How the model does, looked up when somebody asks for the metrics."""

    def __init__(
        self, pipeline: str, version: Callable[[], int], engine: Callable[[], str], resting: Callable[[], bool]
    ) -> None:
        self._pipeline, self._version, self._engine, self._resting = pipeline, version, engine, resting

    def collect(self) -> Iterable[Metric]:
        version = GaugeMetricFamily("headrace_model_version", "Version of the model that decides", labels=["pipeline"])
        version.add_metric([self._pipeline], self._version())
        resting = GaugeMetricFamily("headrace_model_resting", "1 while a model that throws is let be", labels=["pipeline"])
        resting.add_metric([self._pipeline], int(self._resting()))
        engine = GaugeMetricFamily("headrace_model_engine", "1 for what computes the model", labels=["pipeline", "engine"])
        engine.add_metric([self._pipeline, self._engine()], 1)
        return [version, engine, resting]


class Meters:
    """The metrics of one pipeline on one worker."""

    def __init__(self, registry: CollectorRegistry, pipeline: str) -> None:
        stage = ["pipeline", "stage"]
        rows = Counter("headrace_rows", "Rows that a stage has handled", stage, registry=registry)
        seconds = Counter("headrace_seconds", "Seconds a stage has worked on the dataflow's thread", stage, registry=registry)
        self._rows = {name: rows.labels(pipeline, name) for name in STAGES}
        self._seconds = {name: seconds.labels(pipeline, name) for name in STAGES}
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
        self.hops = HopCollector(pipeline)
        registry.register(self.hops)

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

    def stage(self, name: str, rows: int = 0, steps: list[Step] | None = None) -> "Stage":
        """Times the block as work of a stage on `rows` rows. steps: of a batch that is traced."""
        return Stage(name, self._seconds[name], self._rows[name], rows, steps)

    def spent(self, name: str, seconds: float) -> None:
        """Counts seconds of a stage's work."""
        self._seconds[name].inc(seconds)

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
        old_late, old_held = self._of_state.get(entity, ((0, 0), (0, 0, 0)))
        if late == old_late and held == old_held:
            return
        self._of_state[entity] = late, held
        self._entities.labels(self._pipeline, entity).set(held[0])
        for outcome, now, before in zip(("used", "dropped"), late, old_late, strict=True):
            if now > before:
                self._late.labels(self._pipeline, entity, outcome).inc(now - before)
        for why, now, before in zip(("idle", "evicted"), held[1:], old_held[1:], strict=True):
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
