"""Real messages, changed at random: bits turned, bytes cut, doubled, joined with others, values swapped for odd ones."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**53, 2**63, -(2**64), 10**400, 0.1, -0.0, 1e308, "", "\x00", "é" * 700,
    "\ud83d\ude00", "NaN", "2024-02-30T00:00:00Z",
    "2024-01-01T00:00:60Z", [], [[]], {}, {"card": {}}, "refund", "9" * 1025,
)  # fmt: skip
RAW = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"0x1",
    b"01",
    b"1.",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"[" * 2000,
    b"nul",
    b"-",
    b"'",
)


def _turned(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    out = bytearray(value)
    for _ in range(rng.choice((1, 1, 2, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def _cut(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    a, b = sorted(rng.randrange(len(value) + 1) for _ in range(2))
    return rng.choice((value[:a], value[b:], value[:a] + value[b:], value[a:b]))


def _joined(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    other = rng.choice(others)
    return value[: rng.randrange(len(value) + 1)] + other[rng.randrange(len(other)) :]


def _inserted(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    at = rng.randrange(len(value) + 1)
    return value[:at] + rng.choice((*RAW, rng.randbytes(rng.randrange(1, 40)), value[:at])) + value[at:]


def _noise(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    return rng.choice((b"", rng.randbytes(rng.randrange(200)), value * rng.randrange(2, 50), bytes(len(value))))


def _valued(value: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Another value, name or order in JSON; of other formats what `_turned` does."""
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        return _turned(value, others, rng)
    if not isinstance(event, dict) or not event:
        return _turned(value, others, rng)
    name = rng.choice(sorted(event))
    if rng.random() < 0.2:
        del event[name]
    elif rng.random() < 0.2:
        event[name + rng.choice(("", " ", "\x00", "é"))] = event.pop(name)
    else:
        event[name] = rng.choice(ODD)
    items = list(event.items())
    rng.shuffle(items)
    return json.dumps(dict(items), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


CHANGES: tuple[Callable[[bytes, Sequence[bytes], random.Random], bytes], ...] = (
    _turned,
    _cut,
    _joined,
    _inserted,
    _noise,
    _valued,
    _valued,
)


def fuzzed(values: Sequence[bytes], n: int, seed: int) -> list[bytes | None]:
    """n messages, each made of one of `values` by one change or several, one in a hundred without a value; always the same."""
    rng = random.Random(seed)
    made: list[bytes | None] = []
    for _ in range(n):
        value = rng.choice(values)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            value = rng.choice(CHANGES)(value, values, rng) if value else value
        made.append(value if rng.random() > 0.01 else None)
    return made
