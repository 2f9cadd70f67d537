"""What stops all pods of a release before an upgrade, with an API server that is played."""

import email.message
import urllib.error
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from ops.deploy.stop import NotStoppedError, scaled_down


class Server:
    """Answers in turn: what is raised, or a StatefulSet's pods, before and after its controller has looked."""

    def __init__(self, *answers: int | Exception) -> None:
        self._answers: Iterator[int | Exception] = iter(answers)
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        self.asked.append((method, path, body))
        if method == "PATCH" and path == "/scale":
            return {}
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        looked = 2 if answer >= 0 else 1
        return {"metadata": {"generation": 2}, "status": {"observedGeneration": looked, "replicas": max(0, answer)}}


def refused(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("https://there", code, "so it is", email.message.Message(), None)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ops.deploy.stop.LOOK_SECONDS", 0.001)


def test_it_is_scaled_to_nothing_and_waited_for() -> None:
    server = Server(-1, 3, 1, 0)
    assert scaled_down(server, "job", 10)
    assert server.asked == [("PATCH", "/scale", {"spec": {"replicas": 0}}), *[("GET", "", None)] * 4]


def test_an_api_server_that_does_not_answer_is_asked_again() -> None:
    assert scaled_down(Server(refused(503), refused(429), TimeoutError("slow"), 2, 0), "job", 10)


def test_there_may_be_none() -> None:
    assert not scaled_down(Server(refused(404)), "job", 10)


@pytest.mark.parametrize(
    ("server", "says"),
    [
        (Server(*[2] * 100_000), "job: 2 pods are still there after 0 s"),
        (Server(refused(403)), "job: the API server refuses to scale it: 403 so it is"),
        (Server(*[TimeoutError("slow")] * 100_000), "job: the API server does not answer: slow"),
    ],
)
def test_what_is_in_the_way_is_told(server: Server, says: str) -> None:
    with pytest.raises(NotStoppedError, match=says):
        scaled_down(server, "job", 0.05)
