"""The health of all workers together, as a kubelet asks for it."""

import socket
import urllib.error
import urllib.request
from contextlib import ExitStack, closing

import pytest
from prometheus_client import CollectorRegistry

from ops.broker import free_port
from ops.probes import answering, ask
from ops.server import Health, PortTakenError, made, serve
from streams.settings import JobSettings


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_job_is_ready_when_all_its_workers_are_and_alive_while_none_stands_still(pair: int) -> None:
    settings = JobSettings(workers=2, metrics_port=pair, health_port=free_port())
    now = [0.0]
    first, second = Health(lambda: now[0]), Health(lambda: now[0])

    def said() -> list[int]:
        return [status(settings.health_port, path) for path in ("/healthz", "/readyz")]

    with answering(settings), ExitStack() as workers:
        assert said() == [200, 503], "they start, or are started again: nobody is to end the job for it"
        for number, health in enumerate((first, second)):
            workers.enter_context(closing(serve("127.0.0.1", pair + number, CollectorRegistry(), health)))
        first.ready = True
        assert said() == [200, 503]
        second.ready = True
        assert said() == [200, 200]
        second.moved()
        now[0] += 1e6
        assert said() == [503, 503]
        assert status(settings.health_port, "/metrics") == 404
    with pytest.raises(urllib.error.URLError):
        status(settings.health_port, "/healthz")


def test_one_that_gives_no_answer_stands_still(pair: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.probes.ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", pair)):
        assert ask("127.0.0.1", pair, "/healthz") is False
    assert ask("127.0.0.1", pair, "/healthz") is None


def test_a_taken_port_and_a_job_without_metrics_are_refused(pair: int) -> None:
    settings = JobSettings(metrics_port=pair, health_port=pair + 1)
    with (
        made("127.0.0.1", pair + 1, lambda environ, start: []),
        pytest.raises(PortTakenError, match=f"^health cannot be served on 127.0.0.1:{pair + 1}: "),
        answering(settings),
    ):
        raise AssertionError
    with (
        pytest.raises(ValueError, match="expected a metrics_port, which workers are asked at, got 0"),
        answering(settings.model_copy(update={"metrics_port": 0})),
    ):
        raise AssertionError


def test_nothing_answers_where_nobody_asked_for_it() -> None:
    with answering(JobSettings()):
        pass
