"""The first question to a broker, and why there is no answer: nobody listens, or it lets us not in."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException

REFUSALS = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED)
TRY_SECONDS, QUIET_SECONDS = 1.0, 30.0


class NoAnswerError(ConnectionError):
    """The broker does not answer or lets us not in; the message says which, why, and what to do."""


class Trouble:
    """Hears what a client says of its brokers: the last of it, and that one of them refuses us, and for how long already.

    A broker that is just leaving looks as if it refused, too. A refusal is over when none is heard for QUIET_SECONDS.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.said, self.refused = "", ""
        self._clock, self._first, self._last = clock, 0.0, -QUIET_SECONDS

    def __call__(self, error: KafkaError) -> None:
        self.said = error.str()
        if error.code() not in REFUSALS:
            return
        now = self._clock()
        if now - self._last >= QUIET_SECONDS:
            self._first, self.refused = now, self.said
        self._last = now

    @property
    def refused_seconds(self) -> float:
        """From the first to the last refusal in a row."""
        return self._last - self._first if self.refused else 0.0


def topics_at(make: Callable[[Any], Any], config: Mapping[str, Any], timeout: float) -> tuple[Any, Mapping[str, Any]]:
    """A client that `make` makes of the configuration, and the topics that the broker tells it of, by name.

    Raises NoAnswerError: at once where the broker refuses us (password, certificate), else after `timeout` seconds.
    """
    trouble, brokers = Trouble(), config["bootstrap.servers"]
    try:
        client = make({**config, "error_cb": trouble})
    except (KafkaException, ValueError, TypeError) as error:
        told = error.args[0]
        raise NoAnswerError(f"setting kafka: {told.str() if isinstance(told, KafkaError) else told}") from None
    deadline = time.monotonic() + timeout
    while True:
        try:
            return client, client.list_topics(timeout=min(TRY_SECONDS, timeout)).topics
        except KafkaException as error:
            client.poll(0)
            if trouble.refused:
                raise NoAnswerError(
                    f"the broker at {brokers} refuses us: {trouble.refused}: check security.protocol, sasl.* and ssl.* "
                    "of kafka in headrace.toml (docs/security.md)"
                ) from None
            if time.monotonic() > deadline:
                reason = trouble.said or error.args[0].str()
                raise NoAnswerError(
                    f"no Kafka broker answers at {brokers} ({reason}): start one, or name it with --brokers"
                ) from None
