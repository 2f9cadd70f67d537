"""What is secret is nowhere but in the topic of events: 1,000 card numbers, in good messages and broken ones."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cards import Card, Search, broken, bytes_under, cards, secret_payments, whole
from payments import CHAMPION, payments, settings
from prometheus_client import CollectorRegistry, generate_latest

from features.schema import Integer, Schema, Text
from kernels.keyed_hash.naive import keyed_hash
from ops.cli import run_command
from ops.errors import explain
from ops.fake_registry import FakeRegistry, fake_registry
from ops.secret import open_letter
from sinks.encoders import Echo
from sinks.memory import MemorySink
from sinks.sealed import Seal, SealError
from streams.avro import Avro
from streams.decode import Decoded
from streams.lookup import SecretError
from streams.pipeline import Decisions, Pipeline
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource
from streams.start import RecoveryError
from streams.topic import Topic

Log = list[tuple[bytes | None, bytes | None]]
KEY, OTHER = "0f" * 16, "a1" * 32


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARD_KEY", KEY)
    monkeypatch.setenv("LETTER_KEY", OTHER)


def with_keys(home: Path, **values: Any) -> JobSettings:
    return settings(home, **({"secret_key": "env:CARD_KEY", "dead_letter_key": "env:LETTER_KEY"} | values))


def messages(numbers: list[str]) -> Log:
    """Each card in a good message and in a broken one, keyed by it."""
    log: Log = []
    for k, card in enumerate(numbers):
        event = whole(card, k)
        log += [(card.encode(), json.dumps(event).encode()), (card.encode(), broken(event, k))]
    return log


def run_once(job: JobSettings, log: Log, pipeline: Pipeline) -> tuple[MemorySink, bytes]:
    """The sink, and the page of metrics."""
    sink, registry = MemorySink(), CollectorRegistry()
    champion = replace(CHAMPION, digest="d1")
    run(pipeline, job, registry=registry, source=MemorySource([log], rows=100), sink=sink, champion=champion)
    return sink, generate_latest(registry)


def written(sink: MemorySink, home: Path, *more: bytes) -> dict[str, bytes]:
    """All that a job wrote, by where."""
    found = bytes_under(home) | {f"more {k}": one for k, one in enumerate(more)}
    for topic in sink.topics:
        found[topic] = b"\n".join([*sink.values(topic), *(key for key in sink.keys(topic) if key is not None)])
    return found


def leaks(search: Search, found: dict[str, bytes]) -> dict[str, set[str]]:
    return {name: seen for name, data in found.items() if (seen := search.found(data))}


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "not kept"])
def test_a_thousand_card_numbers_are_found_in_nothing_that_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, sealed: bool
) -> None:
    numbers = cards()
    log = messages(numbers)
    job = with_keys(tmp_path, recovery=True, epoch_seconds=0.01, **({} if sealed else {"dead_letter_key": ""}))
    sink, page = run_once(job, log, secret_payments())
    decided, dead = sink.values("verdicts"), sink.values("pay.dead")
    assert len(decided) + len(dead) == len(log)
    assert len(decided) >= 1000
    assert len(dead) > 700
    out, err = capfd.readouterr()
    found = written(sink, tmp_path, page, out.encode(), err.encode(), caplog.text.encode(), repr(job).encode())
    assert any(name.endswith(".parquet read") or "/record/" in name for name in found)
    assert any(".sqlite3 read" in name for name in found)
    assert leaks(Search(numbers), found) == {}
    kept = [letter for value in dead if (letter := json.loads(value))["value_base64"]]
    assert len(kept) == (len(dead) if sealed else 0)
    assert all("got what is not shown" in json.loads(value)["reason"] for value in dead)


def test_the_search_finds_what_is_not_marked(tmp_path: Path) -> None:
    """The same without the mark: the numbers are in decisions' keys, in dead letters and their keys."""
    numbers = cards(50)
    plain = Schema("Payment", version=3, fields=dict(Card.fields) | {"card": Text(), "payer": Integer(optional=True)})
    like = secret_payments()
    pipeline = replace(like, events=replace(like.events, schema=plain))
    sink, _ = run_once(settings(tmp_path), messages(numbers), pipeline)
    search = Search(numbers)
    assert len(leaks(search, written(sink, tmp_path))) >= 2
    assert search.found(b"".join(sink.values("pay.dead")))


@pytest.mark.parametrize("lead", range(4))
def test_the_search_knows_the_forms_that_a_number_may_take(lead: int) -> None:
    number = cards(1)[0]
    search, before = Search([number]), b"x" * lead
    assert search.found(before + number.encode())
    assert search.found(before + number[2:14].encode() + b"...")
    assert search.found(base64.b64encode(before + number.encode() + b"}"))
    assert search.found(before + number.encode().hex().encode())
    assert search.found(before + number.encode("utf-16-le"))
    assert search.found(before + int(number).to_bytes(8, "little"))
    assert search.found(before + int(number).to_bytes(8, "big") + b"yy")
    assert not search.found(before + cards(2)[1].encode())


