"""Messages kept in memory, for tests and for trying a pipeline out without a broker."""

import threading
from collections.abc import Callable

from sinks.messages import DeliveryError, Messages


class MemorySink:
    """A sink (sinks/messages.py) that keeps what it is given. It may be read from other threads while it is written.

    topics: the messages (key, value) of each topic in order. flushes: how often everything was confirmed.
    on_write: called with the messages after each write.
    """

    def __init__(self) -> None:
        self.topics: dict[str, list[tuple[bytes | None, bytes]]] = {}
        self.flushes = 0
        self.closed = False
        self.on_write: Callable[[Messages], None] = lambda messages: None
        self._left: int | None = None
        self._lock = threading.Lock()

    def fail_after(self, messages: int | None) -> None:
        """Every write fails once this many further messages have been kept; None: none fails from here on."""
        with self._lock:
            self._left = messages

    def write(self, messages: Messages) -> None:
        """Keeps messages. Raises DeliveryError where it was told to fail, with those before that point kept."""
        pairs = list(zip(messages.keys, messages.values, strict=True))
        with self._lock:
            kept = pairs if self._left is None else pairs[: self._left]
            self.topics.setdefault(messages.topic, []).extend(kept)
            if self._left is not None:
                self._left -= len(kept)
        if len(kept) < len(pairs):
            raise DeliveryError(messages.topic, len(pairs) - len(kept), "told to fail")
        self.on_write(messages)

    def flush(self) -> None:
        """Counts. Raises DeliveryError where it was told to fail and nothing more is kept."""
        with self._lock:
            if self._left == 0:
                raise DeliveryError("", 0, "told to fail")
            self.flushes += 1

    def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def values(self, topic: str) -> list[bytes]:
        """The values of a topic, in order."""
        with self._lock:
            return [value for _, value in self.topics.get(topic, [])]

    def keys(self, topic: str) -> list[bytes | None]:
        """The keys of a topic, in order."""
        with self._lock:
            return [key for key, _ in self.topics.get(topic, [])]
