"""What parts of a job count or hold themselves, looked up when somebody asks for the metrics."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from features.pushing import Pushing
from models.shadow import Compared


class StoredCollector:
    """What stored features count themselves."""

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
    """What is pushed to Feast."""

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
    """What is recorded."""

    def __init__(self, pipeline: str, rows: Callable[[], int]) -> None:
        self._pipeline, self._rows = pipeline, rows

    def collect(self) -> Iterable[Metric]:
        rows = CounterMetricFamily("headrace_recorded_rows", "Decisions written to the record's log", labels=["pipeline"])
        rows.add_metric([self._pipeline], self._rows())
        return [rows]


class StateCollector:
    """What streaming features take of the memory."""

    def __init__(self, pipeline: str, sizes: Callable[[], dict[str, int]]) -> None:
        self._pipeline, self._sizes = pipeline, sizes

    def collect(self) -> Iterable[Metric]:
        text = "Bytes of what is kept of an entity, with room to grow"
        family = GaugeMetricFamily("headrace_state_bytes", text, labels=["pipeline", "entity"])
        for entity, size in self._sizes().items():
            family.add_metric([self._pipeline, entity], size)
        return [family]


class LagCollector:
    """How far each of a worker's partitions is behind."""

    def __init__(self, pipeline: str, lags: Mapping[int, Callable[[], int | None]]) -> None:
        self._pipeline, self._lags = pipeline, lags

    def collect(self) -> Iterable[Metric]:
        text = "Messages of the topic after those that were decided"
        family = GaugeMetricFamily("headrace_lag_messages", text, labels=["pipeline", "partition"])
        for partition, lag in dict(self._lags).items():
            if (messages := lag()) is not None:
                family.add_metric([self._pipeline, str(partition)], messages)
        return [family]


class ShadowCollector:
    """How a shadow compares with the champion."""

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
    """How the model does."""

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
