"""Metrics and health over HTTP: /metrics, /healthz (the dataflow moves, or has nothing to do), /readyz (it can decide)."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

STILL_SECONDS = 300.0
"""A worker that has not asked for more for so long stands still. A broker that is away holds it up for as long as its messages
wait to be delivered (two minutes), after which it ends by itself and says why."""


class Health:
    """What the probes answer. failed: the dataflow has ended; clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failed = self.ready = False
        self._clock, self._moved_at = clock, float("inf")

    def moved(self) -> None:
        """The source was asked for more. Before the first time, while a state is rebuilt say, nobody stands still."""
        self._moved_at = self._clock()

    @property
    def alive(self) -> bool:
        """Whether the dataflow moves, or has nothing to do."""
        return not self.failed and self._clock() - self._moved_at < STILL_SECONDS


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a probe every second is no news."""


class Server(ThreadingMixIn, WSGIServer):
    """A slow reader of the metrics does not keep a probe waiting."""

    daemon_threads = True

    def server_bind(self) -> None:
        """As WSGIServer does it, but nobody is asked for the host's name: that takes seconds where nobody knows."""
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()

    def close(self) -> None:
        """Stops answering and lets go of the port."""
        self.shutdown()
        self.server_close()


class PortTakenError(OSError):
    """The port cannot be listened on; the message says what to do."""


def serve(host: str, port: int, registry: CollectorRegistry, health: Health) -> Server:
    """Starts the server of a worker on a thread of its own; port 0 takes a free one (`server_port`). Raises PortTakenError."""
    metrics = make_wsgi_app(registry, disable_compression=True)
    states = states_of(lambda: health.alive, lambda: health.alive and health.ready)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        return (metrics if environ["PATH_INFO"] == "/metrics" else states)(environ, start)

    try:
        server = made(host, port, app)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PortTakenError(f"metrics cannot be served on {at(host, port)}: {reason}; name another --metrics-port") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def made(host: str, port: int, app: Callable[..., Iterable[bytes]]) -> Server:
    """A server that says nothing of each request; host: an address. Raises OSError, and OverflowError for a port that there is
    not."""
    kind = type("Server6", (Server,), {"address_family": socket.AF_INET6}) if ":" in host else Server
    return make_server(host, port, app, server_class=kind, handler_class=_Quiet)


def at(host: str, port: int) -> str:
    """An address and a port as a URL has them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own(host: str) -> str:
    """The address at which this machine reaches what listens on `host`, which may stand for all of its addresses."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def states_of(alive: Callable[[], bool], ready: Callable[[], bool]) -> Callable[..., Iterable[bytes]]:
    """What answers /healthz and /readyz: 200, or 503."""

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        ask = {"/healthz": alive, "/readyz": ready}.get(environ["PATH_INFO"])
        if ask is None:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"not found\n"]
        said = ask()
        start("200 OK" if said else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if said else b"no\n"]

    return app
