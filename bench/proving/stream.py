"""A load of many messages, and their decisions counted as they come: for runs that are too long to be kept."""

import gc
import os
import signal
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from bench.proving.job import COUNT, event
from bench.proving.load import PARTITIONS
from ops.broker import BrokerError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.sharedctypes import Synchronized

KEYS, SHARED, TICK_SECONDS, MOST = 20_000, 1_000, 0.01, 10_000
SPAWN = get_context("spawn")
LOADED_SECONDS, FLUSH_SECONDS, GRACE_SECONDS = 60.0, 60.0, 10.0
STEP_US = 300_000
"""Of an event after the one before: a window of 12 hours is full after 144,000 of them, with seven of a key, and from then on
the state does not grow. A year, which is what the schema takes, is 105 million of them."""
WINDOW_US, TILE_US = 12 * 3_600_000_000, 360_000_000
MOST_DRIFT_SECONDS = 0.005
NICE = 10
SECONDS_A_BIN, BINS, FIRST_MS, FACTOR = 5.0, 400, 0.1, 1.05


@dataclass
class Stream:
    """Message number k goes to partition k mod PARTITIONS, and is due k / rate seconds after `began`, monotonic seconds, and
    what rests there were before it: (from when on, for how long), in order, seconds from the start.

    Of a partition, message n has key n mod KEYS, and no message is broken.
    """

    name: str
    rate: float
    began: float = 0.0
    rests: Sequence[tuple[float, float]] = ()
    count: "Synchronized[int]" = field(default_factory=lambda: SPAWN.Value("q", 0, lock=False), repr=False)

    @property
    def sent(self) -> int:
        """How many messages have been sent, by whichever process."""
        return self.count.value

    def __post_init__(self) -> None:
        rested = [0.0, *accumulate(length for _, length in self.rests)]
        self._rested, self._starts = rested, [start - before for (start, _), before in zip(self.rests, rested, strict=False)]

    def due(self, partition: int, n: int) -> float:
        """When message n of a partition is to be sent."""
        busy = (n * PARTITIONS + partition) / self.rate
        return self.began + busy + self._rested[bisect_right(self._starts, busy)]

    def due_by(self, now: float) -> int:
        """How many messages are due at a moment, monotonic seconds."""
        seconds = now - self.began
        rested = sum(min(max(seconds - start, 0.0), length) for start, length in self.rests)
        return int((seconds - rested) * self.rate)

    def entries(self, partition: int, first: int, end: int) -> list[dict[str, Any]]:
        """Messages `first` to `end` of a partition."""
        keys = [f"p{partition}-k{n % KEYS}" for n in range(first, end)]
        return [
            {"key": key.encode(), "value": event(key, f"s{n % SHARED}", n, STEP_US)}
            for key, n in zip(keys, range(first, end), strict=True)
        ]


