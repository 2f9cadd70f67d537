"""What the last snapshots of all pages hold is the state as it was, whatever was woken when; and each is small."""

import pickle
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from features import state as states
from features.spec import Last, Window
from features.state import State, arrays_of, hashes_of, pages_of
from features.streaming import Cut, groups
from streams.exchange import News, Parcel, Shard, Wake
from streams.holdings import whole
from streams.meters import Meters
from streams.ordering import Held
from streams.shards import KEPT, LEAST_KEPT, MOST_AT_ONCE, OF_HELD, PAGES, ROUND, Ledger, Shards, at_once, page_of

GROUPS = groups(
    [
        Window("card", "amount", over="1m", aggs=("count", "sum", "distinct")),
        Last("card", "amount", within="30s"),
        Window("shop", "amount", over="10m", aggs=("max",)),
    ]
)
SHARDS = 3
HASHES = np.random.default_rng(0).integers(1, 2**64, 400, np.uint64)
FEW_PAGES = range(0, PAGES, PAGES // 4)
"""Of which every other entity is."""
HASHES[::2] &= np.uint64(~(0b11111 << 57) % 2**64)


def cut(rng: np.random.Generator, now: int, n: int, low: int, high: int) -> Cut:
    """n rows of these entities at about `now` seconds, of which half read and most update."""
    return Cut(
        np.arange(n, dtype=np.int32),
        HASHES[rng.integers(low, high, n)],
        (now + rng.integers(-3, 3, n)) * 1_000_000,
        (rng.integers(0, 2, n) + 2 * (rng.random(n) < 0.8)).astype(np.uint32),
        np.stack([rng.integers(1, 99, n).astype(float)] * 2),
        np.empty((0, n), np.int64),
    )


def updating(hashes: np.ndarray, now: int) -> Cut:
    """An update of each entity, none of which is read."""
    n = len(hashes)
    rows, times, bits = np.arange(n, dtype=np.int32), np.full(n, now * 1_000_000), np.full(n, 2, np.uint32)
    return Cut(rows, hashes.copy(), times, bits, np.ones((2, n)), np.empty((0, n), np.int64))


def reading(hashes: np.ndarray, now: int) -> Cut:
    """A read of each entity, none of which is updated."""
    n = len(hashes)
    rows, times, bits = np.arange(n, dtype=np.int32), np.full(n, now * 1_000_000), np.ones(n, np.uint32)
    return Cut(rows, hashes.copy(), times, bits, np.full((2, n), np.nan), np.empty((0, n), np.int64))


def everything(shards: Shards, now: int) -> np.ndarray:
    """The features of all entities."""
    return np.concatenate([state.update(reading(HASHES, now), 0) for state in shards.states])


def run(wakes: list[list[int]], seed: int, most: int, resume_at: Callable[[int], bool]) -> list[np.ndarray]:
    """Epochs of up to six batches in which these pages are woken, after which they are taken ahead or not; where it is said so
    the state is lost, and resumed from the last snapshots."""
    rng = np.random.default_rng(seed)
    shards = Shards(GROUPS, SHARDS, None, most)
    store: dict[tuple[int, int], bytes] = {}
    seen = []
    for epoch, pages in enumerate(wakes):
        now = 1_700_000_000 + 5 * epoch
        low = 4 * epoch % 300
        for batch in range(rng.integers(1, 7)):
            shards.fed()
            shards.ahead()
            for state in shards.states:
                state.update(cut(rng, now, 40, low, low + 60), (now - 5) * 1_000_000)
            for shard, page in product(range(SHARDS), pages if batch == 0 else []):
                shards.wake(shard, page)
        asked = [shard for shard in rng.permutation(SHARDS).tolist() if rng.random() < 0.9]
        for shard, page in sorted((shard, page) for shard in asked for page in pages) if epoch % 2 else product(asked, pages):
            store[shard, page] = pickle.dumps(shards.snapshot(shard, page))
        if len(asked) == SHARDS and resume_at(epoch):
            resumed = Shards(GROUPS, SHARDS, None, most)
            for key in rng.permutation(len(store)).tolist():
                resumed.resume(pickle.loads(list(store.values())[key]))
            resumed.ready()
            np.testing.assert_array_equal(everything(resumed, now), everything(shards, now))
            shards = resumed
        seen.append(everything(shards, now))
    return seen


@given(
    st.lists(st.lists(st.integers(0, PAGES - 1) | st.sampled_from(FEW_PAGES), min_size=1, max_size=3), min_size=1, max_size=80),
    st.integers(0, 2**32),
    st.sampled_from([0, 50]),
    st.sets(st.integers(0, 80)),
)
def test_pages_in_any_order_hold_the_whole(wakes: list[list[int]], seed: int, most: int, crashes: set[int]) -> None:
    run(wakes, seed, most, lambda epoch: epoch in crashes)


def test_a_page_that_was_woken_is_taken_two_batches_later_and_not_in_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, taken = State.page, list[int]()

    def page(state: State, shards: int, page: int, pages: int) -> Any:
        taken.append(page)
        return whole(state, shards, page, pages)

    monkeypatch.setattr(State, "page", page)
    meters = Meters(CollectorRegistry(), "x")
    shards = Shards(GROUPS[:1], 1, None)
    step = Shard(shards, None, meters, 1)

    def epoch(page: int, batches: int) -> list[int]:
        """The pages that are taken, after each batch and in the pause."""
        seen = []
        for batch in range(batches):
            step.on_batch([Parcel(0, "000.0", batch, (), (News("0", 1, 1, False),))])
            if batch == 0:
                step.on_batch([Wake(0, page)])
            seen.append(len(taken))
        step.snapshot()
        return [*seen, len(taken)]

    assert epoch(3, 5) == [0, 0, 0, 0, 0, 1], "of a shard that has no snapshot"
    assert epoch(4, 5) == [1, 1, 2, 2, 2, 2]
    assert epoch(5, 2) == [2, 2, 3], "there were no batches"
    assert taken == [3, 4, 5]


def test_what_changed_after_its_page_was_taken_ahead_is_kept_until_the_page_is_taken_again() -> None:
    """Under the key of another page of that epoch, which is taken again before."""
    hashes = HASHES[::2]
    first, other = (hashes[pages_of(hashes, PAGES) == page] for page in FEW_PAGES[:2])
    shards, store = Shards(GROUPS[:1], 1, None), dict[int, bytes]()

    def epoch(pages: Sequence[int], before: np.ndarray, after: np.ndarray, now: int) -> None:
        shards.states[0].update(updating(before, now))
        for page in pages:
            shards.wake(0, page)
        for _ in range(2 + len(pages)):
            shards.fed()
            shards.ahead()
        shards.states[0].update(updating(after, now))
        store.update({page: pickle.dumps(shards.snapshot(0, page)) for page in pages})

    epoch(FEW_PAGES[:1], hashes, hashes, 1000)
    epoch(FEW_PAGES[:2], first, other, 1001)
    epoch(FEW_PAGES[:1], first, first, 1002)
    resumed = Shards(GROUPS[:1], 1, None)
    for each in store.values():
        resumed.resume(pickle.loads(each))
    resumed.ready()
    asked = reading(hashes, 1002)
    np.testing.assert_array_equal(resumed.states[0].update(asked, 0), shards.states[0].update(asked, 0))


def test_pages_in_turn_hold_the_whole_and_what_left_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "FEW", 0)
    wakes = [[epoch % PAGES] for epoch in range(2 * PAGES)]
    whole = run(wakes, 1, 0, lambda epoch: False)
    lost = run(wakes, 1, 0, lambda epoch: epoch % 19 == 0)
    assert len(whole) == len(lost)
    assert np.nanmax(whole[-1][0]) > 1


