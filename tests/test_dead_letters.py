"""headrace dead list | export | replay, on a broker: a letter is corrected, sent again, and decided under its old id."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cards import Card, cards, whole
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from payments import CHAMPION, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_dead_replay import broken, paid
from test_rebuild_kafka import fill, written

from ops.broker import Broker
from ops.cli import run_command
from ops.dead import DeadLetterError, editable
from ops.dead_replay import Again, parsed, send
from streams.log import KafkaLog
from streams.pipeline import Decisions, Pipeline
from streams.replays import originals
from streams.run import run
from streams.settings import JobSettings

LETTER = {"topic": "t", "partition": 0, "offset": 1, "code": "c", "reason": "r", "truncated": False, "encrypted": False}
FILE = """
from test_dead_letters import of_topic

pipeline = of_topic({topic!r}, {delivery!r})
"""


def of_topic(topic: str, delivery: str = "at_least_once") -> Pipeline:
    pipeline = payments()
    events = replace(pipeline.events, topic=topic)
    return replace(pipeline, events=events, sinks=[Decisions(f"{topic}-out")], delivery=delivery)


class Desk:
    """A job that runs to the end of its topic whenever it is asked, and the commands beside it."""

    def __init__(self, home: Path, broker: Broker, topic: str, capsys: Any, delivery: str = "at_least_once") -> None:
        self.home, self.broker, self.topic, self._capsys = home, broker, topic, capsys
        self.pipeline = of_topic(topic, delivery)
        self.file = home / "desk.py"
        self.file.write_text(FILE.format(topic=topic, delivery=delivery))

    def run(self) -> dict[str, dict[str, Any]]:
        """Decides what has come; all decisions by id, of which none came twice."""
        values = settings(self.home, brokers=self.broker.address, recovery=True, epoch_seconds=0.05)
        run(self.pipeline, values, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
        found = written(self.broker.address, f"{self.topic}-out")
        made = {decision["decision_id"]: decision for decision in found}
        assert len(made) == len(found)
        return made

    def dead(self, command: str, *more: object, code: int = 0) -> str:
        """What a command says; on stderr, if it is to fail."""
        self._capsys.readouterr()
        told = ["dead", command, str(self.file), *map(str, more), "--brokers", self.broker.address]
        assert run_command(told) == code, self._capsys.readouterr()
        printed = self._capsys.readouterr()
        return str(printed.err if code else printed.out)

    def letters(self, *more: object) -> list[tuple[int, int, str, int]]:
        """Partition, offset, code and how often they came."""
        told = json.loads(self.dead("list", *more, "--json"))
        return [tuple(one[name] for name in ("partition", "offset", "code", "times")) for one in told["letters"]]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_letter_is_corrected_sent_again_and_decided_once_under_its_old_id(
    broker: Broker, tmp_path: Path, name: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    log, other, topic = stream(200), stream(60, seed=1), name("pay")
    bad = paid(log, 100)
    wrong = json.loads(log[bad][1]) | {"amount": "a lot"}
    key = "a\u2028key".encode()  # to some that ends a line
    logs = [[*log[:bad], (key, json.dumps(wrong).encode()), *log[bad + 1 :]], broken(other, 3)]
    fill(broker.address, topic, logs)
    desk = Desk(tmp_path, broker, topic, capsys)
    first = desk.run()
    assert f"payments/{topic}/0/{bad}" not in first
    assert desk.letters() == [(0, bad, "wrong_type", 1), (1, 3, "not_json", 1)]
    assert desk.letters("--code", "not_json") == desk.letters("--partition", 1) == [(1, 3, "not_json", 1)]
    assert desk.letters("--from", "2100-01-01") == desk.letters("--to", "2020-01-01") == []
    shown = desk.dead("list")
    assert f"0@{bad}" in shown
    assert "payments/decode: expected " in shown
    assert "2 dead letters, " in shown

    file = tmp_path / "letters.jsonl"
    desk.dead("export", file, "--code", "wrong_type")
    assert file.stat().st_mode & 0o077 == 0
    line = json.loads(file.read_text())
    assert line["value"] == wrong
    refused = desk.dead("replay", file, code=1)
    assert "none was sent" in refused
    assert "line 1: payments/replay: expected" in refused
    file.write_text(json.dumps(line | {"value": line["value"] | {"amount": 12.0}}))
    assert f"1 sent again to {topic}, to be decided as payments/{topic}/0/{bad}" in desk.dead("replay", file)
    assert desk.letters("--left") == [(1, 3, "not_json", 1)]
    again = desk.dead("replay", file)
    assert "0 sent again" in again
    assert "1 left out: sent before" in again

    second = desk.run()
    assert second.keys() - first.keys() == {f"payments/{topic}/0/{bad}"}
    found = second[f"payments/{topic}/0/{bad}"]
    assert found["event_id"] == bad
    later = tmp_path / "later.jsonl"
    later.write_text(json.dumps(line | {"offset": 201}))
    assert "expected an offset before 201" in desk.dead("replay", later, "--unchecked", code=1)
    assert f"{topic}/0@201 has no dead letter" in desk.dead("replay", later, code=1)
    assert json.loads(desk.dead("replay", file, "--unchecked", "--json"))["sent"] == 1
    values = settings(tmp_path, brokers=broker.address, recovery=True, epoch_seconds=0.05)
    run(desk.pipeline, values, registry=CollectorRegistry(), champion=CHAMPION, until_end=True)
    ids = [decision["decision_id"] for decision in written(broker.address, f"{topic}-out")]
    assert (len(ids), len(set(ids))) == (len(second) + 1, len(second))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_letters_are_sent_as_they_are_once_the_schema_takes_them_and_come_back_if_the_job_does_not(
    apache_kafka: Broker, tmp_path: Path, name: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exactly once. The job that runs is the old one first: what it is sent comes back as a letter of the first position."""
    log, topic = stream(80), name("pay")
    bad = paid(log, 40)
    wrong = json.loads(log[bad][1]) | {"amount": 2e6}
    huge = b'{"kind": "paid", "shop": "' + b"x" * 80_000 + b'"}'
    fill(apache_kafka.address, topic, [[*log[:bad], (b"k", json.dumps(wrong).encode()), *log[bad + 1 :], (None, huge)]])
    desk = Desk(tmp_path, apache_kafka, topic, capsys, "exactly_once")
    first = desk.run()
    told = json.loads(desk.dead("replay", "--as-is", "--json"))
    assert told == {"sent": 0, "before": 0, "failing": {"missing_field": 1, "out_of_range": 1}, "gone": 0}
    taking = desk.file.read_text() + (
        "fields = dict(pipeline.events.schema.fields)\n"
        "from dataclasses import replace\n"
        "fields['amount'] = replace(fields['amount'], high=1e7)\n"
        "schema = replace(pipeline.events.schema, fields=fields)\n"
        "pipeline = replace(pipeline, events=replace(pipeline.events, schema=schema))\n"
    )
    desk.file.write_text(taking)
    told = json.loads(desk.dead("replay", "--as-is", "--code", "out_of_range", "--json"))
    assert told == {"sent": 1, "before": 0, "failing": {}, "gone": 0}
    assert desk.run() == first
    assert desk.letters() == [(0, bad, "out_of_range", 2), (0, 80, "missing_field", 1)]
    assert (0, bad, "out_of_range", 2) in desk.letters("--left")

    fields = dict(desk.pipeline.events.schema.fields)
    fields["amount"] = replace(fields["amount"], high=1e7)
    schema = replace(desk.pipeline.events.schema, fields=fields)
    desk.pipeline = replace(desk.pipeline, events=replace(desk.pipeline.events, schema=schema))
    told = json.loads(desk.dead("replay", "--as-is", "--json"))
    assert told == {"sent": 1, "before": 0, "failing": {"missing_field": 1}, "gone": 0}
    second = desk.run()
    assert second.keys() - first.keys() == {f"payments/{topic}/0/{bad}"}
    assert json.loads(desk.dead("replay", "--as-is", "--json"))["before"] == 1

    letter = json.loads(desk.dead("list", "--code", "missing_field", "--json"))["letters"][0]
    killer = letter | {"code": "poison", "offset": 0, "truncated": False, "sha256": "0"}
    producer = Producer({"enable.idempotence": True, "bootstrap.servers": apache_kafka.address})
    producer.produce(f"{topic}.dead", json.dumps(killer | {"value_base64": base64.b64encode(log[0][1]).decode()}))
    producer.flush(10)
    assert json.loads(desk.dead("replay", "--as-is", "--json"))["failing"] == {"missing_field": 1, "poison": 1}
    assert json.loads(desk.dead("replay", "--as-is", "--code", "poison", "--json"))["sent"] == 1


