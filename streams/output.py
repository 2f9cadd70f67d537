"""A recoverable sink step: a Bytewax sink around sinks/, keyed by shard."""

from collections.abc import Callable
from typing import Any

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from sinks.messages import Messages, Sink
from sinks.outbox import Outbox
from sinks.staged import Stage
from streams.meters import Meters
from streams.routing import shard_name, shard_number

Staged = dict[str, Any]


class _AtOnce(StatefulSinkPartition[Messages, Staged | None]):
    """At least once: written as it comes."""

    def __init__(
        self,
        sink: Sink,
        meters: Meters,
        before_flush: Callable[[], None],
        at: Callable[[str], None],
        written: Callable[[int, float], None],
    ) -> None:
        self._sink = sink
        self._meters = meters
        self._before_flush = before_flush
        self._at = at
        self._written = written

    def write_batch(self, values: list[Messages]) -> None:
        with (stage := self._meters.stage("sink", sum(len(messages.values) for messages in values))):
            self._at("produce.before")
            for messages in values:
                self._sink.write(messages)
            self._at("produce.after")
        self._written(len(values), stage.started)

    def snapshot(self) -> None:
        """The epoch becomes durable after this returns, and with it the source's position: all must be delivered by then."""
        with self._meters.stage("sink"):
            self._at("snapshot.before")
            self._before_flush()
            self._sink.flush()
            self._at("snapshot.after")


class _Staged(StatefulSinkPartition[Messages, Staged | None]):
    """Exactly once: staged, and committed once the epoch is durable, of which the source hears (streams/polling.py)."""

    def __init__(
        self, stage: Stage, meters: Meters, before_flush: Callable[[], None], written: Callable[[int, float], None]
    ) -> None:
        self._stage = stage
        self._meters = meters
        self._before_flush = before_flush
        self._written = written

    def write_batch(self, values: list[Messages]) -> None:
        with (stage := self._meters.stage("sink", sum(len(messages.values) for messages in values))):
            for messages in values:
                self._stage.write(messages)
        self._written(len(values), stage.started)

    def snapshot(self) -> Staged:
        """What is staged in the epoch becomes durable with it, and only then can be committed."""
        with self._meters.stage("sink"):
            self._before_flush()
            return self._stage.snapshot()


class Output(FixedPartitionedSink[Messages, Staged | None]):
    """Writes each item's messages to the worker's one sink or outbox, whatever the number of steps that do so.

    name: of the step, by which it finds what it had staged. sink: None where output is staged. before_flush: begins what can be
    done while the sink waits for its deliveries. at: called with the name of each point that is passed.
    written: told how many items have come, and since when (perf_counter) they were taken over.
    """

    def __init__(
        self,
        name: str,
        partitions: Callable[[], int],
        sink: Callable[[], Sink | None],
        outbox: Callable[[], Outbox],
        meters: Meters,
        before_flush: Callable[[], None] = lambda: None,
        at: Callable[[str], None] = lambda point: None,
        written: Callable[[int, float], None] = lambda messages, since: None,
    ) -> None:
        self._name = name
        self._partitions = partitions
        self._sink = sink
        self._outbox = outbox
        self._meters = meters
        self._before_flush = before_flush
        self._at = at
        self._written = written

    def list_parts(self) -> list[str]:
        return [shard_name(number) for number in range(self._partitions())]

    def part_fn(self, item_key: str) -> int:
        return shard_number(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: Staged | None) -> _AtOnce | _Staged:
        """What an earlier run has left staged is committed, however this one delivers."""
        sink = self._sink()
        if sink is not None and resume_state is None:
            return _AtOnce(sink, self._meters, self._before_flush, self._at, self._written)
        stage = self._outbox().stage(self._name, shard_number(for_part), resume_state)
        if sink is not None:
            return _AtOnce(sink, self._meters, self._before_flush, self._at, self._written)
        return _Staged(stage, self._meters, self._before_flush, self._written)