@pytest.mark.parametrize("every", [1, 2, 3, 4, 60, 127, 128, 130, 254, 256, 381])
def test_every_page_has_its_turn_wherever_events_come(every: int) -> None:
    pages = [page_of(epoch) for epoch in range(7, 7 + 2 * ROUND * every, every)]
    assert all(set(pages[start : start + ROUND]) == set(range(PAGES)) for start in range(0, ROUND, 17))


def test_a_snapshot_costs_by_what_changed() -> None:
    """30,000 entities, of which 50 change in an epoch: a thirty-second of them and those."""
    rng = np.random.default_rng(2)
    hashes = rng.integers(1, 2**64, 30_000, np.uint64)
    shards = Shards(GROUPS[:1], SHARDS, None)

    def epoch(number: int) -> int:
        return sum(len(pickle.dumps(shards.snapshot(shard, number % PAGES))) for shard in range(SHARDS))

    shards.states[0].update(updating(hashes, 1000))
    first = epoch(0)
    for number in range(1, PAGES + 1):
        shards.states[0].update(updating(hashes[:50], 1000 + number))
        size = epoch(number)
    assert size < first / 10


@pytest.mark.parametrize(
    ("changed", "held", "pages"),
    [
        (0, 0, 1), (10_000, 10**6, 1), (40_000, 10**6, 4), (150_000, 10**6, 16), (10**6, 10**6, MOST_AT_ONCE),
        (700, 700, 1), (10_000, 80_000, 4), (80_000, 80_000, MOST_AT_ONCE),
    ],
)  # fmt: skip
def test_the_more_changes_in_an_epoch_the_more_pages_are_taken_in_it(changed: int, held: int, pages: int) -> None:
    """So that what is kept of changes stays in proportion, whatever the load; each page comes as often as any other."""
    seen = [at_once(page_of(epoch), changed, held) for epoch in range(7, 7 + 6 * PAGES)]
    assert {len(each) for each in seen} == {pages}
    round_of_all = ROUND // pages + 1
    for start in range(0, len(seen) - 2 * PAGES, 5):
        assert {page for each in seen[start : start + 2 * round_of_all] for page in each} == set(range(PAGES))
    most = max(kept_of([changed] * len(seen), held)[2 * ROUND :])
    assert most <= 2 * max(ROUND * changed / MOST_AT_ONCE, LEAST_KEPT, min(KEPT, OF_HELD * held))


