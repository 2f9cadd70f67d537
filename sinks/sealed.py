"""The encryption of dead letters whose topic has secrets: AES-256-GCM, bound to the message's position."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE, TAG = 12, 16
OVERHEAD = NONCE + TAG


class SealError(ValueError):
    """Bytes were not sealed with this key, or for another place, or were changed since."""


class Seal:
    """Seals and opens bytes with one key of 32 bytes. What is sealed for one place does not open for another."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, plain: bytes, place: str) -> bytes:
        """A random nonce of 12 bytes, then the bytes encrypted, then a tag of 16 bytes."""
        nonce = os.urandom(NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """What was sealed. Raises SealError."""
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], place.encode())
        except (InvalidTag, ValueError):
            raise SealError(f"{place}: expected bytes sealed with this key for this place, got others") from None


def place_of(topic: str, partition: int, offset: int, what: str) -> str:
    """What a message's `value` or `key` is sealed for."""
    return f"{topic}/{partition}@{offset}/{what}"