@contextmanager
def streaming(brokers: str, stream: Stream) -> Iterator[None]:
    """Sends by the stream's schedule while this lasts, each message once, as fast as it can where that is slower: in a process
    of its own, which does not wait for whoever counts decisions here. Raises BrokerError."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_sending, args=(brokers, stream, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(LOADED_SECONDS):
            raise BrokerError(f"the load is not ready after {LOADED_SECONDS:.0f} s")
        try:
            stream.began = ours.recv()
        except EOFError:
            raise BrokerError("the load cannot be sent: its process died") from None
        try:
            yield
        finally:
            if failed := _ended(ours):
                raise BrokerError(f"the load was not delivered: {failed}")
    finally:
        process.kill()
        process.join()


def _ended(sending: "Connection[Any, Any]") -> str:
    """Ends the load; what went wrong with it."""
    with suppress(OSError):  # it has ended by itself, and said why
        sending.send(None)
    try:
        return str(sending.recv()) if sending.poll(FLUSH_SECONDS + GRACE_SECONDS) else "it does not end"
    except (EOFError, OSError):
        return "its process died"


def _sending(brokers: str, stream: Stream, told: "Connection[Any, Any]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "reconnect.backoff.max.ms": 500,
            "queue.buffering.max.messages": 5_000_000,
            "queue.buffering.max.kbytes": 2_000_000,
            "delivery.report.only.error": True,
            "log_level": 0,
        }
    )
    gc.collect()
    gc.freeze()
    stream.began = time.monotonic()
    told.send(stream.began)
    while not told.poll(TICK_SECONDS):
        first = stream.sent // PARTITIONS
        upto = min(stream.due_by(time.monotonic()) // PARTITIONS, first + MOST)
        for partition in range(PARTITIONS if upto > first else 0):
            entries = stream.entries(partition, first, upto)
            if producer.produce_batch(f"{stream.name}-in", entries, partition=partition) != len(entries):
                told.send("the queue of the load is full")
                return
        stream.count.value = max(upto, first) * PARTITIONS
        producer.poll(0)
    left = producer.flush(FLUSH_SECONDS)
    told.send(f"{left} messages are left" if left else "")


@dataclass
class Counted:
    """Decisions counted as they come: which messages were decided, how many repeats there were, how many are out of the order
    of their key or know another count of it, and how long they took, by window of SECONDS_A_BIN of the time they were due (bins
    that grow by FACTOR from FIRST_MS on).

    came: for each millisecond since the stream began whether one came in it. versions: how many are of which version of the
    model.
    """

    stream: Stream
    times: list[bytearray] = field(default_factory=lambda: [bytearray() for _ in range(PARTITIONS)])
    newest: list[npt.NDArray[np.int64]] = field(default_factory=lambda: [np.full(KEYS, -1) for _ in range(PARTITIONS)])
    decisions: int = 0
    repeats: int = 0
    wrong: int = 0
    took: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    came: bytearray = field(default_factory=bytearray)
    versions: dict[int, int] = field(default_factory=dict)

    def add(self, values: Sequence[bytes], moments: Sequence[float]) -> None:
        """Counts decisions that came at these moments, monotonic seconds."""
        skip = len(f"{self.stream.name}/{self.stream.name}-in/")
        for moment in set(moments) if self.stream.began else ():
            at = max(0, int((moment - self.stream.began) * 1000))
            if at >= len(self.came):
                self.came.extend(bytes(at + 1 - len(self.came) + 100_000))
            self.came[at] = 1
        late: dict[int, list[float]] = {}
        for value, now in zip(values, moments, strict=True):
            decision = orjson.loads(value)
            place = decision["decision_id"][skip:].split("/")
            partition, n = int(place[0]), int(place[1])
            times = self.times[partition]
            if n >= len(times):
                times.extend(bytes(n + 1 - len(times) + 100_000))
            if times[n]:
                self.repeats += 1
                continue
            times[n] = 1
            version = decision["model_version"]
            self.versions[version] = self.versions.get(version, 0) + 1
            newest = self.newest[partition]
            self.wrong += int(decision["features"][COUNT] != before(n) or n < newest[n % KEYS])
            newest[n % KEYS] = n
            due = self.stream.due(partition, n)
            late.setdefault(int((due - self.stream.began) / SECONDS_A_BIN), []).append(now - due)
        self.decisions += len(values)
        for window, many in late.items():
            bins = np.log(np.maximum(np.array(many) * 1000 / FIRST_MS, 1.0)) / np.log(FACTOR)
            counts = np.bincount(np.minimum(bins.astype(np.int64), BINS - 1), minlength=BINS)
            self.took[window] = self.took.get(window, np.zeros(BINS, np.int64)) + counts

    @property
    def decided(self) -> int:
        """How many messages have a decision."""
        return sum(times.count(1) for times in self.times)

    def longest_gap(self, start: float, until: float) -> float:
        """The longest time without any between two moments, where it is cut; all in seconds since the stream began."""
        first, end = int(start * 1000), int(until * 1000)
        (came,) = np.nonzero(np.frombuffer(bytes(self.came[first:end]), np.uint8))
        return float(np.diff([0, *came, end - first]).max()) / 1000

    def p99(self) -> list[tuple[float, float]]:
        """(seconds since the start, p99 in ms) of each window."""
        return [(window * SECONDS_A_BIN, quantile(counts, 0.99)) for window, counts in sorted(self.took.items())]


def before(n: int) -> int:
    """How many messages of its key are before message n of a partition in 12 hours, as kernels/windows/naive.py has it."""
    time = n * STEP_US
    return min(n // KEYS, (time % TILE_US + WINDOW_US) // (KEYS * STEP_US))


def quantile(counts: npt.NDArray[np.int64], share: float) -> float:
    """A quantile of what was counted in bins, in ms: the upper end of its bin."""
    at = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
    return float(FIRST_MS * FACTOR ** (at + 1))


@contextmanager
def counted(brokers: str, stream: Stream, appended: bool = False) -> Iterator[Counted]:
    """Counts what a consumer with read_committed sees while this lasts. Raises what the client raised.

    A decision came when it was seen or, where `appended`, when the broker appended it, which its topic has to say: no decision
    waits for this process then, and the thread that counts has time. Where decisions are committed later, that is not in it.

    What is loaded by then is left out of garbage collection: with a model registry's library among it one takes a quarter of a
    second, in which nothing is counted.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "soak",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(f"{stream.name}-out", number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    found, ended, failed = Counted(stream), threading.Event(), list[BaseException]()

    def offset() -> float:
        return time.time() - time.monotonic()

    at_first = offset()

    def came(message: Message, now: float) -> float:
        if not appended:
            return now
        kind, milliseconds = message.timestamp()
        if kind != TIMESTAMP_LOG_APPEND_TIME:
            raise ValueError(f"{message.topic()} does not say when its messages were appended")
        return float(milliseconds / 1000 - at_first)

    def count() -> None:
        if appended:
            step_back()
        while not ended.is_set():
            messages = consumer.consume(10_000, 0.01)
            messages = [message for message in messages if message.error() is None]
            now = time.monotonic()
            found.add([message.value() or b"" for message in messages], [came(message, now) for message in messages])

    def kept() -> None:
        try:
            count()
        except (KafkaException, ValueError, LookupError) as error:
            failed.append(error)

    gc.collect()
    gc.freeze()
    thread = threading.Thread(target=kept, name="count")
    thread.start()
    try:
        yield found
    finally:
        gc.unfreeze()
        ended.set()
        thread.join()
        consumer.close()
        if failed:
            raise failed[0]
        if appended and abs(moved := offset() - at_first) > MOST_DRIFT_SECONDS:
            raise ValueError(f"the clock was set by {moved:.3f} s meanwhile: nobody knows how long decisions took")


def step_back() -> None:
    """This thread has time: the job goes first. Only Linux knows of threads' own priorities."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
