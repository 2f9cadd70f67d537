"""Stored features: equal to Feast's own read, with their age and what is missing told by flags."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pay_repo import DAY, NAMES, make_repo
from same_reads import same_by_feast

from features.history import historical
from features.online import open_reader
from features.rows import Fetched, Read
from features.spec import Stored
from features.stored import StoredFeatures, StoredRead
from features.views import METRICS_FILES, StoredFeaturesError, View

OPEN: list[StoredFeatures] = []


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("feast") / "repo")


def opened(repo: Path, service: Stored | str, **values: Any) -> StoredFeatures:
    """With the patience that a loaded machine needs; closed at the end of the test."""
    OPEN.append(StoredFeatures(repo, service, **({"patience": 60, "clock": Clock()} | values)))
    return OPEN[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def events(cards: Sequence[str | None], shops: Sequence[int | None], cities: Sequence[str | None]) -> pa.RecordBatch:
    columns = [pa.array(cards, pa.string()), pa.array(shops, pa.int64()), pa.array(cities).dictionary_encode()]
    return pa.RecordBatch.from_arrays(columns, ["card", "shop_id", "city"])


def at(*days: float) -> Any:
    start = int(DAY.timestamp()) * 1_000_000
    return np.array([start + int(day * 86_400_000_000) for day in days], np.int64)


def listed(values: Any) -> list[float | None]:
    return pa.array(values, from_pandas=True).to_pylist()


def raised(stored: StoredFeatures, read: StoredRead, flag: str) -> Any:
    return (read.flags >> stored.flags.index(flag) & 1).astype(bool)


EVENTS = events(["a", "b", None, "nobody", "c", "a"], [1, 1, 2, 3, None, 1], ["Ulm", "Bonn", "Ulm", "Ulm", "Ulm", None])


@pytest.mark.slow
def test_reads_what_feast_reads(repo: Path) -> None:
    from feast import FeatureStore

    stored = opened(repo, "pay_v1")
    assert stored.names == NAMES
    assert stored.entities == {"card", "shop_id", "city"}
    read = stored.read(EVENTS, at(0, 0, 0, 0, 0, 0))
    again = stored.read(EVENTS, at(0, 0, 0, 0, 0, 0))
    store = FeatureStore(repo_path=str(repo))
    # Feast takes no nulls as keys; a key that is nowhere reads the same.
    rows = {
        "card": [card or "nowhere" for card in EVENTS["card"].to_pylist()],
        "shop_id": [shop or -1 for shop in EVENTS["shop_id"].to_pylist()],
        "city": [city or "nowhere" for city in EVENTS["city"].to_pylist()],
    }
    own = store.get_online_features(store.get_feature_service("pay_v1"), entity_rows=rows, full_feature_names=True).to_dict()
    for name in NAMES:
        expected = [None if value is None else np.float32(value) for value in own[name]]
        assert listed(read.columns[name]) == expected == listed(again.columns[name])
        assert read.columns[name].dtype == np.float32


def test_the_stores_own_bytes_are_read_as_feasts_own_read_gives_them(repo: Path) -> None:
    from feast import FeatureStore

    same_by_feast(FeatureStore(repo_path=str(repo)), "pay_v1")


def test_a_view_that_is_being_materialised_is_read(repo: Path, tmp_path: Path) -> None:
    """Feast's SDK refuses it (feast 6780); what the store holds of it is as good as before."""
    from feast import FeatureStore
    from feast.feature_view import FeatureViewState

    folder = tmp_path / "repo"
    shutil.copytree(repo, folder)
    store = FeatureStore(repo_path=str(folder))
    store.set_feature_view_state("card_history", FeatureViewState.MATERIALIZING)
    with pytest.raises(ValueError, match="MATERIALIZING"):
        store.get_online_features(["card_history:count"], entity_rows=[{"card": "a"}])
    read = opened(folder, "pay_v1").read(EVENTS, at(*[0] * 6))
    assert listed(read.columns["card_history__count"]) == [2, 3, None, None, 4, 2]


