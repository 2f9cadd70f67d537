"""How long a message takes to a consumer who reads what is committed, while brokers come and go."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from bench.proving.load import Load

BEFORE_SECONDS, NOT_SEEN_SECONDS, SLACK, IN_A_ROW = 10.0, 1.0, 1.5, 3
Floats = npt.NDArray[np.float64]


@contextmanager
def watching(brokers: str, topic: str) -> Iterator[dict[str, float]]:
    """By decision_id: when it was first seen by a consumer with read_committed, monotonic seconds."""
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "faults-watch",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 20,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    seen: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            messages = consumer.consume(10_000, 0.01)
            now = time.monotonic()
            for message in messages:
                if message.error() is None:
                    seen.setdefault(orjson.loads(message.value())["decision_id"], now)

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        consumer.close()


def latencies(load: Load, seen: Mapping[str, float]) -> tuple[Floats, Floats]:
    """When each message that is decided on was to be sent, in order, monotonic seconds; and how many seconds it took until its
    decision was seen, infinite where none was. Each float64 [n]."""
    due, took = [], []
    for place, partition, n in load.decided_on():
        at = load.due[partition][n]
        due.append(at)
        took.append(seen.get(f"{load.name}/{load.source}/{place}", np.inf) - at)
    order = np.argsort(due, kind="stable")
    return np.array(due)[order], np.array(took)[order]


def recovery(due: Floats, took: Floats, began: float, back: float, until: float) -> dict[str, Any]:
    """How a fault shows in latency: it began at `began`, was over at `back`, and was watched until `until`.

    Normal is the p99 of what was to be sent in the ten seconds before it, less the last one, of which not all was seen. Latency
    is back to normal with the first of three seconds in a row whose p99 is at most half more than that. back_to_normal_s: from
    `back` to there; None: not by `until`.
    lag_0_s: from `back` until all was seen that was to be sent before it.
    """
    last = began - NOT_SEEN_SECONDS
    before = took[(due >= last - BEFORE_SECONDS) & (due < last)]
    normal = float(np.quantile(before, 0.99)) if len(before) else float("nan")
    good, since = 0, None
    for second in range(int(until - back)):
        inside = took[(due >= back + second) & (due < back + second + 1)]
        good = good + 1 if len(inside) and np.quantile(inside, 0.99, method="higher") <= SLACK * normal else 0
        if good == IN_A_ROW:
            since = second + 1 - IN_A_ROW
            break
    held = (due >= began) & (due < back)
    lag_0 = float((due[held] + took[held]).max()) - back if held.any() else 0.0
    return {
        "fault_s": round(back - began, 1),
        "normal_p99_ms": round(1000 * normal, 1),
        "longest_ms": round(1000 * float(took[held].max(initial=0)), 1),
        "lag_0_s": round(lag_0, 1),
        "back_to_normal_s": since,
        "p99_by_second_ms": by_second(due, took, back, min(until, back + 12)),
    }


def caught_up(load: Load, seen: Mapping[str, float], most: float) -> bool:
    """Whether the decision of a message that was to be sent `most` seconds ago at most has been seen."""
    due, took = latencies(load, seen)
    return bool((due[np.isfinite(took)] > time.monotonic() - most).any())


def by_second(due: Floats, took: Floats, start: float, end: float) -> list[float]:
    """The p99 in ms of what was to be sent in each second."""
    shown = []
    for second in range(int(end - start)):
        inside = took[(due >= start + second) & (due < start + second + 1)]
        shown.append(round(1000 * float(np.quantile(inside, 0.99, method="higher")), 1) if len(inside) else float("nan"))
    return shown


def slow(found: Sequence[Mapping[str, Any]], most: float) -> list[str]:
    """Faults after which latency was not back to normal within `most` seconds, in words."""
    return [
        f"{each['what']}: latency back to normal after {each['back_to_normal_s']} s, expected {most:g} at most"
        for each in found
        if each["back_to_normal_s"] is None or each["back_to_normal_s"] > most
    ]
