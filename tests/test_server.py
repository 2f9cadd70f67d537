"""Metrics and health: what a scraper and a probe get, before the job is ready, while it runs and after it failed."""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client import CollectorRegistry, Counter

from ops.server import STILL_SECONDS, Health, PortTakenError, Server, at, serve


@pytest.fixture
def served() -> Iterator[tuple[Server, CollectorRegistry, Health]]:
    registry, health = CollectorRegistry(), Health()
    server = serve("127.0.0.1", 0, registry, health)
    yield server, registry, health
    server.close()


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_those_of_the_registry_that_was_passed_in(served: tuple[Server, CollectorRegistry, Health]) -> None:
    server, registry, _ = served
    rows = Counter("headrace_rows", "Rows", ["stage"], registry=registry)
    rows.labels("sink").inc(41)
    rows.labels("sink").inc()
    status, page = get(server, "/metrics")
    assert status == 200
    assert 'headrace_rows_total{stage="sink"} 42.0' in page.splitlines()
    assert "python_info" not in page


def test_alive_from_the_start_ready_when_it_can_decide_neither_once_it_failed(
    served: tuple[Server, CollectorRegistry, Health],
) -> None:
    server, _, health = served
    assert [get(server, path)[0] for path in ("/healthz", "/readyz")] == [200, 503]
    health.ready = True
    assert [get(server, path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
    health.failed = True
    assert [get(server, path)[0] for path in ("/healthz", "/readyz")] == [503, 503]


def test_a_worker_that_asks_for_no_more_stands_still() -> None:
    now = [0.0]
    health = Health(lambda: now[0])
    now[0] = 10_000
    assert health.alive, "it rebuilds its state, say, and has not begun"
    health.moved()
    now[0] += STILL_SECONDS - 1
    assert health.alive
    now[0] += 1
    assert not health.alive
    health.moved()
    assert health.alive


def test_anything_else_is_not_found(served: tuple[Server, CollectorRegistry, Health]) -> None:
    assert get(served[0], "/")[0] == 404


def test_a_slow_reader_keeps_no_probe_waiting(served: tuple[Server, CollectorRegistry, Health]) -> None:
    server = served[0]
    with socket.create_connection(("127.0.0.1", server.server_port)) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert get(server, "/healthz")[0] == 200


def test_only_this_machine_reaches_it(served: tuple[Server, CollectorRegistry, Health]) -> None:
    assert served[0].server_address[0] == "127.0.0.1"


def test_it_is_served_on_the_address_that_it_is_told() -> None:
    for host, url in (("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")):
        with closing(serve(host, 0, CollectorRegistry(), Health())) as server:
            assert at(host, 5) == f"{url}:5"
            with urllib.request.urlopen(f"http://{at(host, server.server_port)}/healthz", timeout=5) as answer:
                assert answer.status == 200
            with pytest.raises(urllib.error.URLError):
                urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/healthz", timeout=5)


def test_a_taken_port_is_said_in_one_line(served: tuple[Server, CollectorRegistry, Health]) -> None:
    port = served[0].server_port
    with pytest.raises(PortTakenError, match=rf"^metrics cannot be served on 127.0.0.1:{port}: .*name another --metrics-port$"):
        serve("127.0.0.1", port, CollectorRegistry(), Health())


def test_the_port_is_free_again_after_close() -> None:
    first = serve("127.0.0.1", 0, CollectorRegistry(), Health())
    first.close()
    serve("127.0.0.1", first.server_port, CollectorRegistry(), Health()).close()