def test_flags_tell_what_is_missing(repo: Path) -> None:
    stored = opened(repo, "pay_v1")
    read = stored.read(EVENTS, at(0, 0, 0, 0, 0, 0))
    assert raised(stored, read, "missing:card_history").tolist() == [False, False, True, True, False, False]
    assert raised(stored, read, "missing:place").tolist() == [False, False, False, True, True, True]
    assert not raised(stored, read, "stale:card_history").any()
    assert not raised(stored, read, "future:card_history").any()


def test_older_than_the_ttl_is_null_and_later_than_the_event_is_kept_both_flagged(repo: Path) -> None:
    stored = opened(repo, "pay_v1")
    batch = events(["a"] * 4, [1, 1, 1, 2], ["Ulm"] * 4)
    read = stored.read(batch, at(-1, 0, 2, 2.001))
    assert listed(read.columns["card_history__mean"]) == [2.5, 2.5, 2.5, None]
    assert listed(read.columns["card_history__count"]) == [2.0, 2.0, 2.0, None]
    assert raised(stored, read, "stale:card_history").tolist() == [False, False, False, True]
    assert raised(stored, read, "future:card_history").tolist() == [True, False, False, False]
    assert raised(stored, read, "future:place").tolist() == [True, False, False, False]
    assert not raised(stored, read, "stale:place").any()
    assert listed(read.columns["place__rate"]) == [0.25, 0.25, 0.25, 0.75]
    assert listed(stored.read(batch, at(-1, 0, 2, 2)).columns["card_history__mean"]) == [2.5] * 4


def test_what_is_stale_is_replaced_as_the_pipeline_says(repo: Path) -> None:
    asked = Stored("pay_v1", stale={"card_history__mean": "median", "card_history": 7, "place__rate": "refuse"})
    stored = opened(repo, asked, medians={"card_history__mean": 0.5})
    read = stored.read(events(["a", "a", "nobody", None], [1, 1, 9, 2], ["Ulm"] * 4), at(0, 3, 3, 3))
    assert listed(read.columns["card_history__mean"]) == [2.5, 0.5, None, None], "what the store knows to be missing is null"
    assert listed(read.columns["card_history__count"]) == [2, 7, None, None]
    assert raised(stored, read, "stale:card_history").tolist() == [False, True, False, False]
    assert not raised(stored, read, "refused").any(), "a view without ttl is never stale"
    assert stored.refuses


def test_age_is_by_the_events_time_or_by_the_clock(repo: Path) -> None:
    clock = Clock()
    clock.now = at(3)[0] / 1e6
    batch, times = events(["a"], [1], ["Ulm"]), at(1)
    for age, stale in (("event", False), ("wall", True)):
        asked = Stored("pay_v1", otherwise="refuse")
        stored = opened(repo, asked, clock=clock, age=age)
        read = stored.read(batch, times)
        assert raised(stored, read, "stale:card_history").tolist() == [stale] == raised(stored, read, "refused").tolist()


