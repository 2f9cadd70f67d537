"""The keyed hash by Python's own library, one value at a time: the definition."""

import hmac


def keyed_hash(key: bytes, value: bytes | None) -> str | None:
    """The first 128 bits of HMAC-SHA-256 (RFC 2104) as 32 hexadecimal digits; null for null."""
    return None if value is None else hmac.new(key, value, "sha256").hexdigest()[:32]
