"""Metrics and health over HTTP on 127.0.0.1: /metrics, /healthz (the dataflow's process is alive), /readyz (it can decide)."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app


class Health:
    """What the probes answer."""

    def __init__(self) -> None:
        self.alive = True
        self.ready = False


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: a probe every second is no news."""


class Server(ThreadingMixIn, WSGIServer):
    """A slow reader of the metrics does not keep a probe waiting."""

    daemon_threads = True

    def close(self) -> None:
        """Stops answering and lets go of the port."""
        self.shutdown()
        self.server_close()


class PortTakenError(OSError):
    """The port cannot be listened on; the message says what to do."""


def serve(port: int, registry: CollectorRegistry, health: Health) -> Server:
    """Starts the server on a thread of its own; port 0 takes a free one (`server_port`). Raises PortTakenError."""
    metrics = make_wsgi_app(registry, disable_compression=True)

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start)
        state = {"/healthz": health.alive, "/readyz": health.alive and health.ready}.get(path)
        status = "404 Not Found" if state is None else "200 OK" if state else "503 Service Unavailable"
        start(status, [("Content-Type", "text/plain")])
        return [b"not found\n" if state is None else b"ok\n" if state else b"no\n"]

    try:
        server = make_server("127.0.0.1", port, app, server_class=Server, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PortTakenError(f"metrics cannot be served on 127.0.0.1:{port}: {reason}; name another --metrics-port") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
