"""An engine on a device, whose batches are cut to the few sizes that a graph was captured for.

A batch of any size is cut to buckets, the last one filled up with rows that nobody reads. A bucket is one launch of one CUDA
graph: from pinned memory to the device, the model, and back. There are two slots, each with its memory, its stream and its
graphs, so that one copies while the other computes; the host waits when it needs a slot again, and for the last ones.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from models.device import Device
from models.engine import Matrix, ModelRefused, check_matrix, profiled, timed_out
from models.spec import ModelSpec

SLOTS = 2
Work = Callable[[], None]
Cut = Callable[[int], tuple[int, ...]]


class Place(NamedTuple):
    """What a bucket is computed from, float32 [n, K], and into, float32 [n, k], both on the device, and by which stream."""

    matrix: Any
    scores: Any
    stream: Any


class Slot(NamedTuple):
    """Rows on their way: pinned memory of the host, a stream, and the graph of each bucket with what it was captured of, whose
    memory has to live as long."""

    given: Matrix
    taken: Matrix
    stream: Any
    graphs: Mapping[int, tuple[Any, Work]]


class Flight(NamedTuple):
    """Rows first to last of a batch in a slot; their scores are there once the event has happened."""

    slot: Slot
    first: int
    last: int
    event: Any


class BucketEngine:
    """An engine (models/engine.py) for any number of rows, of a model that is computed for a few numbers of them."""

    def __init__(
        self,
        spec: ModelSpec,
        kind: str,
        buckets: Sequence[int],
        device: Device,
        ready: Callable[[Place], Work],
        seconds: float = 0.0,
    ) -> None:
        """ready: makes ready what has the place's stream compute its scores of its matrix; called once for each slot and
        bucket, and what it returns is called once before it is captured. seconds: which a bucket may take (0: as long as it
        likes), else `infer` raises TimedOut; the device goes on with it, and the next call waits as long for that. Raises
        ModelRefused where the device cannot run it."""
        self.spec, self.kind = spec, kind
        self._buckets, self._device, self._seconds = tuple(sorted(buckets)), device, seconds
        try:
            self._slots = [self._slot(ready) for _ in range(SLOTS)]
        except RuntimeError as error:
            raise ModelRefused(f"model {spec.name}: the device cannot run it: {error}") from error
        self._flying: deque[Flight] = deque()
        self._cut = cutter({size: float(size) for size in self._buckets})

    def warm(self) -> None:
        """Measures what each bucket takes, by which batches are cut from now on."""
        self._cut = cutter(self.profile(self._buckets))

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return profiled(self, sizes)

    def infer(self, matrix: Matrix, out: Matrix | None = None) -> Matrix:
        check_matrix(matrix, self.spec)
        while self._flying:  # of a call that took too long, and is forgotten
            self._until(self._flying[0].event, len(matrix))
            self._flying.popleft()
        scores, first = np.empty((len(matrix), self.spec.outputs), np.float32), 0
        for number, size in enumerate(self._cut(len(matrix))):
            slot, last = self._slots[number % SLOTS], min(first + size, len(matrix))
            if len(self._flying) == SLOTS:
                self._land(scores)
            slot.given[: last - first] = matrix[first:last]
            event = self._device.launch(slot.graphs[size][0], slot.stream)
            self._flying.append(Flight(slot, first, last, event))
            first = last
        while self._flying:
            self._land(scores)
        found = scores.reshape(self.spec.shape(len(matrix)))
        if out is None:
            return found
        out[:] = found
        return out

    def close(self) -> None:
        """Waits for what is on its way, as long as a bucket may take: what hangs is left to the device."""
        if all(self._device.until(flight.event, self._seconds) for flight in self._flying):
            self._flying.clear()
            self._slots = []

    def _land(self, scores: Matrix) -> None:
        flight = self._flying[0]
        self._until(flight.event, len(scores))
        scores[flight.first : flight.last] = flight.slot.taken[: flight.last - flight.first]
        self._flying.popleft()

    def _until(self, event: Any, rows: int) -> None:
        if not self._device.until(event, self._seconds):
            raise timed_out(self.spec, rows, self._seconds)

    def _slot(self, ready: Callable[[Place], Work]) -> Slot:
        device, most, spec = self._device, self._buckets[-1], self.spec
        given, taken = device.pinned(most, spec.columns), device.pinned(most, spec.outputs)
        matrix, scores, stream = device.memory(most, spec.columns), device.memory(most, spec.outputs), device.stream()

        def captured(size: int) -> tuple[Any, Work]:
            work = ready(Place(matrix[:size], scores[:size], stream))

            def whole() -> None:
                device.copy(matrix[:size], given[:size], stream)
                work()
                device.copy(taken[:size], scores[:size], stream)

            whole()  # what a first call makes ready must not be part of the graph
            device.settle(stream)
            return device.capture(whole, stream), whole

        return Slot(given.numpy(), taken.numpy(), stream, {size: captured(size) for size in self._buckets})


def cutter(costs: Mapping[int, float]) -> Cut:
    """How so many rows are cut into buckets that together hold them, largest first, cheaply: by what each bucket costs.

    >>> cut = cutter({1: 10, 8: 11, 64: 40})
    >>> cut(150), cut(9), cut(2), cut(0)
    ((64, 64, 8, 8, 8), (8, 1), (8,), ())
    """
    sizes = sorted(costs)

    @cache
    def best(rows: int) -> tuple[float, tuple[int, ...]]:
        """Of fewer rows than the largest bucket: the smallest that holds them, or full ones of the next smaller, and more."""
        if not rows:
            return 0.0, ()
        place = bisect_left(sizes, rows)
        whole = costs[sizes[place]], (sizes[place],)
        if not place:
            return whole
        return min(whole, full(sizes[place - 1], rows), key=itemgetter(0))

    def full(size: int, rows: int) -> tuple[float, tuple[int, ...]]:
        times, more = divmod(rows, size)
        cost, rest = best(more)
        return times * costs[size] + cost, (size,) * times + rest

    def cut(rows: int) -> tuple[int, ...]:
        return full(sizes[-1], rows)[1]

    return cut