def test_windows_over_a_secret_are_those_over_the_field_itself(tmp_path: Path) -> None:
    numbers = cards(20)
    log: Log = [(None, json.dumps(whole(numbers[k % 20], k)).encode()) for k in range(100)]
    one, _ = run_once(with_keys(tmp_path), log, secret_payments())
    plain = Schema("Payment", version=3, fields=dict(Card.fields) | {"card": Text(), "payer": Integer(optional=True)})
    like = secret_payments()
    other, _ = run_once(with_keys(tmp_path), log, replace(like, events=replace(like.events, schema=plain), record=None))
    features = [[json.loads(value)["features"] for value in sink.values("verdicts")] for sink in (one, other)]
    assert features[0] == features[1]
    assert features[0][99]["amount_count_1h_by_card"] == 4


def test_a_decision_is_keyed_by_the_hash_of_its_card(tmp_path: Path) -> None:
    card = cards(1)[0]
    log: Log = [(card.encode(), json.dumps(whole(card, 1)).encode()), (None, json.dumps(whole(card, 2)).encode())]
    sink, _ = run_once(with_keys(tmp_path), log, secret_payments())
    hashed = keyed_hash(bytes.fromhex(KEY), card.encode())
    assert sink.keys("verdicts") == [hashed and hashed.encode(), None]


def test_a_secret_number_and_a_secret_text_of_the_same_digits_hash_alike(tmp_path: Path) -> None:
    topic = Topic("pay", schema=Card, time="at", id="payer")
    card = cards(1)[0]
    decoded = topic.decode("t", with_keys(tmp_path))(raw([(None, json.dumps(whole(card, 1)).encode())]))
    row = decoded.rows.to_pylist()[0]
    assert row["card"] == row["payer"] == keyed_hash(bytes.fromhex(KEY), card.encode())
    assert decoded.rows.select(Card.arrow().names).schema == Card.arrow()


def raw(log: Log) -> pa.RecordBatch:
    return MemorySource([log]).read(0, 0)


def test_a_sealed_letter_opens_with_the_key_and_only_where_it_was(tmp_path: Path) -> None:
    card = cards(1)[0]
    value = broken(whole(card, 1), 0)
    job = with_keys(tmp_path)
    sink, _ = run_once(job, [(card.encode(), value), (None, None)], secret_payments())
    letter, empty = (json.loads(one) for one in sink.values("pay.dead"))
    assert (letter["encrypted"], letter["truncated"], letter["sha256"], letter["size"]) == (True, False, None, len(value))
    assert (empty["encrypted"], empty["value_base64"], empty["truncated"]) == (False, None, False)
    opened = open_letter(letter, job)
    assert base64.b64decode(opened["value_base64"]) == value
    assert base64.b64decode(opened["key_base64"]) == card.encode()
    with pytest.raises(SealError, match="pay/0@1/key: expected bytes sealed with this key for this place"):
        open_letter(letter | {"offset": 1}, job)
    with pytest.raises(SealError):
        Seal(b"1" * 32).open(base64.b64decode(letter["value_base64"]), "pay/0@0/value")
    with pytest.raises(SecretError, match="HEADRACE_DEAD_LETTER_KEY"):
        open_letter(letter, with_keys(tmp_path, dead_letter_key=""))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("", "topic pay: field card of schema Payment is secret, and there is no key to hash it with: set HEADRACE_SECRET_KEY"),
        (KEY, "setting secret_key: expected file:PATH or env:NAME, got something else"),
        ("env:NOT_THERE", "setting secret_key: the environment variable NOT_THERE is empty or not set"),
        ("env:SHORT", "setting secret_key: expected 32 to 128 hexadecimal digits, got 30 characters"),
        ("env:WORDS", "setting secret_key: expected 32 to 128 hexadecimal digits, got 36 characters"),
        ("file:/not/there", "setting secret_key: the file /not/there cannot be read: No such file or directory"),
    ],
)
def test_without_a_good_key_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str) -> None:
    monkeypatch.setenv("SHORT", "7c" * 15)
    monkeypatch.setenv("WORDS", "correct horse battery staple correct")
    with pytest.raises(SecretError, match=f"^{expected}") as caught:
        run_once(with_keys(tmp_path, secret_key=said), [], secret_payments())
    assert not any(secret in explain(caught.value) for secret in (KEY, "7c7c", "horse"))


