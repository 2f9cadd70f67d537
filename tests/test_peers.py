"""Our own peers do what they say: relay and loop here, those with a venv of their own where it is made."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from small_models import decided, linear

from bench.peers import PEERS, known
from bench.peers.flights_stored import FEATURES, KEYS
from bench.peers.venvs import ROOT, missing, names
from bench.systems import fill
from models.flights_history import REPO, write_sources
from ops.broker import Broker
from ops.feast_repo import prepare
from ops.topics import create
from streams.flights import flights

Messages = list[tuple[bytes | None, bytes]]
RNG = np.random.default_rng(7)
POINTS = RNG.random((300, 8)).round(6)
WEIGHTS = RNG.normal(size=(8, 3)).round(3)


@contextmanager
def running(name: str, **places: str) -> Iterator[subprocess.Popen[bytes]]:
    """A peer as the harness starts it; at the end it must leave when asked to."""
    command = fill(PEERS[name].command, {"python": sys.executable, "linger": "1", "passes": "", **places})
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) in (0, -signal.SIGTERM)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def exchange(
    broker: Broker, name: str, topic: Callable[[str], str], sent: Messages, due: int, partitions: int = 2, **places: str
) -> Messages:
    """What a peer writes to messages sent half before and half after it starts, in the order of the one output partition."""
    source, target = topic("in"), topic("out")
    create(broker.address, [source], partitions, {})
    create(broker.address, [target], 1, {})
    half = len(sent) // 2
    send(broker, source, sent[:half])
    with running(name, brokers=broker.address, input=source, output=target, **places) as process:
        send(broker, source, sent[half:])
        return receive(broker, target, due, process)


def send(broker: Broker, topic: str, messages: Messages) -> None:
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": broker.address, "linger.ms": 5})
    for key, value in messages:
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0


def receive(broker: Broker, topic: str, due: int, process: subprocess.Popen[bytes], wait: float = 120) -> Messages:
    """Everything in a topic, from when `due` messages are there or the time is up until half a second brings no more."""
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "test", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    got: Messages = []
    deadline = time.monotonic() + wait
    while True:
        fresh = [message for message in consumer.consume(10_000, 0.5) if message.error() is None]
        got += [(message.key(), message.value()) for message in fresh]
        assert process.poll() is None, f"the peer ended with {process.returncode} after {len(got)} messages"
        if not fresh and (len(got) >= due or time.monotonic() > deadline):
            consumer.close()
            return got


def crayfish(rows: np.ndarray) -> Messages:
    texts = ["".join(f"{value}," for value in row) for row in rows.tolist()]
    made = [
        {"creationTimestamp": k, "dataPointSz1": 1, "dataPointSz2": 8, "dataPoint": text, "prediction": None}
        for k, text in enumerate(texts)
    ]
    return [(str(k).encode(), orjson.dumps(each)) for k, each in enumerate(made)]


def vectors(rows: np.ndarray) -> Messages:
    return [(str(k).encode(), orjson.dumps({"id": k, "x": row})) for k, row in enumerate(rows.tolist())]


def check_dense(workload: str, sent: Messages, got: Messages) -> None:
    """One answer to each message with its key, echoed where it is to be, and right."""
    assert len(got) == len(sent)
    expected = POINTS @ WEIGHTS
    by_key = {key: orjson.loads(value) for key, value in got}
    for k, (key, value) in enumerate(sent):
        answer = by_key[key]
        if workload == "crayfish":
            assert answer["prediction"].endswith(",")
            scores = [float(number) for number in answer["prediction"][:-1].split(",")]
            assert {**answer, "prediction": None} == orjson.loads(value)
        elif workload == "crayfish_short":
            assert answer.keys() == {"creationTimestamp", "scores"}
            assert answer["creationTimestamp"] == k
            scores = answer["scores"]
        else:
            assert answer.keys() == {"id", "score"}
            assert answer["id"] == k
            scores = [answer["score"]]
        np.testing.assert_allclose(scores, expected[k][: len(scores)], atol=1e-5)


def dense(workload: str, folder: Path) -> tuple[Messages, dict[str, str]]:
    """Messages of a workload with eight inputs, and the placeholders of its model."""
    sent = vectors(POINTS) if workload == "vector" else crayfish(POINTS)
    linear(folder / "model.onnx", WEIGHTS[:, :1] if workload == "vector" else WEIGHTS)
    return sent, {"workload": workload, "model": str(folder), "width": "8", "home": str(folder)}


def test_the_relay_passes_on_what_contains_the_text_and_nothing_else(
    embedded_broker: Broker, name: Callable[[str], str]
) -> None:
    sent: Messages = [
        (None if k % 7 == 0 else b"k%d" % k, b'{"n":%d,"kind":"%s"}' % (k, b"ab"[k % 2 : k % 2 + 1])) for k in range(400)
    ]
    some = exchange(embedded_broker, "relay", name, sent, 200, passes='"kind":"a"')
    assert sorted(some, key=str) == sorted((each for each in sent if b'"a"' in each[1]), key=str)


def test_the_relay_passes_on_everything_where_no_text_is_given(embedded_broker: Broker, name: Callable[[str], str]) -> None:
    sent: Messages = [(b"k", b"%d" % k) for k in range(100)]
    assert exchange(embedded_broker, "relay", name, sent, 100) == sent


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["crayfish", "crayfish_short", "vector"])
def test_the_loop_answers_every_message_once_and_right(
    embedded_broker: Broker, name: Callable[[str], str], tmp_path: Path, workload: str
) -> None:
    sent, places = dense(workload, tmp_path)
    check_dense(workload, sent, exchange(embedded_broker, "loop", name, sent, len(sent), **places))


@pytest.mark.parametrize(
    ("peer", "workload", "said"),
    [
        ("looop", "vector", "expected NAME=COMMAND, or one of"),
        ("loop", "flights", "expected the workload crayfish"),
        ("quix-flights", "vector", "got vector"),
    ],
)
def test_a_peer_that_is_not_known_or_does_not_do_the_workload_is_refused(peer: str, workload: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        known(peer, workload)


def test_a_peer_without_its_venv_says_how_to_make_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.peers.venvs.ROOT", tmp_path)
    for peer in names():
        assert f"is not made: python -m bench.peers.venvs {peer}" in missing(peer)
    made = tmp_path / ".peers" / "quix" / "made.txt"
    made.parent.mkdir(parents=True)
    made.write_text("quixstreams==1.0\n")
    assert "was made from other requirements" in missing("quix")


def in_venv(name: str) -> None:
    """Skips, and loudly, where a peer's venv is not made."""
    if why := missing(name):
        pytest.skip(f"NOT TESTED: {why}")


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["crayfish", "crayfish_short", "vector"])
def test_quix_answers_every_message_once_and_right(
    apache_kafka: Broker, name: Callable[[str], str], tmp_path: Path, workload: str
) -> None:
    in_venv("quix")
    sent, places = dense(workload, tmp_path)
    check_dense(workload, sent, exchange(apache_kafka, "quix", name, sent, len(sent), **places))


