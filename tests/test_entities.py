"""Slots are given out and taken back as the definition says; nobody of the batch at hand has to leave."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.entities import cpu, naive

BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from([0, *range(1, 80), *range(16, 1600, 16), 2**64 - 1]), st.booleans()), max_size=40),
        st.integers(0, 30),
    ),
    max_size=8,
)


class Table:
    """A table with what belongs to it, poisoned."""

    def __init__(self) -> None:
        self.entries, self.books = cpu.new_table(), cpu.new_books()
        self.pinned = self.free = np.zeros(0, np.int32)

    def place(
        self, hashes: np.ndarray, seconds: np.ndarray, updates: np.ndarray, since: int, few: int, most: int
    ) -> tuple[list[int], list[int]]:
        """The slots, and those that were freed."""
        n, used, held = len(hashes), int(self.books[cpu.USED]), int(self.books[cpu.LIVE])
        self.entries = cpu.grown(self.entries, held + n)
        self.pinned, self.free = (
            np.concatenate([a, np.full(max(0, used + n - len(a)), -9, np.int32)]) for a in (self.pinned, self.free)
        )
        out, freed = np.full(n, -7, np.int32), np.full(min(held, 2 * cpu.LOOK * n), -7, np.int32)
        gone = np.full(len(freed), 7, np.uint64)
        before = {slot: hash for hash, (slot, _) in self.held.items()} if len(freed) < 1000 else {}
        times, bits = seconds * 1_000_000 + 999_999, (1 + 4 * updates).astype(np.uint32)
        room = self.entries, self.pinned, self.free, self.books
        count = cpu.place(*room, hashes, times, bits, since, few, most, out, freed, gone)
        assert not before or gone[:count].tolist() == [before[slot] for slot in freed[:count].tolist()]
        return out.tolist(), freed[:count].tolist()

    @property
    def held(self) -> dict[int, tuple[int, int]]:
        filled = self.entries[self.entries[:, 0] != 0]
        return {int(hash): (int(rest & cpu.SLOT), int(rest >> cpu.HALF)) for hash, rest in filled}


@given(BATCHES, st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(0, 2**32))
def test_slots_are_given_as_the_definition_allows(
    batches: list[tuple[list[tuple[int, bool]], int]], idle: int, few: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table, twin = Table(), naive.Entities(few, most)
    at = 100
    for rows, step in batches:
        at += step
        seconds = at + rng.integers(-20, 20, len(rows))
        hashes, updates = np.array([hash for hash, _ in rows], np.uint64), np.array([each for _, each in rows], np.bool_)
        slots, freed = table.place(hashes, seconds, updates, at - idle, few, most)
        events = [(hash, second, each) for (hash, each), second in zip(rows, seconds.tolist(), strict=True)]
        assert twin.place(events, at - idle, slots, freed) == []
        books = table.books
        assert (books[cpu.LIVE], books[cpu.EXPIRED], books[cpu.EVICTED]) == (len(twin.held), twin.expired, twin.evicted)
        assert table.held == twin.held


@given(
    st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 40) | st.integers(2**64 - 40, 2**64 - 1), max_size=60, unique=True),
    st.integers(1, 5),
    st.sampled_from([1, 2, 8, 32]),
)
def test_shards_and_pages_share_the_entities_out(hashes: list[int], shards: int, pages: int) -> None:
    table, keys = Table(), np.array(hashes, np.uint64)
    n = len(hashes)
    table.place(keys, np.zeros(n, np.int64), np.ones(n, np.bool_), 0, 99, 99)
    found = []
    for shard in range(shards):
        for page in range(pages):
            places = np.full(len(table.entries), -7)
            count = cpu.members(table.entries, shard, shards, page, pages, places)
            mine = [int(hash) for hash in table.entries[places[:count], 0]]
            assert all(hash % shards == shard and hash * pages >> 64 == page for hash in mine)
            found += mine
    assert sorted(found) == sorted(hashes)


@given(st.lists(st.integers(1, 60), max_size=40, unique=True), st.lists(st.integers(0, 70), max_size=20))
def test_what_is_held_is_found(hashes: list[int], wanted: list[int]) -> None:
    table, keys = Table(), np.array(hashes, np.uint64) * np.uint64(2**58 + 1)
    table.place(keys, np.zeros(len(keys), np.int64), np.ones(len(keys), np.bool_), 0, 99, 99)
    asked = np.array(wanted, np.uint64) * np.uint64(2**58 + 1)
    places = np.full(len(asked), -7)
    cpu.find(table.entries, asked, places)
    for hash, place in zip(asked.tolist(), places.tolist(), strict=True):
        assert (place >= 0) == (hash in keys.tolist())
        assert place < 0 or int(table.entries[place, 0]) == hash


def test_without_a_bound_nobody_leaves_and_slots_are_given_in_turn() -> None:
    hashes = np.random.default_rng(0).integers(1, 2**64, 5000, np.uint64)
    table = Table()
    for rows in np.split(np.arange(5000), 50):
        slots, freed = table.place(hashes[rows], rows, np.ones(100, np.bool_), -1, 0, 2**62)
        assert (slots, freed) == (rows.tolist(), [])


def test_no_more_are_held_than_may_be() -> None:
    """A million that come once each: the room is that of the bound and a batch."""
    table = Table()
    for batch in np.split(np.random.default_rng(0).integers(1, 2**64, 1_000_000, np.uint64), 1000):
        table.place(batch, np.zeros(1000, np.int64), np.ones(1000, np.bool_), 0, 0, 1500)
        assert table.books[cpu.USED] <= 2550
    assert table.books[cpu.EVICTED] + table.books[cpu.LIVE] == table.books[cpu.ADDED] == 1_000_000
    assert table.books[cpu.EXPIRED] == 0
    assert table.books[cpu.LIVE] == len(table.held)


def test_the_idlest_leave_first() -> None:
    """Of a thousand entities a tenth had no update for long; of the hundred that leave, chance would take ten of those."""
    table, hashes = Table(), np.random.default_rng(1).integers(1, 2**64, 1100, np.uint64)
    seconds = np.where(np.arange(1100) % 10 == 0, 0, 100)
    for rows in (slice(0, 1000), slice(1000, 1100)):
        n = rows.stop - rows.start
        table.place(hashes[rows], seconds[rows] + rows.start, np.ones(n, np.bool_), -1, 0, 1000)
    old = set(hashes[:1000][np.arange(1000) % 10 == 0].tolist())
    assert len(table.held) == 1000
    assert len(old & set(table.held)) < 50


def test_the_idle_leave_when_others_come_and_their_slots_are_used_again() -> None:
    table, hashes = Table(), np.random.default_rng(2).integers(1, 2**64, 100_000, np.uint64)
    for k, batch in enumerate(np.split(hashes, 100)):
        table.place(batch, np.full(1000, k), np.ones(1000, np.bool_), k - 3, 2000, 2**62)
        assert table.books[cpu.USED] <= 7000
    assert table.books[cpu.EVICTED] == 0
    assert {second for _, second in table.held.values()} >= {97, 98, 99}
    assert sum(second >= 97 for _, second in table.held.values()) == 3000
