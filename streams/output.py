"""A recoverable sink step: a Bytewax sink around sinks/, keyed by shard."""

from collections.abc import Callable

from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition

from sinks.messages import Messages, Sink
from streams.meters import Meters
from streams.routing import shard_name, shard_number


class _Partition(StatefulSinkPartition[Messages, None]):
    def __init__(self, sink: Sink, meters: Meters, before_flush: Callable[[], None]) -> None:
        self._sink = sink
        self._meters = meters
        self._before_flush = before_flush

    def write_batch(self, values: list[Messages]) -> None:
        with self._meters.stage("sink", sum(len(messages.values) for messages in values)):
            for messages in values:
                self._sink.write(messages)

    def snapshot(self) -> None:
        """The epoch becomes durable after this returns, and with it the source's position: all must be delivered by then."""
        with self._meters.stage("sink"):
            self._before_flush()
            self._sink.flush()


class Output(FixedPartitionedSink[Messages, None]):
    """Writes each item's messages to the worker's one sink, whatever the number of steps that do so.

    before_flush: begins what can be done while the sink waits for its deliveries.
    """

    def __init__(
        self,
        partitions: Callable[[], int],
        sink: Callable[[], Sink],
        meters: Meters,
        before_flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._partitions = partitions
        self._sink = sink
        self._meters = meters
        self._before_flush = before_flush

    def list_parts(self) -> list[str]:
        return [shard_name(number) for number in range(self._partitions())]

    def part_fn(self, item_key: str) -> int:
        return shard_number(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition:
        return _Partition(self._sink(), self._meters, self._before_flush)
