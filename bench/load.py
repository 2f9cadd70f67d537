"""The generator, a process of its own: sends prepared messages on a schedule fixed in advance, whatever becomes of them.

python -m bench.load CONFIG.json is started by bench/run.py. It reads the payloads, says `{"ready": true}`, and then does
what lines on its standard input say, one JSON object each, answering each with one:

    {"send": n}                           the next n messages as fast as the broker takes them; answered when all are delivered
    {"go": ns, "schedule": "FILE.npy",    the next messages, message k due at `go` + schedule[k] on CLOCK_MONOTONIC; how late
     "judge": ns}                         they were is said of those due from `judge` on

It never waits for answers, nor for deliveries before the last message. What was handed over late is said at the end.
"""

import gc
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from bench.pool import Pool

I64 = npt.NDArray[np.int64]
PRIORITY = -10
TICK_NS = 300_000
MOST = 2_000
QUEUE = 10_000_000
FLUSH_SECONDS = 120.0


def linger_ms(rate: float, partitions: int = 1) -> int:
    """What a producer waits for a batch to fill; longer with several partitions, since each has requests of its own (8,000 a
    second with 8 and 1 ms: more than a broker on two cores answers).

    Without it there are too many requests at high rates; and at any rate, while five requests are unanswered (an idempotent
    producer's most), librdkafka asks without a pause whether it may send the sixth, and takes the core that the broker needs
    to answer: at 1,000/s on two busy cores p99 115 ms, with 1 ms 16."""
    base = 1 if rate <= 20_000 else 5
    return max(base, min(10, base * min(partitions, math.ceil(rate / 1_000))))


