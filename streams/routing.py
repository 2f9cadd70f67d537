"""Names for partitions and shards that Bytewax puts on the same worker, whatever their number.

Bytewax deals sources and sinks round-robin by sorted name, and sends a key of a stateful step to worker
SipHash-1-3(key) % workers. A name "{p:03d}.{k}" sorts as p, and k is searched so that its hash is p modulo 840, which every
number of workers to 8 divides, and 10, 12, 14, 15, 20, ...; so source, state and sink of one name meet on worker p % workers.
With other numbers they do not, and what a part tells another on its worker (streams/polling.py, streams/shards.py) goes astray.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

WORKERS_MULTIPLE = 840
MASK = (1 << 64) - 1
TRIED = 180_000


def siphash13(data: bytes) -> int:
    """SipHash-1-3 with a zero key (Aumasson, Bernstein: SipHash, 2012), as Rust's standard hasher computes it."""
    padded = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) & 0xFF])
    return _hashed([int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)])


def _hashed(words: Sequence[Any]) -> Any:
    """The hash of padded data as words, each an int, or an array uint64 [n] for n pieces of data at once."""
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573
    for word in words:
        v3 = v3 ^ word
        v0, v1, v2, v3 = _compressed(v0, v1, v2, v3)
        v0 = v0 ^ word
    v2 = v2 ^ 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _compressed(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _compressed(v0: Any, v1: Any, v2: Any, v3: Any) -> tuple[Any, Any, Any, Any]:
    v0 = (v0 + v1) & MASK
    v1 = _rotated(v1, 13) ^ v0
    v0 = _rotated(v0, 32)
    v2 = (v2 + v3) & MASK
    v3 = _rotated(v3, 16) ^ v2
    v0 = (v0 + v3) & MASK
    v3 = _rotated(v3, 21) ^ v0
    v2 = (v2 + v1) & MASK
    v1 = _rotated(v1, 17) ^ v2
    v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


def _rotated(x: Any, by: int) -> Any:
    return ((x << by) | (x >> (64 - by))) & MASK


def check_workers(workers: int) -> int:
    """The number of workers. Raises ValueError for one that parts of one name do not meet with."""
    if WORKERS_MULTIPLE % workers:
        near = next(number for number in range(workers, 0, -1) if WORKERS_MULTIPLE % number == 0)
        raise ValueError(f"expected a number of workers that divides {WORKERS_MULTIPLE} (1 to 8, 10, 12, ...), as {near}")
    return workers


@cache
def shard_name(shard: int) -> str:
    """The name of partition or shard 0 to 839. Raises ValueError beyond."""
    if not 0 <= shard < WORKERS_MULTIPLE:
        raise ValueError(f"expected a shard or partition from 0 to {WORKERS_MULTIPLE - 1}, got {shard}")
    k = 0
    while siphash13(f"{shard:03d}.{k}".encode() + b"\xff") % WORKERS_MULTIPLE != shard:
        k += 1
    return f"{shard:03d}.{k}"


def page_name(shard: int, page: int) -> str:
    """The name of a page of a shard: another one for each, all of them on the shard's worker. Pages are few."""
    return _page_names(shard)[page]


@cache
def _page_names(shard: int) -> list[str]:
    """The names with seven digits after the point, below TRIED, that fit: about 214. Finding them takes 50 ms."""
    k = np.arange(TRIED, dtype=np.uint64)
    digits = [np.uint64(ord("0")) + k // np.uint64(10**place) % np.uint64(10) for place in range(6, -1, -1)]
    letters = [np.uint64(letter) for letter in f"{shard:03d}.".encode()] + digits + [np.uint64(0xFF)]
    words = [np.zeros(TRIED, np.uint64), np.full(TRIED, len(letters) << 56, np.uint64)]
    for at, letter in enumerate(letters):
        words[at // 8] |= letter << np.uint64(8 * (at % 8))
    fits = np.flatnonzero(_hashed(words) % np.uint64(WORKERS_MULTIPLE) == shard)
    return [f"{shard:03d}.{k:07d}" for k in fits.tolist()]


def shard_number(name: str) -> int:
    """The number in a shard's name."""
    return int(name.split(".")[0])