def test_replays_are_found_where_the_broker_writes_the_time_stamps(apache_kafka: Broker, name: Callable[[str], str]) -> None:
    topic = name("pay")
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    made = admin.create_topics([NewTopic(topic, 1, 1, config={"message.timestamp.type": "LogAppendTime"})])
    made[topic].result()
    fill(apache_kafka.address, topic, [stream(30)])
    send(of_topic(topic), JobSettings(brokers=apache_kafka.address), [Again((0, 7), b"k", b"{}"), Again((0, 9), None, None)])
    log = KafkaLog(topic, apache_kafka.address, {}, group="test")
    assert originals(log.read(0, 28)).to_pylist() == [28, 29, 7, 9]
    log.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: expected JSON"),
        ("[1]", "line 1: expected an object, got list"),
        ('{"topic": "pay", "partition": true, "offset": 1}', "line 1: partition: expected a whole number"),
        ('{"topic": "pay", "partition": 0, "offset": -1}', "line 1: offset: expected a whole number"),
        ('{"topic": "other", "partition": 0, "offset": 1}', "line 1: topic: expected pay, got 'other'"),
        ('{"topic": "pay", "partition": 0, "offset": 1, "encrypted": true}', "line 1: it is encrypted"),
        ('{"topic": "pay", "partition": 0, "offset": 1, "truncated": true}', "line 1: it has only the first bytes"),
        ('{"topic": "pay", "partition": 0, "offset": 1, "key": null}', "line 1: expected value or value_base64"),
        ('{"topic": "pay", "partition": 0, "offset": 1, "key": 4111, "value": "x"}', "line 1: key: expected a text, got int"),
        (
            '{"topic": "pay", "partition": 0, "offset": 1, "key": null, "value_base64": "?"}',
            "line 1: value_base64: expected base64",
        ),
        ('{"topic": "pay", "partition": 0, "offset": 1, "key": "a", "value": "x"}\n' * 2, "line 2: the same message as line 1"),
    ],
)
def test_lines_that_are_no_letters_are_named(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "letters.jsonl"
    file.write_text(line)
    with pytest.raises(DeadLetterError) as raised:
        parsed(file, "pay")
    assert said in str(raised.value)


SECRET = """
from dataclasses import replace
from cards import Card
from test_dead_letters import of_topic

pipeline = of_topic({topic!r})
pipeline = replace(pipeline, events=replace(pipeline.events, schema=Card))
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "not kept"])
def test_letters_of_a_topic_with_secrets_are_corrected_in_clear_only_where_that_is_asked_for(
    embedded_broker: Broker,
    tmp_path: Path,
    name: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sealed: bool,
) -> None:
    for setting, key in (("SECRET", "0f" * 16), ("DEAD_LETTER", "a1" * 32)):
        monkeypatch.setenv(f"KEY_OF_{setting}", key)
        monkeypatch.setenv(f"HEADRACE_{setting}_KEY", f"env:KEY_OF_{setting}")
    if not sealed:
        monkeypatch.delenv("HEADRACE_DEAD_LETTER_KEY")
    (card, other), topic = cards(2), name("pay")
    wrong = whole(card, 0) | {"amount": card}
    fill(
        embedded_broker.address,
        topic,
        [[(card.encode(), json.dumps(wrong).encode()), (None, json.dumps(whole(other, 1)).encode())]],
    )
    desk = Desk(tmp_path, embedded_broker, topic, capsys)
    desk.pipeline = replace(desk.pipeline, events=replace(desk.pipeline.events, schema=Card))
    desk.file.write_text(SECRET.format(topic=topic))
    assert desk.run().keys() == {f"payments/{topic}/0/1"}
    shown = desk.dead("list") + desk.dead("list", "--json")
    file, opened = tmp_path / "sealed.jsonl", tmp_path / "opened.jsonl"
    desk.dead("export", file)
    shown += file.read_text() + desk.dead("replay", file, code=1)
    assert "it is encrypted" in shown
    assert card not in shown
    assert json.loads(desk.dead("replay", "--as-is", "--json"))["failing"] == {"wrong_type": 1}
    desk.dead("export", opened, "--open")
    if sealed:
        line = json.loads(opened.read_text())
        assert line["value"] == wrong
        assert line["key"] == card
        opened.write_text(json.dumps(line))
        refused = desk.dead("replay", opened, code=1)
        assert "got what is not shown" in refused
        assert card not in refused
        opened.write_text(json.dumps(line | {"value": whole(card, 0)}))
        desk.dead("replay", opened)
        assert desk.run().keys() == {f"payments/{topic}/0/0", f"payments/{topic}/0/1"}


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b'{"a": 1.5, "b": "\xc3\xa9"}', {"a": 1.5, "b": "é"}),
        (b'{"a":1.50}', '{"a":1.50}'),
        (b'{"a":1,"a":2}', '{"a":1,"a":2}'),
        (b"{nonsense", "{nonsense"),
        (None, None),
    ],
)
def test_a_value_is_written_such_that_what_nobody_touches_stays_what_it_was(message: bytes | None, value: Any) -> None:
    coded = None if message is None else base64.b64encode(message).decode()
    assert editable(LETTER | {"key_base64": None, "value_base64": coded})["value"] == value


def test_bytes_that_are_no_text_are_kept_as_base64() -> None:
    line = editable(LETTER | {"key_base64": "/w==", "value_base64": "/w=="})
    assert (line["key_base64"], line["value_base64"]) == ("/w==", "/w==")
    assert "value" not in line