@pytest.fixture(scope="module")
def october(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Messages, dict[int, dict[str, Any]]]:
    """A folder with a model, three days of events, and what headrace decides on them with all its features, by event."""
    prepare(REPO, lambda doing: None, write_sources, flights.model.until)
    folder = Path(tmp_path_factory.mktemp("october"))
    stored = [f"{view}_history__{name}" for view in KEYS for name in FEATURES]
    sent, ours = decided(folder, flights.features, stored)
    return folder, list(sent), {decision["event_id"]: decision for decision in ours}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("peer", "partitions"), [("quix-flights", 1), ("quix-flights", 2), ("bytewax-feast", 1), ("bytewax-feast", 2)]
)
def test_flights_are_decided_as_headrace_decides_them(
    apache_kafka: Broker, name: Callable[[str], str], tmp_path: Path, october: Any, peer: str, partitions: int
) -> None:
    """With one partition the same; with two each flight once, on windows that depend on how the partitions were read."""
    in_venv(peer)
    folder, sent, expected = october
    places = {"model": str(folder / "model"), "repo": str(REPO), "home": str(tmp_path)}
    got = [orjson.loads(value) for _, value in exchange(apache_kafka, peer, name, sent, len(expected), partitions, **places)]
    assert len(got) == len(expected)
    assert {answer["event_id"] for answer in got} == expected.keys()
    if partitions == 1:
        for answer in got:
            ours = expected[answer["event_id"]]
            assert answer["decision"] == ours["decision"]
            assert answer["score"] == pytest.approx(ours["score"], abs=1e-4)