def test_what_nobody_knows_is_replaced_too(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    stored = opened(repo, Stored("pay_v1", stale={"place": "refuse"}, otherwise=-1))
    store.error = "gone"
    read = stored.read(events(["a", None], [1, None], ["Ulm", "Ulm"]), at(0, 0))
    assert listed(read.columns["card_history__mean"]) == [-1, None]
    assert listed(read.columns["place__rate"]) == [None, None]
    assert raised(stored, read, "refused").tolist() == [True, False]


def test_what_stored_cannot_say_is_named(repo: Path) -> None:
    with pytest.raises(StoredFeaturesError, match="the model has no median of card_history__mean"):
        opened(repo, Stored("pay_v1", otherwise="median"))
    with pytest.raises(StoredFeaturesError, match=r"expected a feature or a view of .*card_history__mean.*, got card_histroy"):
        opened(repo, Stored("pay_v1", stale={"card_histroy": "null"}))
    with pytest.raises(StoredFeaturesError, match="place__rate: expected a number or one of null, median, refuse, got 'nul'"):
        opened(repo, Stored("pay_v1", stale={"place__rate": "nul"}))  # type: ignore[dict-item]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The reads that reach the online store: (view, keys)."""
    seen: list[tuple[str, int]] = []

    def opening(store: Any, service: str) -> Read:
        own = open_reader(store, service)

        def read(view: View, keys: Sequence[bytes]) -> Fetched:
            seen.append((view.name, len(keys)))
            return own(view, keys)

        return read

    monkeypatch.setattr("features.stored.open_reader", opening)
    return seen


def test_the_store_is_asked_once_for_each_key_and_again_when_it_is_due(repo: Path, reads: list[tuple[str, int]]) -> None:
    clock = Clock()
    stored = opened(repo, "pay_v1", refresh_seconds=100, clock=clock)
    reads.clear()
    batch = events(["a", "b", "a", None, "nobody"] * 3, [1] * 15, ["Ulm"] * 15)
    stored.read(batch, at(*[0] * 15))
    assert reads == [("card_history", 3), ("place", 1)]
    clock.now += 50
    stored.read(batch, at(*[0] * 15))
    assert len(reads) == 2
    stored.read(events(["c"], [1], ["Ulm"]), at(0))
    assert reads[2:] == [("card_history", 1)]
    reads.clear()
    clock.now += 100
    until(lambda: sorted(reads) == [("card_history", 4), ("place", 1)])
    reads.clear()
    stored.read(batch, at(*[0] * 15))
    assert reads == []


def test_a_warm_start_reads_what_the_offline_source_knows(repo: Path, reads: list[tuple[str, int]]) -> None:
    stored = opened(repo, "pay_v1")
    cold = opened(repo, "pay_v1").read(EVENTS, at(*[0] * 6))
    reads.clear()
    assert stored.warm() == 3 + 3
    assert reads == [("card_history", 3), ("place", 3)]
    reads.clear()
    warm = stored.read(EVENTS, at(*[0] * 6))
    assert reads == [("card_history", 1), ("place", 1)], "only what no source knows"
    assert warm.flags.tolist() == cold.flags.tolist()
    for name in NAMES:
        np.testing.assert_array_equal(warm.columns[name], cold.columns[name])


def test_a_warm_start_that_cannot_be_had_is_said_and_serving_goes_on(
    repo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "repo"
    shutil.copytree(repo, folder)
    (folder / "data" / "cards.parquet").unlink()
    stored = opened(folder, "pay_v1")
    assert stored.warm() == 3
    assert "view card_history cannot be listed" in caplog.text
    assert listed(stored.read(EVENTS, at(*[0] * 6)).columns["card_history__count"])[0] == 2


def test_a_new_value_is_seen_when_the_old_one_is_due(repo: Path, tmp_path: Path) -> None:
    from feast import FeatureStore

    folder = tmp_path / "repo"
    shutil.copytree(repo, folder)
    clock = Clock()
    stored = opened(folder, "pay_v1", refresh_seconds=100, clock=clock)
    batch = events(["a"], [1], ["Ulm"])
    assert listed(stored.read(batch, at(1)).columns["card_history__mean"]) == [2.5]
    table = pa.table({"card": ["a"], "mean": [9.0], "count": [3], "unused": [0.0], "event_timestamp": [DAY + timedelta(1)]})
    store = FeatureStore(repo_path=str(folder))
    store.write_to_online_store("card_history", table.to_pandas())
    assert listed(stored.read(batch, at(1)).columns["card_history__mean"]) == [2.5]
    clock.now += 100
    until(lambda: listed(stored.read(batch, at(1)).columns["card_history__mean"]) == [9.0])


class Store:
    """Stands between the features and their online store: lets reads through when it is told to, or fails them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = ""
        self.open = threading.Event()
        self.open.set()
        monkeypatch.setattr("features.stored.open_reader", self._opening)

    def _opening(self, store: Any, service: str) -> Read:
        own = open_reader(store, service)

        def read(view: View, keys: Sequence[bytes]) -> Fetched:
            assert self.open.wait(60)
            if self.error:
                raise ConnectionError(self.error)
            return own(view, keys)

        return read


def test_a_store_that_fails_costs_freshness_and_says_so(
    repo: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, clock = Store(monkeypatch), Clock()
    stored = opened(repo, "pay_v1", clock=clock, refresh_seconds=100)
    old, new = events(["a"], [1], ["Ulm"]), events(["a", "b"], [1, 1], ["Ulm", "Bonn"])
    stored.read(old, at(0))
    store.error = "gone"
    clock.now += 99
    read = stored.read(new, at(0, 0))
    assert listed(read.columns["card_history__mean"]) == [2.5, None]
    assert raised(stored, read, "missing:card_history").tolist() == [False, True]
    assert raised(stored, read, "unread:card_history").tolist() == [False, True], "what the store never said is not known"
    assert "the online store is not answering: ConnectionError: gone" in caplog.text
    clock.now += 2
    read = stored.read(new, at(0, 0))
    assert listed(read.columns["card_history__mean"]) == [2.5, None]
    assert raised(stored, read, "unread:card_history").all(), "a row that should have been read again is given, and said"
    store.error = ""
    until(lambda: not raised(stored, stored.read(new, at(0, 0)), "unread:card_history").any())
    assert listed(stored.read(new, at(0, 0)).columns["card_history__mean"]) == [2.5, np.float32(0.1)]
    assert "the online store answers again" in caplog.text


def test_a_store_that_hangs_is_waited_for_once(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(monkeypatch)
    stored = opened(repo, "pay_v1", patience=0.5)
    store.open.clear()
    began = time.monotonic()
    stored.read(events(["a"], [1], ["Ulm"]), at(0))
    assert time.monotonic() - began >= 0.5
    began = time.monotonic()
    for k in range(20):
        read = stored.read(events([f"x{k}"], [k], ["Ulm"]), at(0))
        assert raised(stored, read, "unread:card_history").all()
    assert time.monotonic() - began < 0.5, "while it hangs nobody waits"
    store.open.set()
    until(lambda: not raised(stored, stored.read(events(["a", "x7"], [1, 2], ["Ulm"] * 2), at(0, 0)), "unread:place").any())


def test_many_entities_and_a_full_cache(repo: Path, reads: list[tuple[str, int]]) -> None:
    stored = opened(repo, "pay_v1", max_entities=100)
    for start in range(0, 1000, 70):
        cards = [f"x{k}" for k in range(start, start + 70)] + ["a"]
        read = stored.read(events(cards, [1] * 71, ["Ulm"] * 71), at(*[0] * 71))
        assert listed(read.columns["card_history__mean"]) == [None] * 70 + [2.5]
    large = opened(repo, "pay_v1")
    reads.clear()
    cards = [f"x{k}" for k in range(9000)] + ["a", "b"]
    for _ in range(2):
        read = large.read(events(cards, [1] * 9002, ["Ulm"] * 9002), at(*[0] * 9002))
        assert raised(large, read, "missing:card_history").sum() == 9000
        assert listed(read.columns["card_history__mean"][9000:]) == [2.5, np.float32(0.1)]
    assert sum(keys for view, keys in reads if view == "card_history") == 9002


def test_feast_leaves_the_metrics_of_this_process_and_its_children_alone(repo: Path) -> None:
    opened(repo, "pay_v1")
    assert not set(METRICS_FILES) & set(os.environ)


def test_a_batch_without_rows(repo: Path) -> None:
    read = opened(repo, "pay_v1").read(EVENTS.slice(0, 0), at())
    assert [len(read.columns[name]) for name in NAMES] == [0] * 4


def test_wrong_columns_are_named(repo: Path) -> None:
    stored = opened(repo, "pay_v1")
    with pytest.raises(StoredFeaturesError, match=r"view card_history: expected the columns card, got no .*card"):
        stored.read(EVENTS.select(["shop_id", "city"]), at(*[0] * 6))
    wrong = pa.RecordBatch.from_pydict({"card": [1], "shop_id": [1], "city": ["Ulm"]})
    with pytest.raises(StoredFeaturesError, match="view card_history: expected text, got int64 at card"):
        stored.read(wrong, at(0))


def test_what_is_missing_in_the_repo_is_said_with_what_to_do(repo: Path, tmp_path: Path) -> None:
    with pytest.raises(StoredFeaturesError, match=r"no Feast repo at .*: expected a file feature_store\.yaml"):
        StoredFeatures(tmp_path, "pay_v1", clock=Clock())
    with pytest.raises(
        StoredFeaturesError,
        match=r"no feature service pay_v2 .*it has card_v1, pay_v1, ready_v1, worded.*run feast -c .* apply",
    ):
        opened(repo, "pay_v2", clock=Clock())
    with pytest.raises(StoredFeaturesError, match="expected numbers, got String at words__word"):
        opened(repo, "worded", clock=Clock())
    bare = tmp_path / "bare"
    shutil.copytree(repo, bare)
    (bare / "data" / "online.db").unlink()
    with pytest.raises(StoredFeaturesError, match=r"cannot read card_history .*unable to open.*: run feast -c .* materialize"):
        StoredFeatures(bare, "pay_v1", clock=Clock())
    (bare / "data" / "registry.db").unlink()
    with pytest.raises(StoredFeaturesError, match=r"has no registry at .*: run feast -c .* apply"):
        StoredFeatures(bare, "pay_v1", clock=Clock())


def test_history_is_as_of_each_rows_time_in_the_rows_order(repo: Path) -> None:
    """Rows that share a view's key and time, rows with stale or no history, and null keys: none is lost or moved."""
    days = [1.0, -3.0, -2.5, -0.5, 2.0, 2.001, 1.0, 1.0, 1.0, -4.0, 1.0]
    batch = events(
        ["a", "a", "a", "a", "a", "a", "b", "b", None, "a", "zz"],
        [1, 1, 1, 1, 1, 2, 1, 1, 2, 1, 1],
        ["Ulm", "Ulm", "Ulm", "Bonn", None, "Ulm", "Ulm", "Bonn", "Ulm", "Ulm", "Ulm"],
    )
    table = pa.Table.from_batches([batch]).append_column("when", pa.array(at(*days)).cast(pa.timestamp("us", "UTC")))
    features = historical(repo, "pay_v1", table, "when")
    assert tuple(features.column_names) == NAMES
    assert set(features.schema.types) == {pa.float32()}
    third = np.float32(0.1)
    assert features["card_history__mean"].to_pylist() == [2.5, 1.5, 1.5, None, 2.5, None, third, third, None, None, None]
    assert features["card_history__count"].to_pylist() == [2, 1, 1, None, 2, None, 3, 3, None, None, None]
    expected = [0.25, None, None, None, None, 0.75, 0.25, 0.5, 0.75, None, 0.25]
    assert features["place__rate"].to_pylist() == expected
    assert features["place__open"].to_pylist() == [None if rate is None else float(rate != 0.5) for rate in expected]


def test_history_and_serving_agree_where_the_newest_row_holds(repo: Path) -> None:
    """All of the store's rows are known at this time, so that the join as of it finds what the online store has."""
    times = at(*[0.25] * EVENTS.num_rows)
    served = opened(repo, "pay_v1").read(EVENTS, times)
    table = pa.Table.from_batches([EVENTS]).append_column("when", pa.array(times).cast(pa.timestamp("us", "UTC")))
    trained = historical(repo, "pay_v1", table, "when")
    for name in NAMES:
        assert listed(served.columns[name]) == trained[name].to_pylist()