def test_state_of_another_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = with_keys(tmp_path, recovery=True)
    run_once(job, messages(cards(3)), secret_payments())
    monkeypatch.setenv("CARD_KEY", OTHER)
    with pytest.raises(RecoveryError, match=r"expected secret key [0-9a-f]{8}, got [0-9a-f]{8}: .* --rebuild"):
        run_once(job, [], secret_payments())


def test_a_sink_that_sends_the_message_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="its encoder reads _value, the message itself, in which card is secret"):
        replace(secret_payments(), sinks=[Decisions("echo", encode=Echo("x"))])


def test_a_decoder_of_ones_own_lets_nothing_through_either(tmp_path: Path) -> None:
    """Its rows are hashed, its reasons left out."""
    card = cards(1)[0]
    inner = Topic("pay", schema=replace(payments().events.schema, fields={"card": Text(max_bytes=16)}), id="card").decode(
        "t", settings(tmp_path)
    )

    def own(batch: pa.RecordBatch) -> Decoded:
        decoded = inner(batch)
        return Decoded(decoded.rows.drop_columns(["_time"]), decoded.dead)

    schema = Schema("C", version=1, fields={"card": Text(max_bytes=16, secret=True)})
    topic = Topic("pay", schema=schema, id="card", decoder=own)
    decoded = topic.decode("t", with_keys(tmp_path))(raw([(None, json.dumps({"card": c}).encode()) for c in (card, card * 2)]))
    assert decoded.rows.column("card").to_pylist() == [keyed_hash(bytes.fromhex(KEY), card.encode())]
    assert decoded.dead.column("reason").to_pylist() == ["pay/0@1 cannot be decoded"]
    assert card[:12] not in repr(decoded.dead.to_pylist())


AVRO = {
    "type": "record",
    "name": "Payment",
    "fields": [
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["paid", "refund"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "payment", "type": "long"},
        {"name": "card", "type": ["string", "long"]},
        {"name": "payer", "type": ["null", "long"]},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": "double"},
    ],
}  # fmt: skip


@pytest.fixture
def schemas() -> Iterator[FakeRegistry]:
    with fake_registry() as made:
        yield made


def test_none_is_found_in_what_is_written_of_avro(tmp_path: Path, schemas: FakeRegistry) -> None:
    """Cut, changed and wrong messages: a card number may then be read as a length, which a reason says elsewhere."""
    id = schemas.add(AVRO)
    numbers, log = cards(300), Log()
    for k, card in enumerate(numbers):
        event = whole(card, k) | {"at": 1_709_633_700_000}
        out = io.BytesIO()
        fastavro.schemaless_writer(out, AVRO, event if k % 3 else event | {"card": int(card)})
        body = out.getvalue()
        good = bytes([0]) + id.to_bytes(4) + body
        at = len(body) * (k % 7) // 7
        changed = good[:5] + body[:at] + bytes([body[at] ^ (1 << k % 8)]) + body[at + 1 :]
        shifted = good[:5] + body[:at] + body[at + 1 :]
        log += [(card.encode(), one) for one in (good, good[: -(k % 9 + 1)], changed, shifted, good + card.encode())]
    like = replace(secret_payments(format=Avro(schemas.address)), decide_on="True")
    sink, page = run_once(with_keys(tmp_path), log, like)
    assert len(sink.values("verdicts")) + len(sink.values("pay.dead")) == len(log)
    assert len(sink.values("verdicts")) >= 200
    assert leaks(Search(numbers), written(sink, tmp_path, page)) == {}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_file_of_entity_keys_is_hashed_as_the_stream_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    numbers = cards(5)
    table = pa.table({"card": [int(number) for number in numbers], "limit": [1.5] * 5})
    file, out = tmp_path / f"limits.{suffix}", tmp_path / f"hashed.{suffix}"
    pq.write_table(table, file) if suffix == "parquet" else pa.csv.write_csv(table, file)
    monkeypatch.setenv("HEADRACE_SECRET_KEY", "env:CARD_KEY")
    assert run_command(["secret", "hash", str(file), "--column", "card", "--out", str(out)]) == 0
    made = pq.read_table(out) if suffix == "parquet" else pa.csv.read_csv(out)
    assert made["card"].to_pylist() == [keyed_hash(bytes.fromhex(KEY), number.encode()) for number in numbers]
    assert made["limit"].to_pylist() == [1.5] * 5
    assert run_command(["secret", "hash", str(file), "--column", "no", "--out", str(out)]) == 1
    assert "expected a column no, got card, limit" in capsys.readouterr().err


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    assert run_command(["secret", "key", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert run_command(["secret", "key", str(file)]) == 1
    said = capsys.readouterr()
    assert file.read_text().strip() not in said.out + said.err
    assert "expected to make a new file, got File exists" in said.err
