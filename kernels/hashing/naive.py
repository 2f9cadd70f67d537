"""The hash in plain Python, one value at a time: the definition."""

from collections.abc import Sequence

MASK = (1 << 64) - 1
PRIME = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_bytes(value: bytes | None) -> int:
    """Chains little-endian words of eight bytes, the last one padded with zeros, from the length. Only null is 0."""
    if value is None:
        return 0
    h = mix((len(value) + PRIME) & MASK)
    for at in range(0, len(value), 8):
        h = mix(((h ^ int.from_bytes(value[at : at + 8], "little")) + PRIME) & MASK)
    return h or 1


def hash_integer(value: int | None) -> int:
    """As hash_bytes, of the eight bytes of a signed 64-bit integer."""
    return 0 if value is None else hash_bytes(value.to_bytes(8, "little", signed=True))


def combine(parts: Sequence[int]) -> int:
    """The hash of an entity of several columns; null (0) if any part is null."""
    if any(part == 0 for part in parts):
        return 0
    h = parts[0]
    for part in parts[1:]:
        h = mix(((h ^ part) + PRIME) & MASK)
    return h or 1
