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


@given(BATCHES, st.integers(0, 40), st.integers(0, 40), st.integers(1, 30), st.integers(0, 2**32))
def test_slots_are_those_of_the_definition(
    batches: list[tuple[list[tuple[int, bool]], int]], idle: int, few: int, most: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    twin = naive.Entities(few, most, cpu.LOOK)
    table, books, held = cpu.new_table(), cpu.new_books(), np.zeros((0, 3), np.int64)
    at = 0
    for rows, step in batches:
        n, used = len(rows), int(books[cpu.USED])
        at += step
        times = at + rng.integers(-20, 20, n)
        hashes = np.array([hash for hash, _ in rows], np.uint64)
        bits = np.array([1 + 4 * updates for _, updates in rows], np.uint32)
        table = cpu.grown(table, int(books[cpu.LIVE]) + n)
        held = np.concatenate([held, np.full((max(0, used + n - len(held)), 3), -99)])
        held[used:] = 0
        out, freed = np.full(n, -7, np.int32), np.full(min(used, cpu.LOOK * n), -7, np.int32)
        count = cpu.place(table, held, books, hashes, times, bits, at - idle, few, most, out, freed)
        events = [(hash, int(time), updates) for (hash, updates), time in zip(rows, times, strict=True)]
        slots, left = twin.place(events, at - idle)
        assert out.tolist() == slots
        assert freed[:count].tolist() == left
        assert (books[cpu.LIVE], books[cpu.EXPIRED], books[cpu.EVICTED]) == (len(twin.held), twin.expired, twin.evicted)
    entries = table[table[:, 0] != 0]
    assert {int(hash): int(slot) for hash, slot in entries} == {hash: slot for hash, (slot, _) in twin.held.items()}
    assert {int(slot): tuple(held[slot, :2].view(np.uint64)) for slot in entries[:, 1]} == {
        slot: tuple(np.array([hash, time]).astype(np.int64).view(np.uint64)) for hash, (slot, time) in twin.held.items()
    }


def test_no_more_are_held_than_may_be() -> None:
    """A million that come once each: the room is that of the bound and a batch."""
    table, books, held = cpu.new_table(), cpu.new_books(), np.zeros((3000, 3), np.int64)
    hashes = np.random.default_rng(0).integers(1, 2**64, 1_000_000, np.uint64)
    table = cpu.grown(table, 3000)
    for batch in np.split(hashes, 1000):
        freed = np.empty(min(int(books[cpu.USED]), cpu.LOOK * 1000), np.int32)
        count = cpu.place(
            table, held, books, batch, np.zeros(1000, np.int64), np.full(1000, 2, np.uint32), 0, 0, 1500,
            np.empty(1000, np.int32), freed,
        )  # fmt: skip
        assert count <= 1000
        assert books[cpu.USED] <= 2600
    assert books[cpu.EVICTED] + books[cpu.LIVE] == books[cpu.ADDED] == 1_000_000
    assert books[cpu.EXPIRED] == 0


def test_the_idlest_leave_first() -> None:
    """Of a thousand entities a tenth had no update for long; as many new ones put hardly another one out."""
    table, books, held = cpu.grown(cpu.new_table(), 1200), cpu.new_books(), np.zeros((1200, 3), np.int64)
    rng = np.random.default_rng(1)
    hashes = rng.integers(1, 2**64, 1100, np.uint64)
    times = np.where(np.arange(1100) % 10 == 0, 0, 100)
    for rows in (slice(0, 1000), slice(1000, 1100)):
        n = rows.stop - rows.start
        cpu.place(
            table, held, books, hashes[rows], times[rows] + rows.start, np.full(n, 2, np.uint32), -1, 0, 1000,
            np.empty(n, np.int32), np.empty(min(int(books[cpu.USED]), cpu.LOOK * n), np.int32),
        )  # fmt: skip
    old = set(hashes[:1000][np.arange(1000) % 10 == 0].tolist())
    here = set(table[table[:, 0] != 0, 0].tolist())
    assert len(here) == 1000
    assert len(old & here) < 30
