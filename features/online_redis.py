"""Rows from Redis, as Feast's Redis online store writes them: one hash an entity, a field for each feature and for their time.

Feast's own read of 10 features takes some 30 µs an entity, nearly all of it in Python objects. Here commands are joined from
bytes, and a kernel parses the answers as they come from the socket.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.rows import Fetched, Read
from features.views import View
from kernels.feast_values.cpu import NONE, READ, WRONG, replies

COMMANDS = 256
ANSWER_SECONDS = 5.0
BUFFER = 1 << 16


def redis_reader(store: Any) -> Read | None:
    """A reader, if the FeatureStore's online store is Redis, of one server or behind Sentinel; None for any other.

    It raises what the client raises, and ConnectionError for an answer that is none, or none in ANSWER_SECONDS.
    """
    config = store.config.online_store
    if getattr(config, "type", "") != "redis" or config.redis_type.value == "redis_cluster":
        return None
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    online = store.provider.online_store
    project = store.config.project.encode()
    heads: dict[str, tuple[bytes, bytes]] = {}
    once = {"socket_connect_timeout": ANSWER_SECONDS, "retry": Retry(NoBackoff(), 0)}  # who asks tries again, and sooner
    # Compiled now, though the store may be down.
    replies(np.empty(0, np.uint8), 0, 0, 0, np.empty((1, 0), np.float32), np.empty(0, np.int64))

    def command(view: View) -> tuple[bytes, bytes]:
        """What comes before and after the key in the command for an entity of the view."""
        if view.name not in heads:
            from feast.infra.online_stores.redis import _versioned_fv_name

            name = _versioned_fv_name(view.table, store.config)
            _, fields = online._generate_hset_keys_for_features(view.table, list(view.features), fv_name_override=name)
            parts = [field if isinstance(field, bytes) else field.encode() for field in fields]
            heads[view.name] = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(parts)), b"".join(map(_bulk, parts))
        return heads[view.name]

    def read(view: View, keys: Sequence[bytes]) -> Fetched:
        head, tail = command(view)
        values = np.full((len(view.features), len(keys)), np.nan, np.float32)
        times = np.full(len(keys), NONE, np.int64)
        pool = online._get_client(config).connection_pool
        pool.connection_kwargs.update(once)
        connection = pool.get_connection()
        try:
            for start in range(0, len(keys), COMMANDS):
                some = keys[start : start + COMMANDS]
                connection.send_packed_command([b"".join([head + _bulk(key + project) + tail for key in some])])
                end = start + len(some)
                part = np.empty((len(values), len(some)), np.float32)
                _receive(connection._sock, part, times[start:end])
                values[:, start:end] = part
        except BaseException:
            connection.disconnect()  # what may still come is nobody's
            raise
        finally:
            pool.release(connection)
        return Fetched(values, times)

    return read


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _receive(sock: Any, values: Any, times: Any) -> None:
    """Takes the answers of all rows from the socket."""
    sock.settimeout(ANSWER_SECONDS)
    buffer = np.empty(BUFFER, np.uint8)
    at = end = row = 0
    while True:
        if end == len(buffer):
            rest = buffer[at:end]
            buffer = np.empty(max(BUFFER, 2 * len(rest)), np.uint8)
            buffer[: len(rest)] = rest
            at, end = 0, len(rest)
        got = sock.recv_into(buffer[end:].data)
        if got == 0:
            raise ConnectionError("Redis closed the connection")
        end += got
        at, row, state = replies(buffer, at, end, row, values, times)
        if state == READ:
            return
        if state == WRONG:
            said = bytes(buffer[at : min(end, at + 80)])
            raise ConnectionError(f"Redis: expected {len(values) + 1} fields of a row, got {said!r}")
