"""Shard names hash as Bytewax hashes them, so that source, state and sink of one name meet on one worker."""

import pytest

from streams.routing import WORKERS_MULTIPLE, page_name, shard_name, shard_number, siphash13
from streams.settings import JobSettings
from streams.shards import PAGES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0x30406EA523C53DEF),
        ("a", 0x719B50B9A4F0E9F3),
        ("abcdefg", 0x2295EF44BD078AE9),
        ("abcdefgh", 0x5CD7657FA7F96C16),
    ],
)
def test_siphash_is_rusts(text: str, expected: int) -> None:
    """Printed by std::hash::DefaultHasher (Rust 1.95) for these strings, which it feeds with 0xff behind them."""
    assert siphash13(text.encode() + b"\xff") == expected


@pytest.mark.parametrize("shard", [0, 1, 7, 41, 839])
def test_a_name_sorts_and_hashes_as_its_number(shard: int) -> None:
    name = shard_name(shard)
    assert shard_number(name) == shard
    for workers in range(1, 9):
        assert siphash13(name.encode() + b"\xff") % workers == shard % workers


@pytest.mark.parametrize("shard", [0, 41, 839])
def test_the_pages_of_a_shard_are_on_its_worker(shard: int) -> None:
    names = [page_name(shard, page) for page in range(PAGES)]
    assert len({*names, shard_name(shard)}) == PAGES + 1
    for name in names:
        assert shard_number(name) == shard
        assert siphash13(name.encode() + b"\xff") % WORKERS_MULTIPLE == shard


def test_names_beyond_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 839, got 840"):
        shard_name(WORKERS_MULTIPLE)


def test_a_number_of_workers_with_which_names_do_not_meet_is_refused() -> None:
    assert [number for number in range(1, 17) if 840 % number == 0] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15]
    assert JobSettings(workers=12).workers == 12
    for workers, near in ((9, 8), (11, 10), (16, 15), (64, 60)):
        with pytest.raises(ValueError, match=f"divides 840 .*, as {near}"):
            JobSettings(workers=workers)
