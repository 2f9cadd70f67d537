"""Output that is staged until its epoch is durable, and then committed in one transaction with the record of how far it is.

A lane is what a shard writes, all sink steps (streams) of it. In an epoch messages are staged; at its end they are part of the
lane's snapshot, with a sequence number; once that snapshot is durable they are committed, together with the progress record
{stream: sequence}. Whoever takes the lane over first shuts out everybody who had it (`Log.open`), then reads the progress, then
commits what is pending in the snapshot and newer. What was committed and is decided again cannot be: the snapshot that the
lane goes on from is never older than what was committed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from sinks.messages import DeliveryError, Messages

VERSION = 2
PATIENCE_SECONDS = 60.0
FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
PACKED = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary())])


class InDoubtError(RuntimeError):
    """A transaction may be committed or not: only the progress record knows, once the lane is opened again."""


class FencedError(DeliveryError):
    """Another instance of the job has taken the lane over: this one has to stop."""

    def __init__(self, lane: str, reason: str) -> None:
        super().__init__(lane, 1, f"another instance of the job has taken over, or this one stood still for long: {reason}")


class StaleSnapshotError(RuntimeError):
    """The recovery store is older than what was committed: to go on from it would decide some events twice."""


class Log(Protocol):
    """What a lane is committed to. Used by one thread at a time."""

    def open(self) -> dict[str, int]:
        """Shuts out every earlier writer of the lane, ends what it left open, and returns the progress by stream.

        Raises InDoubtError when it cannot be reached for now, DeliveryError when it never will.
        """

    def commit(self, messages: Sequence[Messages], progress: Mapping[str, int]) -> None:
        """Makes the messages and the progress visible, all or nothing. Needs `open` first, and again after it raised.

        Raises InDoubtError when it may or may not have happened, FencedError when another has opened the lane, DeliveryError
        when it cannot be.
        """

    def close(self) -> None:
        """Lets go of connections. Raises nothing."""


@dataclass(frozen=True)
class Epoch:
    """What a stream of a lane wrote in one epoch, see `packed`."""

    stream: str
    sequence: int
    packed: bytes

    @property
    def messages(self) -> list[Messages]:
        """The messages, those of a topic together."""
        with pa.ipc.open_stream(self.packed) as reader:
            return [
                Messages(batch["topic"][0].as_py(), batch["key"].to_pylist(), batch["value"].to_pylist()) for batch in reader
            ]


class Lane:
    """What one shard writes. Staged by the dataflow's thread, committed by any one other thread at a time.

    patience: seconds that a commit is tried again while its outcome is in doubt. at: called with the name of each point passed.
    """

    def __init__(
        self,
        name: str,
        log: Log,
        *,
        patience: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.name, self.at = name, at
        self._log, self._patience, self._clock, self._sleep = log, patience, clock, sleep
        self._held: list[Epoch] = []
        self._due: deque[Epoch] = deque()
        self._progress: dict[str, int] = {}
        self._state = threading.Lock()
        self._committing = threading.Lock()
        self._failure: BaseException | None = None

    def open(self) -> None:
        """Takes the lane over. Raises DeliveryError."""
        with self._committing:
            self._progress = self._opened(self._clock() + self._patience)

    def committed(self, stream: str) -> int:
        """The last sequence number of a stream that is committed."""
        return self._progress.get(stream, 0)

    def hold(self, epoch: Epoch, due: bool = False) -> None:
        """Takes over what a snapshot has; due: that snapshot is durable already."""
        with self._state:
            if due:
                self._due.append(epoch)
            else:
                self._held.append(epoch)

    def pending(self, stream: str) -> list[Epoch]:
        """What of a stream is in snapshots and not known to be committed."""
        with self._state:
            return [epoch for epoch in (*self._due, *self._held) if epoch.stream == stream]

    def durable(self) -> bool:
        """All snapshots taken so far are durable. Returns whether there is more to commit than before."""
        with self._state:
            more = bool(self._held)
            self._due.extend(self._held)
            self._held.clear()
            return more

    def commit(self) -> None:
        """Commits all that is due, in order. Raises DeliveryError, then and at every later call."""
        with self._committing:
            if self._failure is not None:
                raise self._failure
            try:
                self._commit_due()
            except BaseException as error:
                self._failure = error
                raise

    def close(self) -> None:
        """Lets go of the log, once it is not used any more; what is not committed is not."""
        with self._committing:
            self._log.close()

    def _commit_due(self) -> None:
        while True:
            with self._state:
                epochs = list(self._due)
            if not epochs:
                return
            progress = self._progress | {epoch.stream: epoch.sequence for epoch in epochs}
            self._commit([messages for epoch in epochs for messages in epoch.messages], progress)
            self._progress = progress
            with self._state:
                for _ in epochs:
                    self._due.popleft()

    def _commit(self, messages: Sequence[Messages], progress: dict[str, int]) -> None:
        deadline = self._clock() + self._patience
        while True:
            try:
                self._log.commit(messages, progress)
                return
            except InDoubtError as doubt:
                if self._clock() > deadline:
                    count = sum(len(each.values) for each in messages)
                    raise DeliveryError(self.name, count, f"not committed within {self._patience:g} s: {doubt}") from None
            found = self._opened(deadline)
            if found == progress:
                return
            if found != self._progress:
                raise FencedError(self.name, "its progress is neither what was committed nor what it was before")

    def _opened(self, deadline: float) -> dict[str, int]:
        wait = FIRST_WAIT
        while True:
            try:
                return self._log.open()
            except InDoubtError as doubt:
                if self._clock() > deadline:
                    raise DeliveryError(self.name, 1, f"not opened within {self._patience:g} s: {doubt}") from None
            self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


class Stage:
    """One stream of a lane, as a sink step writes to it."""

    def __init__(self, lane: Lane, stream: str, state: Mapping[str, Any] | None) -> None:
        """state: the last durable snapshot, None where there is none. What is pending in it is due: see Lane.commit.

        Raises StaleSnapshotError.
        """
        self._lane, self._stream = lane, stream
        self._staged: list[pa.RecordBatch] = []
        done = lane.committed(stream)
        self._sequence = done if state is None else int(state["sequence"])
        if done > self._sequence:
            raise StaleSnapshotError(
                f"sink: lane {lane.name}, {stream}: expected a snapshot with what was committed, up to number {done}, got one "
                f"up to {self._sequence}: the recovery store is older than the output; --rebuild begins another one"
            )
        pending = [] if state is None else unpacked(stream, state)
        known = min((epoch.sequence for epoch in pending), default=self._sequence + 1) - 1
        if done < known:
            raise StaleSnapshotError(
                f"sink: lane {lane.name}, {stream}: expected a record of what was committed, up to number {known}, got one "
                f"up to {done}: the progress topic is gone, or is another cluster's; --rebuild begins another one"
            )
        for epoch in pending:
            if epoch.sequence > done:
                lane.hold(epoch, due=True)

    def write(self, messages: Messages) -> None:
        """Stages messages."""
        self._lane.at("stage.before")
        if messages.values:
            self._staged.append(_batch(messages))
        self._lane.at("stage.after")

    def snapshot(self) -> dict[str, Any]:
        """What is staged gets a number; returns that and all that is pending, as plain data."""
        self._lane.at("snapshot.before")
        if self._staged:
            self._sequence += 1
            self._lane.hold(Epoch(self._stream, self._sequence, packed(self._staged)))
            self._staged = []
        pending = [(epoch.sequence, epoch.packed) for epoch in self._lane.pending(self._stream)]
        state = {"version": VERSION, "sequence": self._sequence, "pending": pending}
        self._lane.at("snapshot.after")
        return state


def _batch(messages: Messages) -> pa.RecordBatch:
    """Messages as columns: as they come they are in the cache, and as objects they would leave it before the epoch's end."""
    columns = [
        pa.repeat(pa.scalar(messages.topic, pa.string()), len(messages.values)),
        pa.array(messages.keys, pa.binary()),
        pa.array(messages.values, pa.binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PACKED)


def packed(batches: Sequence[pa.RecordBatch]) -> bytes:
    """Messages as Arrow IPC, a record batch for each topic: small ones cost as much as large ones. Compressed: decisions are
    much alike, and an eighth of the bytes is written to the recovery store sooner than all."""
    by_topic: dict[str, list[pa.RecordBatch]] = {}
    for batch in batches:
        by_topic.setdefault(batch["topic"][0].as_py(), []).append(batch)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, PACKED, options=COMPRESSED) as writer:
        for many in by_topic.values():
            writer.write_batch(pa.concat_batches(many))
    return sink.getvalue().to_pybytes()


def unpacked(stream: str, state: Mapping[str, Any]) -> list[Epoch]:
    """The epochs that a snapshot has pending. Raises ValueError for another version."""
    if state["version"] != VERSION:
        raise ValueError(f"recovery store: expected staged output of version {VERSION}, got {state['version']}")
    return [Epoch(stream, sequence, data) for sequence, data in state["pending"]]
