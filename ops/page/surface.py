"""What the page's process answers: `/` the page, `/events` its figures as they come (server-sent events), `/snapshot` once."""

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ops.page.collect import Collector

PAGE = Path(__file__).with_name("page.html")
NAMES = ("localhost", "127.0.0.1", "[::1]")
MOST, QUIET_SECONDS, SNAPSHOT_SECONDS = 16, 1.0, 15.0
OF_THE_PAGE = ("same-origin", "none")
TEXT = "text/plain; charset=utf-8"
HEADERS = [
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]


def surface(collector: Collector, port: int, most: int = MOST) -> Callable[..., Iterable[bytes]]:
    """The WSGI application of the page. most: who may be told figures at once; others hear 503.

    Names other than this machine's own are refused, or a page of somebody else's could have its name lead here and read along.
    """
    page = PAGE.read_bytes()
    always = [("Content-Security-Policy", policy(page.decode())), *HEADERS]
    hosts = {f"{name}:{port}" for name in NAMES} | ({*NAMES} if port == 80 else set())
    free = threading.BoundedSemaphore(most)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        def said(status: str, body: bytes, kind: str = TEXT, *more: tuple[str, str]) -> Iterable[bytes]:
            start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *more, *always])
            return [body]

        path = environ["PATH_INFO"]
        if environ.get("HTTP_HOST", "").lower() not in hosts:
            return said("403 Forbidden", b"expected a Host of this machine, with the page's port\n")
        if environ["REQUEST_METHOD"] != "GET":
            return said("405 Method Not Allowed", b"expected GET\n", TEXT, ("Allow", "GET"))
        if path == "/":
            return said("200 OK", page, "text/html; charset=utf-8")
        if path not in ("/events", "/snapshot"):
            return said("404 Not Found", b"not found\n")
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in OF_THE_PAGE:
            return said("403 Forbidden", b"expected to be asked by the page itself\n")
        if not free.acquire(blocking=False):
            full = f"{most} are looking already\n".encode()
            return said("503 Service Unavailable", full, TEXT, ("Retry-After", "5"))
        if path == "/events":
            start("200 OK", [("Content-Type", "text/event-stream; charset=utf-8"), *always])
            return _stream(collector, free.release)
        try:
            found = _once(collector)
        finally:
            free.release()
        if found is None:
            return said("503 Service Unavailable", b"nothing was seen in time\n")
        return said("200 OK", found, "application/json")

    return answer


def policy(page: str) -> str:
    """What the page may do: its own style and script, by their digests, and ask where it came from."""
    style, script = (_digest(page, tag) for tag in ("style", "script"))
    own = f"style-src '{style}'; script-src '{script}'; connect-src 'self'"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _digest(page: str, tag: str) -> str:
    inside = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}"


def _stream(collector: Collector, release: Callable[[], None]) -> Iterator[bytes]:
    """Every snapshot from now on. A line now and then where there is none finds out that nobody listens any more."""
    try:
        with collector.wanted():
            yield b"retry: 2000\n\n"
            number = drift = 0
            while True:
                found = collector.after(number, QUIET_SECONDS)
                if found is None:
                    yield b": nothing new\n\n"
                    continue
                known, number, drift = found.drift == drift, found.number, found.drift
                yield b"data: " + (found.brief if known else found.whole) + b"\n\n"
    finally:
        release()


def _once(collector: Collector) -> bytes | None:
    """A snapshot with rates, as soon as there is one, or the best there is after a while."""
    best: bytes | None = None
    number, deadline = 0, time.monotonic() + SNAPSHOT_SECONDS
    with collector.wanted():
        while (found := collector.after(number, deadline - time.monotonic())) is not None:
            number, best = found.number, found.whole
            if found.settled:
                break
    return best