def test_an_epoch_after_a_stop_takes_no_pages_out_of_turn_and_a_load_that_lasts_does() -> None:
    shards = Shards(GROUPS[:1], SHARDS, None)
    shards.states[0].update(updating(np.random.default_rng(5).integers(1, 2**64, 60_000, np.uint64), 1000))
    loads = [2_000] * 40 + [30_000] + [2_000] * 20 + [60_000] * 40
    taken = [len(shards.at_once(page_of(epoch), rows)) for epoch, rows in enumerate(loads)]
    assert set(taken[:61]) == {1}
    assert taken[-1] == 16
    assert taken[61:] == sorted(taken[61:])


@pytest.mark.slow
@given(st.lists(st.sampled_from([100, 11_000, 12_000, 30_000, 80_000]), min_size=40, max_size=400), st.integers(0, 10**6))
def test_what_is_kept_of_changes_is_bounded_however_the_load_goes_up_and_down(loads: list[int], begin: int) -> None:
    """A page that comes out of turn carries on what is still needed of its changes, and no longer than it is."""
    loads = (loads * 20)[: 4 * ROUND]
    kept = kept_of(loads, 80_000, begin)
    for at in range(2 * ROUND, len(loads)):
        assert kept[at] <= 1.1 * sum(loads[at - ROUND : at + 1]), at


