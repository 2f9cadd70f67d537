"""What workers count, as rates and quantiles: their metrics are read again and again, and what has grown is added up."""

import math
from collections import deque
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

Key = tuple[str, frozenset[tuple[str, str]]]
"""A sample's name, and its labels but the pipeline's, of which a worker has one."""
Reading = Mapping[Key, float]
WINDOW_SECONDS = 11.0
"""Two looks of five seconds, or ten of one."""
OURS = "headrace_"


def parsed(text: str) -> dict[Key, float]:
    """A worker's own metrics. Raises ValueError for a text that has none."""
    found: dict[Key, float] = {}
    for family in text_string_to_metric_families("\n".join(line for line in text.split("\n") if line.startswith(OURS))):
        for sample in family.samples:
            labels = frozenset((name, value) for name, value in sample.labels.items() if name != "pipeline")
            found[sample.name, labels] = float(sample.value)
    if not found:
        raise ValueError("expected metrics, got none")
    return found


class Figures:
    """What all workers have together, and how much of it is new.

    workers: how many answered the last time; busiest: the most that did in the time that rates are of. seconds: how long that
    is, at most about `most`.
    """

    def __init__(self, most: float = WINDOW_SECONDS) -> None:
        self._most = most
        self._before: Mapping[int, Reading] = {}
        self._at = 0.0
        self._spans: deque[tuple[float, int, dict[Key, float]]] = deque()
        self._grown: dict[Key, float] = {}
        self.workers, self.busiest, self.seconds = 0, 0, 0.0

    def take(self, at: float, read: Mapping[int, Reading]) -> None:
        """What workers say, by number, at a time in seconds. Of one that was not there nothing is known to have grown."""
        both = self._before.keys() & read.keys()
        if both:
            self._spans.append(
                (at - self._at, len(both), _added(_growth(self._before[number], read[number]) for number in both))
            )
        else:
            self._spans.clear()
        while len(self._spans) > 1 and sum(span[0] for span in self._spans) > self._most:
            self._spans.popleft()
        self._before, self._at, self.workers = dict(read), at, len(read)
        self._grown = _added(span[2] for span in self._spans)
        self.seconds = sum(span[0] for span in self._spans)
        self.busiest = max((span[1] for span in self._spans), default=0)

    def rate(self, name: str, **labels: str) -> float | None:
        """How much it grows in a second, all workers together; None where that is not known."""
        if not self.seconds:
            return None
        return sum(_of(self._grown, name, labels).values()) / self.seconds

    def total(self, name: str, **labels: str) -> float | None:
        """What all workers have of it; None where no worker has it."""
        found = [value for reading in self._before.values() for value in _of(reading, name, labels).values()]
        return sum(found) if found else None

    def most(self, name: str) -> float | None:
        """The most that a worker has of it: for what they do not share."""
        found = [value for reading in self._before.values() for value in _of(reading, name, {}).values()]
        return max(found) if found else None

    def values(self, name: str, label: str) -> list[str]:
        """The values of a label, those that most was counted of first."""
        totals: dict[str, float] = {}
        for reading in self._before.values():
            for (_, labels), value in _of(reading, name, {}).items():
                said = dict(labels).get(label, "")
                totals[said] = totals.get(said, 0.0) + value
        return sorted(totals, key=lambda said: (-totals[said], said))

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """Of what a histogram counted lately; None where it counted nothing."""
        buckets: dict[float, float] = {}
        for (_, have), count in _of(self._grown, f"{name}_bucket", labels).items():
            edge = float(dict(have)["le"])
            buckets[edge] = buckets.get(edge, 0.0) + count
        return quantile(buckets, share)


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """The value that a share of what was counted is not above. buckets: how much was counted up to each edge, the last of which
    is infinite. Within a bucket all is taken to be spread evenly; of what is beyond the last finite edge that edge is said."""
    edges = sorted(buckets)
    rank = share * buckets[edges[-1]] if edges else 0.0
    if not rank > 0:
        return None
    low = below = 0.0
    for edge in edges:
        count = buckets[edge]
        if count >= rank:
            return low if math.isinf(edge) else low + (edge - low) * (rank - below) / (count - below)
        low, below = edge, count
    return low


def _growth(before: Reading, now: Reading) -> dict[Key, float]:
    """A count that is smaller than before began anew: its worker was started again between the two."""
    return {key: value - old if value >= (old := before.get(key, 0.0)) else value for key, value in now.items()}


def _added(parts: Iterable[Mapping[Key, float]]) -> dict[Key, float]:
    total: dict[Key, float] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def _of(reading: Reading, name: str, labels: Mapping[str, str]) -> dict[Key, float]:
    wanted = set(labels.items())
    return {key: value for key, value in reading.items() if key[0] == name and wanted <= key[1]}
