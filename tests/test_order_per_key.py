"""Decisions of a partition come in the order of its messages, though some wait for features from another worker."""

import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from payments import CHAMPION, decisions, payments, settings
from prometheus_client import CollectorRegistry

from features.state import State
from kernels.hashing.cpu import hash_column
from ops.broker import free_port
from sinks.memory import MemorySink
from streams.run import run
from streams.source import MemorySource

WORKERS, MESSAGES = 2, 30
Log = list[tuple[bytes | None, bytes]]


def owned(worker: int) -> Iterator[str]:
    """Entities whose state is this worker's."""
    names = [f"e{k}" for k in range(1000)]
    shards = hash_column(pa.array(names)) % payments().shards
    return (name for name, shard in zip(names, shards.tolist(), strict=True) if shard % WORKERS == worker)


def paid(card: str, shop: str, n: int) -> tuple[bytes, bytes]:
    event = {"kind": "paid", "at": f"2024-03-01T00:00:{n:02d}Z", "payment": n, "shop": shop, "amount": 5.0, "card": card}
    return card.encode(), json.dumps(event).encode()


def worker(number: int, addresses: list[str], logs: list[Log], home: Path) -> None:
    """Worker 1 is slow to give features."""
    if number == 1:
        update = State.update

        def slow(*given: Any) -> Any:
            time.sleep(0.3)
            return update(*given)

        State.update = slow  # type: ignore[assignment, method-assign]
    sink, job = MemorySink(), settings(home / str(number))
    parts: dict[str, Any] = {"source": MemorySource(logs, rows=1), "sink": sink, "champion": CHAMPION}
    run(payments(), job, registry=CollectorRegistry(), worker=number, addresses=addresses, **parts)
    (home / f"decided-{number}").write_text("\n".join(decisions(sink)))


@pytest.mark.slow
def test_a_batch_that_waits_for_another_worker_is_not_overtaken(tmp_path: Path) -> None:
    """Partitions 0 and 2 are of worker 0, and the first of 0 needs features of worker 1, while those of 2 need none."""
    mine, others = owned(0), owned(1)
    card, shop = next(mine), next(mine)
    logs = [[paid(next(others), next(others), 0)], [], [paid(card, shop, n) for n in range(MESSAGES)]]
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(WORKERS)]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=worker, args=(k, addresses, logs, tmp_path)) for k in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    decided = (tmp_path / "decided-0").read_text().splitlines()
    assert "payments/pay/0/0" in decided
    of_two = [name for name in decided if name.startswith("payments/pay/2/")]
    assert of_two == [f"payments/pay/2/{n}" for n in range(MESSAGES)]
