"""Stored features in the real flow: what is stale is flagged in every decision, and refused where the pipeline says so; a store
that fails under load holds nothing up, and is fresh again when it is back."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pay_repo import DAY, make_repo
from payments import Arithmetic, decisions, payments, settings
from prometheus_client import CollectorRegistry

from bench.redis_server import NoRedisError, RedisServer, redis_server
from features.online import open_reader
from features.rows import Fetched, Read
from features.spec import Fields, Stale, Stored
from features.views import View
from models.policy import Bands
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.run import run
from streams.source import MemorySource

NAMES = ("amount", "card_history__mean", "card_history__count")


class WithStored(Arithmetic):
    spec = ModelSpec("payments", tuple(Input(name, "number") for name in NAMES), medians={"card_history__mean": 100.0})


@pytest.fixture(scope="module", params=["SQLite", "Redis"])
def any_repo(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue("repo" if request.param == "SQLite" else "redis_repo")
    return found


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("feast") / "repo")


def pipeline(otherwise: Stale = "null", **stale: Stale) -> Pipeline:
    return replace(
        payments(),
        features=[Fields("amount"), Stored("card_v1", stale=stale, otherwise=otherwise)],
        policy=Bands(block=0.7, otherwise="allow", fallback="review"),
    )


def event(number: int, card: str, days: float) -> tuple[bytes, bytes]:
    at = (DAY + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    made = {"kind": "paid", "at": at, "payment": number, "shop": "s", "amount": 100.0, "card": card}
    return card.encode(), json.dumps(made).encode()


def decided(home: Path, repo: Path, what: Pipeline, log: Sequence[tuple[bytes, bytes]], **values: Any) -> list[dict[str, Any]]:
    """The decisions by payment; `values` are settings, and the sink, registry and rows of a poll."""
    sink = values.pop("sink", None) or MemorySink()
    registry = values.pop("registry", None) or CollectorRegistry()
    source = MemorySource([list(log)], rows=values.pop("rows", 7))
    champion = Champion(1, WithStored(), None)
    job = settings(home, feast_repo=repo, **({"stored_patience_seconds": 30} | values))
    run(what, job, registry=registry, source=source, sink=sink, champion=champion)
    return sorted(decisions(sink).values(), key=lambda decision: decision["event_id"])


def test_every_decision_on_a_stale_view_is_flagged(tmp_path: Path, any_repo: Path) -> None:
    """The newest row of a is of day 0, that of b of the day before; both are good for two days."""
    log = [event(k, "ab"[k % 2], k / 20) for k in range(100)]
    registry = CollectorRegistry()
    found = decided(tmp_path, any_repo, pipeline(card_history__mean="median"), log, registry=registry)
    assert len(found) == 100
    stale = [k / 20 > (2 if k % 2 == 0 else 1) for k in range(100)]
    assert sum(stale) > 50
    assert ["stale:card_history" in decision["flags"] for decision in found] == stale
    for k, decision in enumerate(found):
        fresh = {"card_history__mean": 2.5, "card_history__count": 2} if k % 2 == 0 else {"card_history__count": 3}
        expected = {"card_history__mean": 100.0, "card_history__count": None} if stale[k] else fresh
        assert {name: decision["features"][name] for name in expected} == expected
    labels = {"pipeline": "payments", "flag": "stale:card_history"}
    assert registry.get_sample_value("headrace_flags_total", labels) == sum(stale)
    view = {"pipeline": "payments", "view": "card_history"}
    assert registry.get_sample_value("headrace_stored_rows", view) == 4, (
        "a, b, c, which only the warm start knows, and the rehearsal's"
    )
    assert registry.get_sample_value("headrace_stored_failures_total", {"pipeline": "payments"}) == 0


def test_what_is_refused_is_decided_by_the_fallback(tmp_path: Path, repo: Path) -> None:
    log = [event(0, "a", 1), event(1, "a", 3), event(2, "nobody", 1)]
    found = decided(tmp_path, repo, pipeline("refuse"), log)
    assert [decision["decision"] for decision in found] == ["allow", "review", "allow"]
    assert [set(decision["flags"]) for decision in found] == [
        set(),
        {"stale:card_history", "refused", "fallback"},
        {"missing:card_history"},
    ]
    assert found[1]["score"] is None


def test_in_a_replay_the_past_is_fresh_and_by_the_clock_it_is_not(tmp_path: Path, repo: Path) -> None:
    log = [event(0, "a", 1)]
    for age, flags in (("event", []), ("wall", ["stale:card_history"])):
        found = decided(tmp_path / age, repo, pipeline(), log, stored_age=age)
        assert found[0]["flags"] == flags


def test_a_store_that_fails_under_load_and_comes_back(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails from the 300th decision to the 900th. New cards come all the time; a is held throughout."""
    down: list[bool] = []

    def opening(store: Any, service: str) -> Read:
        own = open_reader(store, service)

        def read(view: View, keys: Sequence[bytes]) -> Fetched:
            if down:
                raise ConnectionError("told to fail")
            return own(view, keys)

        return read

    monkeypatch.setattr("features.stored.open_reader", opening)
    monkeypatch.setattr("features.asking.AGAIN_SECONDS", 0.01)
    sink, count = MemorySink(), 0

    def on_write(messages: Messages) -> None:
        nonlocal count
        count += len(messages.values)
        down[:] = [True] if 300 <= count < 900 else []

    sink.on_write = on_write
    log = [event(k, "a" if k % 3 else f"new{k}", 1) for k in range(3000)]
    registry = CollectorRegistry()
    found = decided(tmp_path, repo, pipeline(), log, sink=sink, registry=registry, rows=10, epoch_seconds=0.001, recovery=True)
    assert len(found) == 3000
    held = [decision for k, decision in enumerate(found) if k % 3]
    assert all(decision["flags"] == [] and decision["features"]["card_history__count"] == 2 for decision in held)
    new = [set(decision["flags"]) for k, decision in enumerate(found) if k % 3 == 0]
    unread = [k for k, flags in enumerate(new) if flags == {"missing:card_history", "unread:card_history"}]
    assert all(flags == {"missing:card_history"} for k, flags in enumerate(new) if k not in unread)
    assert len(unread) > 50, "while it was down nothing was known of new cards"
    assert min(unread) >= 80, "before that it was well"
    assert max(unread) < 900, "and at the end it is well again"
    failures = registry.get_sample_value("headrace_stored_failures_total", {"pipeline": "payments"})
    assert failures is not None
    assert failures > 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    try:
        with redis_server(tmp_path_factory.mktemp("redis")) as server:
            yield server
    except NoRedisError as error:
        pytest.skip(f"NO REDIS TESTED: {error}")