class Payloads:
    """Keys and values of the first messages of an Arrow IPC file, in memory: none is waited for when it is due. Where a pool
    lies beside it (bench/pool.py) the values are made from that."""

    def __init__(self, file: Path, messages: int | None = None) -> None:
        """messages: at least so many are read; all if not given."""
        table = _first(file, messages)
        self.count = table.num_rows
        self._pool = Pool.read(file.parent)
        if self._pool is not None:
            self._ids = table["id"].to_numpy()
            values = table["key"]
        else:
            values = table["value"]
        self._chunks = [
            (_parts(keys), _parts(chunk)) for keys, chunk in zip(*map(_chunks, (table["key"], values)), strict=True)
        ]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in _chunks(values)])

    def entries(self, start: int, end: int) -> list[dict[str, Any]]:
        """Messages [start, end) as produce_batch takes them; the client stamps each with the time it was handed over."""
        made: list[dict[str, Any]] = []
        while start < end:
            chunk = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = int(self._starts[chunk])
            stop = min(end, int(self._starts[chunk + 1]))
            of_keys, of_values = self._chunks[chunk]
            keys = _slices(of_keys, start - first, stop - first)
            values: Sequence[bytes | None]
            if self._pool is not None:
                values = self._pool.values(start, self._ids[start:stop].tolist())
            else:
                values = _slices(of_values, start - first, stop - first)
            made += [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
            start = stop
        return made


def _first(file: Path, messages: int | None) -> pa.Table:
    with pa.OSFile(str(file)) as source:
        reader = pa.ipc.open_file(source)
        batches: list[pa.RecordBatch] = []
        while len(batches) < reader.num_record_batches and (messages is None or sum(map(len, batches)) < messages):
            batches.append(reader.get_batch(len(batches)))
        return pa.Table.from_batches(batches, reader.schema)


Parts = tuple[I64, memoryview, npt.NDArray[np.bool_] | None]


def _chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return list(column.chunks)


def _parts(array: pa.Array) -> Parts:
    """Offsets [n + 1], bytes, and which are not null (None: all)."""
    wide = pa.types.is_large_binary(array.type)
    _, offsets, data = array.buffers()
    kind = np.int64 if wide else np.int32
    edges = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    there = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    return edges, memoryview(data or b""), there


def _slices(part: Parts, start: int, end: int) -> list[bytes | None]:
    edges, data, there = part
    places = edges[start : end + 1].tolist()
    whole = bytes(data[places[0] : places[-1]])
    shift = places[0]
    made: list[bytes | None] = [whole[a - shift : b - shift] for a, b in pairwise(places)]
    if there is not None:
        made = [value if here else None for value, here in zip(made, there[start:end].tolist(), strict=True)]
    return made


class Generator:
    """Sends messages of a file, in order, to one topic, confirmed by all replicas.

    Idempotence would let five requests be unanswered at most, and the load wait for the broker (linger_ms: 0.8 of a core
    against 0.17 at 2,000/s beside a slow broker). Without it a message would come twice or out of order only if it were tried
    again, so it is not: one that is not taken at once is counted as not delivered, and the run is not valid.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """config: brokers, topic, payloads, messages (how many will be sent), linger_ms, producer (librdkafka settings)."""
        self._topic = config["topic"]
        self._payloads = Payloads(Path(config["payloads"]), config.get("messages"))
        self._next = 0
        self._failed = 0
        self._reason = ""
        self._delay_ms = config.get("hold_up_ms", 0)
        self._producer = Producer(
            {
                "bootstrap.servers": config["brokers"],
                "acks": "all",
                "enable.idempotence": False,
                "retries": 0,
                "partitioner": "murmur2_random",
                "linger.ms": config["linger_ms"],
                "message.max.bytes": 16 * 1024 * 1024,
                "queue.buffering.max.messages": QUEUE,
                "queue.buffering.max.kbytes": 2_097_151,
                "delivery.report.only.error": True,
                "log_level": 2,
                **config.get("producer", {}),
            }
        )
        self._producer.list_topics(self._topic, timeout=10)

    def send(self, count: int) -> dict[str, Any]:
        """The next `count` messages as fast as they are taken."""
        began = time.monotonic_ns()
        end = min(self._next + count, self._payloads.count)
        first = self._next
        while self._next < end:
            stop = min(self._next + 5_000, end)
            self._hand_over(stop)
            while len(self._producer) > 100_000:
                self._producer.poll(0.005)
        self._flush()
        seconds = (time.monotonic_ns() - began) / 1e9
        return {"sent": end - first, "failed": self._failed, "reason": self._reason, "seconds": seconds}

    def go(self, start_ns: int, schedule: I64, judge_ns: int = 0) -> dict[str, Any]:
        """The next len(schedule) messages, each when it is due: intended at start_ns + schedule, monotonic.

        Late is how long after its intended time a message was in the producer's hands, of those due from judge_ns on.
        """
        due, first, n = schedule + start_ns, self._next, len(schedule)
        if first + n > self._payloads.count:
            raise ValueError(f"generator: expected {first + n:,} prepared messages, got {self._payloads.count:,}")
        wall = time.time_ns() - time.monotonic_ns()
        ends: list[int] = []
        handed: list[int] = []
        sent = 0
        while sent < n:
            now = time.monotonic_ns()
            ready = min(int(np.searchsorted(due, now, side="right")), sent + MOST)
            if ready > sent:
                self._hand_over(first + ready)
                sent = ready
                ends.append(ready)
                handed.append(time.monotonic_ns())
                self._producer.poll(0)
            wake = max(now + TICK_NS, int(due[min(sent, n - 1)]))
            pause = wake - time.monotonic_ns()
            if pause > 0:
                time.sleep(pause / 1e9)
        last = time.monotonic_ns()
        self._flush()
        counts = np.diff(np.array([0, *ends]))
        late = (np.repeat(np.array(handed), counts) - due) / 1e6
        judged = due >= min(judge_ns, int(due[-1]))
        from_ns, count = int(due[judged][0]), int(judged.sum())
        late = late[judged]
        span = (int(due[-1]) - from_ns) / 1e9
        return {
            "sent": n,
            "failed": self._failed,
            "reason": self._reason,
            "wall_ns": wall,
            "intended_per_s": round((count - 1) / span, 3) if span else None,
            "rate": round((count - 1) / max((last - from_ns) / 1e9, 1e-9), 3),
            "late_p99_ms": round(float(np.quantile(late, 0.99)), 3),
            "late_max_ms": round(float(late.max()), 3),
            "calls": len(ends),
        }

    def _hand_over(self, end: int) -> None:
        entries = self._payloads.entries(self._next, end)
        if self._delay_ms:
            time.sleep(self._delay_ms / 1000)
        try:
            taken = self._producer.produce_batch(self._topic, entries, on_delivery=self._on_delivery)
        except (KafkaException, BufferError) as error:
            taken, self._reason = 0, str(error)
        if taken < len(entries):
            self._failed += len(entries) - taken
            self._reason = self._reason or next((str(entry["_error"]) for entry in entries if "_error" in entry), "not taken")
        self._next = end

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed += 1
            self._reason = error.str()

    def _flush(self) -> None:
        left = self._producer.flush(FLUSH_SECONDS)
        if left:
            self._failed += left
            self._reason = f"{left} messages not delivered within {FLUSH_SECONDS:.0f} s"


def before_others() -> None:
    """Gives this process precedence over what is measured, where it may: it stands for a machine of its own.

    This thread most, and the client's own threads, which are there by now, less: what they do can be much.
    """
    with suppress(OSError, AttributeError):
        me = threading.get_native_id()
        for thread in Path("/proc/self/task").iterdir():
            if int(thread.name) != me:
                os.setpriority(os.PRIO_PROCESS, int(thread.name), PRIORITY)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except (OSError, AttributeError):
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def main() -> int:
    """The process."""
    generator = Generator(json.loads(Path(sys.argv[1]).read_text()))
    before_others()
    gc.collect()
    gc.freeze()
    gc.disable()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        said = (
            generator.send(told["send"])
            if "send" in told
            else generator.go(told["go"], np.load(told["schedule"]), told["judge"])
        )
        print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
