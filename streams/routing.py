"""Names for partitions and shards that Bytewax puts on the same worker, whatever their number.

Bytewax deals sources and sinks round-robin by sorted name, and sends a key of a stateful step to worker
SipHash-1-3(key) % workers. A name "{p:03d}.{k}" sorts as p, and k is searched so that its hash is p modulo 840, which every
number of workers to 8 divides; so source, state and sink of one name meet on worker p % workers. With other numbers of workers
(9, 11, ...) the flow is as right and only sends more between processes.
"""

from functools import cache

WORKERS_MULTIPLE = 840
MASK = (1 << 64) - 1


def siphash13(data: bytes) -> int:
    """SipHash-1-3 with a zero key (Aumasson, Bernstein: SipHash, 2012), as Rust's standard hasher computes it."""
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573

    def rotate(x: int, by: int) -> int:
        return ((x << by) | (x >> (64 - by))) & MASK

    def compress(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
        v0 = (v0 + v1) & MASK
        v1 = rotate(v1, 13) ^ v0
        v0 = rotate(v0, 32)
        v2 = (v2 + v3) & MASK
        v3 = rotate(v3, 16) ^ v2
        v0 = (v0 + v3) & MASK
        v3 = rotate(v3, 21) ^ v0
        v2 = (v2 + v1) & MASK
        v1 = rotate(v1, 17) ^ v2
        v2 = rotate(v2, 32)
        return v0, v1, v2, v3

    padded = data + b"\0" * (7 - len(data) % 8) + bytes([len(data) & 0xFF])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v3 ^= word
        v0, v1, v2, v3 = compress(v0, v1, v2, v3)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = compress(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


@cache
def shard_name(shard: int) -> str:
    """The name of partition or shard 0 to 839. Raises ValueError beyond."""
    if not 0 <= shard < WORKERS_MULTIPLE:
        raise ValueError(f"expected a shard or partition from 0 to {WORKERS_MULTIPLE - 1}, got {shard}")
    k = 0
    while siphash13(f"{shard:03d}.{k}".encode() + b"\xff") % WORKERS_MULTIPLE != shard:
        k += 1
    return f"{shard:03d}.{k}"


def shard_number(name: str) -> int:
    """The number in a shard's name."""
    return int(name.split(".")[0])
