"""Stored features over a real Redis: equal to Feast's own read; killed, paused and back again while events come."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pay_repo import DAY, NAMES, make_repo
from same_reads import same_by_feast

from bench.redis_server import NoRedisError, RedisServer, redis_server
from features.stored import StoredFeatures


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    try:
        with redis_server(tmp_path_factory.mktemp("redis")) as server:
            yield server
    except NoRedisError as error:
        pytest.skip(f"NO REDIS TESTED: {error}")


@pytest.fixture(scope="module")
def repo(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feast") / "repo"
    make_repo(folder, f"{{type: redis, connection_string: '127.0.0.1:{server.port}'}}")
    server.save()
    return folder


@pytest.fixture
def stored(repo: Path) -> Iterator[StoredFeatures]:
    stored = StoredFeatures(repo, "pay_v1", clock=time.time, patience=0.3, refresh_seconds=1)
    yield stored
    stored.close()


def event(cards: list[str], shops: list[int]) -> pa.RecordBatch:
    columns = {"card": cards, "shop_id": shops, "city": ["Ulm"] * len(cards)}
    return pa.RecordBatch.from_pydict(columns)


def read(stored: StoredFeatures, cards: list[str], shops: list[int]) -> tuple[dict[str, list[Any]], list[set[str]]]:
    times = np.full(len(cards), int(DAY.timestamp()) * 1_000_000)
    found = stored.read(event(cards, shops), times)
    said = [{name for k, name in enumerate(stored.flags) if bits >> k & 1} for bits in found.flags.tolist()]
    return {name: pa.array(values, from_pandas=True).to_pylist() for name, values in found.columns.items()}, said


def until_read(stored: StoredFeatures, card: str) -> None:
    deadline = time.monotonic() + 60
    while any(flag.startswith("unread") for flag in read(stored, [card], [1])[1][0]):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_reads_what_feast_reads(repo: Path, stored: StoredFeatures) -> None:
    from feast import FeatureStore

    cards, shops = ["a", "b", "nobody", "c", "a"], [1, 2, 3, 1, 9]
    values, flags = read(stored, cards, shops)
    store = FeatureStore(repo_path=str(repo))
    rows = {"card": cards, "shop_id": shops, "city": ["Ulm"] * 5}
    own = store.get_online_features(store.get_feature_service("pay_v1"), entity_rows=rows, full_feature_names=True).to_dict()
    for name in NAMES:
        assert values[name] == [None if value is None else np.float32(value) for value in own[name]]
    assert ["missing:card_history" in said for said in flags] == [False, False, True, False, False]
    assert ["missing:place" in said for said in flags] == [False, False, True, False, True]


def test_the_stores_own_bytes_are_read_as_feasts_own_read_gives_them(repo: Path) -> None:
    from feast import FeatureStore

    same_by_feast(FeatureStore(repo_path=str(repo)), "pay_v1")


def test_a_precomputed_service_is_read_one_message_an_entity(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import FeatureStore
    from feast.infra.online_stores.online_store import OnlineStore

    asked: list[int] = []
    own = OnlineStore.read_precomputed_vectors

    def reading(self: Any, config: Any, service: str, project: str, keys: list[Any]) -> Any:
        asked.append(len(keys))
        return own(self, config, service, project, keys)

    monkeypatch.setattr(OnlineStore, "read_precomputed_vectors", reading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Feast's own, from Python 3.12 on
        FeatureStore(repo_path=str(repo)).precompute_feature_service("ready_v1")
    stored = StoredFeatures(repo, "ready_v1", clock=time.time, patience=30)
    plain = StoredFeatures(repo, "card_v1", clock=time.time, patience=30)
    asked.clear()
    cards = ["a", "b", "c", "nobody"]
    values, flags = read(stored, cards, [1] * 4)
    expected, plain_flags = read(plain, cards, [1] * 4)
    assert sum(asked) == 4, "the views share the messages"
    for name, own_values in expected.items():
        assert values[name] == own_values
    assert values["limit__unused"] == [0, 0, 0, None]
    for said, as_said in zip(flags, plain_flags, strict=True):
        assert {flag for flag in said if flag.endswith("card_history")} == as_said
    stored.close()
    plain.close()


def test_killed_while_events_come_and_back_again(server: RedisServer, stored: StoredFeatures) -> None:
    """Entities that are held go on without waiting; new ones say that nobody knows; all are well when the store is back."""
    held, _ = read(stored, ["a"], [1])
    server.kill()
    slowest, unread = 0.0, 0
    began = time.monotonic()
    number = 0
    while time.monotonic() - began < 2.5:
        number += 1
        at = time.monotonic()
        values, flags = read(stored, ["a", f"new{number}"], [1, 100 + number])
        slowest = max(slowest, time.monotonic() - at)
        assert [values[name][0] for name in NAMES] == [held[name][0] for name in NAMES]
        assert {"missing:card_history", "unread:card_history"} <= flags[1]
        unread += "unread:card_history" in flags[0]
        time.sleep(0.005)
    assert unread, "after a second the row that is held should have been read again, and its decisions say so"
    assert slowest < 1.0
    server.start()
    until_read(stored, "a")
    assert read(stored, ["a"], [1])[0] == held
    until_read(stored, "b")


def test_a_store_that_is_slow_is_waited_for_once(server: RedisServer, stored: StoredFeatures) -> None:
    read(stored, ["a"], [1])
    server.pause(1.5)
    began = time.monotonic()
    waits = []
    while time.monotonic() - began < 1.2:
        at = time.monotonic()
        _, flags = read(stored, [f"slow{len(waits)}"], [1])
        waits.append(time.monotonic() - at)
        assert "unread:card_history" in flags[0]
        time.sleep(0.005)
    assert sum(wait > 0.25 for wait in waits) == 1
    until_read(stored, "b")