def kept_of(loads: list[int], held: int, begin: int = 7) -> list[int]:
    """After each epoch with so many changes, how many are kept under all pages' keys."""
    ledger, kept, sizes, rng = Ledger(), dict[int, int](), [], np.random.default_rng(7)
    for epoch, changed in enumerate(loads, begin):
        before = ledger.number  # when they are taken ahead, all of them
        for k, page in enumerate(at_once(page_of(epoch), changed, held)):
            fresh = 0 if k else changed
            kept[page] = fresh + sum(1000 * len(hashes) for (hashes,) in ledger.carried(page))
            ledger.take(page, before, ledger.number + 1, [rng.integers(0, 2**64, fresh // 1000, np.uint64)])
        sizes.append(sum(kept.values()))
    return sizes


def test_what_is_kept_of_changes_is_known_by_the_entities_alone() -> None:
    """The values are taken again when their page's key is written again too early: so a ledger is small."""
    shards = Shards(GROUPS[:1], 1, None)
    hashes = np.random.default_rng(3).integers(1, 2**64, 10_000, np.uint64)
    store = {}
    for epoch in range(6):
        shards.states[0].update(updating(hashes, 1000))
        store[0] = shards.snapshot(0, 0)  # the others never come: each snapshot has to hold all
        (changed,) = store[0]["changes"]
        assert len(hashes_of(changed)) == len(hashes), epoch
    (ledger,) = shards._ledgers.values()
    own = hashes[pages_of(hashes, PAGES) == 0]  # what was kept of them before is in the page each time
    expected = 6 * hashes.nbytes - 5 * own.nbytes
    assert sum(each.nbytes for kept in ledger._changed for _, changed in kept for each in changed) == expected


@pytest.mark.slow
@pytest.mark.parametrize("missed", [5, 12, 100])
def test_a_page_that_misses_its_turn_makes_no_other_carry_on_more_than_is_of_it(missed: int) -> None:
    """As after a short stop, whose next epoch may be one without events, while very much changed in the epochs before."""
    hashes, shards = np.random.default_rng(6).integers(1, 2**64, 40_000, np.uint64), Shards(GROUPS[:1], 1, None)
    changed, store = [], dict[int, dict[str, Any]]()
    for epoch in range(2 * ROUND):
        if epoch == missed:
            continue
        shards.states[0].update(updating(hashes if epoch < 10 else hashes[:50], 1000 + epoch))
        store[page_of(epoch)] = taken = shards.snapshot(0, page_of(epoch))
        changed.append(len(hashes_of(taken["changes"][0])))
        if epoch % 20 == 12 and epoch > ROUND:
            resumed = Shards(GROUPS[:1], 1, None)
            for each in store.values():
                resumed.resume(each)
            resumed.ready()
            asked = reading(hashes, 1000 + epoch)
            np.testing.assert_array_equal(*(one.states[0].update(asked, 0) for one in (resumed, shards)))
    assert changed[:9] == [len(hashes)] * 9
    assert max(changed[10:]) < 50 + 2 * len(hashes) / PAGES


def test_another_number_of_shards_or_pages_is_refused() -> None:
    shards = Shards(GROUPS, SHARDS, Held(1, len(GROUPS), 10))
    taken: dict[str, Any] = shards.snapshot(0, 0)
    for name, message in (
        ("shards", "expected state of 3 shards, got 9"),
        ("pages", f"expected state of {PAGES} pages, got 9"),
    ):
        with pytest.raises(ValueError, match=message):
            Shards(GROUPS, SHARDS, None).resume(taken | {name: 9})
    with pytest.raises(ValueError, match="expected state version 7, got 2"):
        Shards(GROUPS, SHARDS, None).resume(taken | {"version": 2})
    with pytest.raises(RuntimeError, match="came after the first event"):
        shards.resume(taken)


def test_state_is_whole_where_a_topic_has_grown_since_a_shard_was_snapshotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In event order, each shard's rows wait for as many partitions as there were."""
    of = {shard: Shards(GROUPS, SHARDS, Held(1 + shard, len(GROUPS), 10)) for shard in range(SHARDS)}
    monkeypatch.setattr(
        "streams.holdings.pages", lambda store, flow, shard: [of[shard].snapshot(shard, page) for page in range(PAGES)]
    )
    made = whole(None, "f", GROUPS, SHARDS)  # type: ignore[arg-type]
    assert made.held is not None
    assert len(made.held.dump()["seen"]) == SHARDS


def test_what_is_held_is_written_compressed_and_read_as_it_was() -> None:
    state = State(GROUPS[0])
    state.update(updating(np.arange(1, 10_001, dtype=np.uint64), 1000))
    dumped = state.dump()
    arrays = arrays_of(dumped)
    assert {name: (array.dtype.str, array.shape) for name, array in arrays.items()} == {
        name: (kind, shape) for name, (kind, shape) in dumped["arrays"].items()
    }
    assert sorted(arrays["keys"].tolist()) == list(range(1, 10_001))
    assert all(array.flags.aligned and not array.flags.writeable for array in arrays.values())  # kernels are compiled for such
    assert len(pickle.dumps(dumped)) < sum(array.nbytes for array in arrays.values()) / 3
    assert list(arrays_of(dumped, states.HASHES)) == [name for name in arrays if name in states.HASHES]


def test_without_streaming_features_there_is_a_snapshot_with_none() -> None:
    taken = Shards([], SHARDS, None).snapshot(0, 0)
    assert (taken["groups"], taken["changes"]) == ([], [])
