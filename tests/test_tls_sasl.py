"""TLS and SASL: an event becomes a decision over SASL_SSL on Apache Kafka; a wrong password or authority is said, soon."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cards import Search, bytes_under, cards, secret_payments
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from payments import CHAMPION, settings
from prometheus_client import CollectorRegistry, generate_latest
from secured import MECHANISMS, PASSWORD, Secured, secured
from test_secret import leaks, messages

from ops.broker import find_apache
from ops.cli import run_command
from ops.errors import explain
from ops.topics import BrokerMissingError, counts, create, require
from streams.door import Trouble
from streams.lookup import SecretError, client_options
from streams.pipeline import Decisions
from streams.positions import committed
from streams.run import run
from streams.source import SourceError, topic_partitions


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    home = find_apache()
    if home is None:
        pytest.skip("NO APACHE KAFKA: set KAFKA_HOME to a Kafka 4 download (and have Java 17): TLS and SASL are NOT proven")
    with secured(home, Path(tmp_path_factory.mktemp("secured"))) as broker:
        yield broker


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_an_event_becomes_a_decision_over_tls_and_sasl(
    kafka: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mechanism: str
) -> None:
    """Source, sink, positions, topics. The card is secret, half of the messages are broken: none is found in what it wrote."""
    monkeypatch.setenv("CARD_KEY", "0f" * 16)
    monkeypatch.setenv("LETTER_KEY", "a1" * 32)
    like, numbers = secret_payments(), cards()
    topic, verdicts = f"pay-{mechanism}", f"verdicts-{mechanism}"
    pipeline = replace(like, events=replace(like.events, topic=topic), sinks=[Decisions(verdicts)])
    options, keys = kafka.options(mechanism), {"secret_key": "env:CARD_KEY", "dead_letter_key": "env:LETTER_KEY"}
    job = settings(tmp_path, brokers=kafka.address, kafka=options, recovery=True, **keys)
    create(kafka.address, pipeline.topics(), 1, job.client)
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": kafka.open.address})
    for key, value in messages(numbers):
        producer.produce(topic, value, key)
    assert producer.flush(20) == 0
    require(kafka.address, pipeline.topics(), job.client, "payments")
    registry = CollectorRegistry()
    run(pipeline, job, registry=registry, champion=replace(CHAMPION, digest="d1"), until_end=True)
    after = counts(kafka.address, pipeline.topics(), job.client)
    sent, decided, dead = (sum(after[name] or ()) for name in (topic, verdicts, pipeline.events.dead))
    assert decided + dead == sent == 2 * len(numbers)
    assert set(committed(kafka.address, job.client, pipeline.group, topic, 1)) <= {0}
    said = capfd.readouterr()
    found = bytes_under(tmp_path) | {"page": generate_latest(registry), "out": (said.out + said.err + repr(job)).encode()}
    found |= {name: _all(kafka, name, count) for name, count in ((verdicts, decided), (pipeline.events.dead, dead))}
    assert leaks(Search(numbers), found) == {}
    assert not any(PASSWORD.encode() in data for data in found.values())


def _all(kafka: Secured, topic: str, count: int) -> bytes:
    """Keys and values of a topic, which has so many messages."""
    consumer = Consumer({"bootstrap.servers": kafka.open.address, "group.id": "test"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    read: list[Message] = []
    while len(read) < count:
        read += consumer.consume(10_000, 1)
    consumer.close()
    return b"\n".join(part for message in read for part in (message.key(), message.value()) if part)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("password", "SASL authentication error: Authentication failed during authentication due to invalid credentials"),
        ("authority", "SSL handshake failed.*certificate verify failed"),
        ("plain", "no Kafka broker answers at"),
    ],
)
def test_who_is_not_let_in_is_told_so_soon(
    kafka: Secured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    expected: str,
) -> None:
    monkeypatch.setenv("WRONG", "hunter2-wrong")
    options = {
        "password": kafka.options(password="env:WRONG"),
        "authority": kafka.options(ca=kafka.other),
        "plain": dict[str, str](),
    }[wrong]
    config = client_options(options)
    began = time.monotonic()
    with pytest.raises(SourceError, match=expected) as caught:
        topic_partitions("pay", kafka.address, config)
    with pytest.raises(BrokerMissingError, match=expected):
        require(kafka.address, ["pay"], config, "payments")
    assert time.monotonic() - began < 25
    assert "hunter2" not in explain(caught.value)
    monkeypatch.setenv("HEADRACE_KAFKA", json.dumps(options))
    assert run_command(["topics", "flights", "--brokers", kafka.address]) == 1
    told = capsys.readouterr().err
    assert told.startswith("headrace: ")
    assert told.count("\n") == 1
    assert "hunter2" not in told


def test_a_secret_option_in_clear_is_refused_and_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = settings(tmp_path, kafka={"sasl.password": "hunter2"})
    with pytest.raises(SecretError, match=r"^setting kafka: sasl.password: expected file:PATH or env:NAME") as caught:
        _ = job.client
    assert "hunter2" not in str(caught.value)
    (tmp_path / "password").write_text("of-the-file\n")
    monkeypatch.setenv("USER_NAME", "alice")
    said = {"sasl.password": f"file:{tmp_path / 'password'}", "sasl.username": "env:USER_NAME", "linger.ms": "3"}
    assert settings(tmp_path, kafka=said).client == {"sasl.password": "of-the-file", "sasl.username": "alice", "linger.ms": "3"}


def test_a_wrong_option_is_said_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA", '{"sasl.mechanizm": "PLAIN"}')
    assert run_command(["topics", "flights"]) == 1
    assert 'No such configuration property: "sasl.mechanizm"' in capsys.readouterr().err


def test_a_refusal_counts_from_the_first_in_a_row() -> None:
    now = [0.0]
    trouble = Trouble(lambda: now[0])
    refusal, other = KafkaError(KafkaError._AUTHENTICATION), KafkaError(KafkaError._TRANSPORT)
    for now[0], error, seconds in (
        (0, other, 0),
        (5, refusal, 0),
        (15, refusal, 10),
        (16, other, 10),
        (50, refusal, 0),
        (85, refusal, 0),
    ):
        trouble(error)
        assert trouble.refused_seconds == seconds


def test_every_client_gets_its_settings_looked_up() -> None:
    """`settings.kafka` says where secrets are; what a client takes is `settings.client`."""
    here = Path(__file__).parent.parent
    files = [path for room in ("streams", "sinks", "ops", "features", "models") for path in (here / room).rglob("*.py")]
    assert [str(path) for path in files if "settings.kafka" in path.read_text()] == []
