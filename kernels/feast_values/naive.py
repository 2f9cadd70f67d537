"""The messages in plain Python: the definition. docs: protobuf.dev/programming-guides/encoding"""

import math
import struct

NUMBERS = (3, 4, 7, 8)
DOUBLE, FLOAT, NULL = 5, 6, 19


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it. Raises IndexError where the data ends within it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def signed(value: int) -> int:
    """A 64-bit number in two's complement."""
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def number(message: bytes) -> float:
    """The number in a feast.types.Value, NaN for null and for none. Raises ValueError for what is no number."""
    found, at = math.nan, 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag & 7 == 0 and tag >> 3 in (*NUMBERS, NULL):
            value, at = varint(message, at)
            found = math.nan if tag >> 3 == NULL else float(signed(value))
        elif tag == DOUBLE << 3 | 1:
            (found,) = struct.unpack_from("<d", message, at)
            at += 8
        elif tag == FLOAT << 3 | 5:
            (found,) = struct.unpack_from("<f", message, at)
            at += 4
        else:
            raise ValueError(f"expected a number, got field {tag >> 3}")
    return found


def microseconds(message: bytes) -> int:
    """The time in a google.protobuf.Timestamp, in microseconds. Raises ValueError for another message."""
    parts, at = {1: 0, 2: 0}, 0
    while at < len(message):
        tag, at = varint(message, at)
        if tag not in (8, 16):
            raise ValueError(f"expected a time, got field {tag >> 3}")
        value, at = varint(message, at)
        parts[tag >> 3] = signed(value)
    return parts[1] * 1_000_000 + (parts[2] + 500) // 1000