@pytest.fixture(scope="module")
def redis_repo(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feast") / "repo"
    make_repo(folder, f"{{type: redis, connection_string: '127.0.0.1:{server.port}'}}")
    server.save()
    return folder


def percentile(spent: list[float], q: float) -> float:
    return float(np.percentile(np.diff(spent), q))


@pytest.mark.slow
def test_a_real_redis_killed_under_load_holds_nothing_up_and_is_fresh_again_when_back(
    tmp_path: Path, redis_repo: Path, server: RedisServer
) -> None:
    """Batches of 10 with a new card among them every fifth time. Killed for the second third; the card that is held goes on."""
    sink, count = MemorySink(), 0
    written: dict[str, list[float]] = {"well": [], "killed": [], "back": []}

    def on_write(messages: Messages) -> None:
        nonlocal count
        time.sleep(0.002)
        before, count = count, count + len(messages.values)
        if before < 4000 <= count:
            server.kill()
        elif before < 8000 <= count:
            server.start()
        else:
            written["well" if count < 4000 else "killed" if count < 8000 else "back"].append(time.perf_counter())

    sink.on_write = on_write
    log = [event(k, "a" if k % 50 else f"new{k}", 1) for k in range(16_000)]
    registry = CollectorRegistry()
    values: dict[str, Any] = {"sink": sink, "registry": registry, "rows": 10, "stored_patience_seconds": 0.1}
    found = decided(tmp_path, redis_repo, pipeline(), log, **values)
    assert len(found) == 16_000, "decisions go on"
    held = [decision for k, decision in enumerate(found) if k % 50]
    assert all(decision["flags"] == [] and decision["features"]["card_history__count"] == 2 for decision in held)
    new = [set(decision["flags"]) for decision in found[::50]]
    unread = {"missing:card_history", "unread:card_history"}
    assert new[85:155] == [unread] * 70, "flagged"
    assert all(flags in (unread, {"missing:card_history"}) for flags in new)
    assert new[-50:] == [{"missing:card_history"}] * 50, "fresh again: the store is asked, and knows that there is no such card"
    assert percentile(written["killed"], 99) <= 2 * percentile(written["well"], 99) + 0.005
    labels = {"pipeline": "payments", "flag": "unread:card_history"}
    assert registry.get_sample_value("headrace_flags_total", labels) == new.count(unread)


def test_a_job_starts_while_its_store_is_down_and_is_fresh_when_the_store_comes(
    tmp_path: Path, redis_repo: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.asking.AGAIN_SECONDS", 0.01)
    server.kill()
    sink, count = MemorySink(), 0

    def on_write(messages: Messages) -> None:
        nonlocal count
        time.sleep(0.002)
        before, count = count, count + len(messages.values)
        if before < 1000 <= count:
            server.start()

    sink.on_write = on_write
    log = [event(k, "a", 1) for k in range(8000)]
    values: dict[str, Any] = {"sink": sink, "rows": 10, "stored_patience_seconds": 0.1}
    found = decided(tmp_path, redis_repo, pipeline("refuse"), log, **values)
    assert len(found) == 8000
    unread = {"missing:card_history", "unread:card_history", "refused", "fallback"}
    assert all(set(decision["flags"]) == unread and decision["decision"] == "review" for decision in found[:950])
    assert all(decision["flags"] == [] and decision["features"]["card_history__count"] == 2 for decision in found[-1000:])


def test_medians_travel_with_the_model(tmp_path: Path) -> None:
    WithStored.spec.write(tmp_path)
    assert ModelSpec.read(tmp_path) == WithStored.spec
