"""The replay: JSON that reads back as the table it was made from, and every message delivered, in order, in time."""

import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from features.schema import Integer, Kind, Number, Schema, Text, Time
from models.flights_history import history
from ops.broker import Broker, free_port
from ops.malformed import malformed
from ops.replay import ReplayError, between, encode, main, plant, replay
from ops.topics import create
from streams.flights import FlightEvent, flights

KEYS = flights.events.keys
MIXED = Schema(
    "Mixed",
    version=1,
    fields={
        "note": Text(optional=True),
        "kind": Kind(("a", "b")),
        "at": Time(),
        "many": Integer(on=("a",)),
        "much": Number(on=("b",)),
        "some": Number(optional=True),
        "then": Time(on=("b",), optional=True),
        "who": Text(on=("a",)),
    },
)
TIMES = st.datetimes(datetime(1930, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**53), 2**53)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
A = st.fixed_dictionaries(
    {"kind": st.just("a"), "at": TIMES, "many": WHOLE, "who": TEXTS}, optional={"note": TEXTS, "some": NUMBERS}
)
B = st.fixed_dictionaries(
    {"kind": st.just("b"), "at": TIMES, "much": NUMBERS}, optional={"note": TEXTS, "some": NUMBERS, "then": TIMES}
)


@pytest.fixture(scope="module")
def year() -> pa.Table:
    return history()


@pytest.fixture
def nowhere() -> str:
    return f"127.0.0.1:{free_port()}"


def rfc3339(when: datetime) -> str:
    return when.replace(tzinfo=None).isoformat() + "Z"


def columns(rows: list[dict[str, Any]], schema: Schema = MIXED) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schema.arrow())


def consumed(broker: str, topic: str, count: int) -> list[tuple[bytes, bytes]]:
    consumer = Consumer({"bootstrap.servers": broker, "group.id": "test", "fetch.wait.max.ms": 5})
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    got: list[tuple[bytes, bytes]] = []
    deadline = time.monotonic() + 20
    while len(got) < count and time.monotonic() < deadline:
        got += [(message.key(), message.value()) for message in consumer.consume(10_000, 0.05)]
    consumer.close()
    return got


@given(rows=st.lists(A | B, max_size=12))
def test_json_reads_back_as_the_row_with_fields_in_order_and_nulls_left_out(rows: list[dict[str, Any]]) -> None:
    keys, values = encode(columns(rows), MIXED, ["note", "at"])
    for row, key, value in zip(rows, keys, values, strict=True):
        expected = {name: row[name] for name in MIXED.fields if name in row}
        expected = {name: rfc3339(item) if isinstance(item, datetime) else item for name, item in expected.items()}
        pairs = json.loads(value, object_pairs_hook=list)
        assert pairs == list(expected.items())
        assert [type(item) for _, item in pairs] == [type(item) for item in expected.values()]
        if row.get("note") is not None:
            assert key == row["note"].encode()


def test_fields_of_other_kinds_are_left_out_even_where_they_have_a_value() -> None:
    row = {"kind": "b", "at": datetime(2013, 1, 1, tzinfo=UTC), "much": 0.1, "many": 7, "who": "x"}
    assert encode(columns([row]), MIXED, ["kind"]) == ([b"b"], [b'{"kind":"b","at":"2013-01-01T00:00:00Z","much":0.1}'])


def test_all_optional_and_all_null_is_an_empty_object() -> None:
    schema = Schema("Loose", version=1, fields={"a": Integer(optional=True), "b": Integer(optional=True)})
    rows = [{"a": None, "b": 1}, {"a": 1, "b": None}, {"a": 1, "b": 2}]
    assert encode(columns(rows, schema), schema, ["a", "b"])[1] == [b'{"b":1}', b'{"a":1}', b'{"a":1,"b":2}']


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"many": None}, "Mixed: row 1: many: expected Integer, got null"),
        ({"at": None}, "Mixed: row 1: at: expected Time, got null"),
        ({"some": math.nan}, "Mixed: row 1: some: expected a finite number, got another"),
        ({"note": None}, "Mixed: row 1: note: expected a key, got null"),
    ],
)
def test_what_cannot_be_a_message_is_refused_by_row_and_field(wrong: dict[str, Any], said: str) -> None:
    row = {"kind": "a", "at": datetime(2013, 1, 1, tzinfo=UTC), "many": 1, "who": "x", "note": "n"}
    with pytest.raises(ValueError, match=said):
        encode(columns([row, row | wrong]), MIXED, ["note"])


def test_days_of_flights_read_back_as_their_table(year: pa.Table) -> None:
    start = datetime(2013, 11, 2, tzinfo=UTC)
    table = between(year, "at", start, start + timedelta(days=3))
    keys, values = encode(table, FlightEvent, KEYS)
    rows = table.to_pylist()
    assert len(values) == len(rows) > 7_000
    for row, key, value in zip(rows, keys, values, strict=True):
        assert json.loads(value) == {n: rfc3339(v) if n == "at" else v for n, v in row.items() if v is not None}
        assert key == str(next(row[name] for name in KEYS if row[name] is not None)).encode()


def test_planted_messages_are_spread_and_keep_the_order_of_time() -> None:
    keys, values = [b"k%d" % n for n in range(1_000)], [b"%d" % n for n in range(1_000)]
    bad = [(f"code{n}", b"bad%d" % n) for n in range(9)]
    new_keys, new_values, times = plant(list(keys), list(values), bad, np.arange(1_000))
    places = [n for n, value in enumerate(new_values) if value.startswith(b"bad")]
    assert [new_values[n] for n in places] == [value for _, value in bad]
    assert np.diff(places).min() >= 100
    assert [value for value in new_values if not value.startswith(b"bad")] == values
    assert (np.diff(times) >= 0).all()
    for place in places:
        assert (new_keys[place], times[place]) == (new_keys[place - 1], times[place - 1])


def test_few_messages_among_fewer_still_keep_the_order_of_time() -> None:
    _, values, times = plant([b"k"], [b"0"], [("code", b"x"), ("code", b"y"), ("code", b"z")], np.array([5]))
    assert values == [b"0", b"x", b"y", b"z"]
    assert times.tolist() == [5, 5, 5, 5]
    with pytest.raises(ValueError, match="got none"):
        plant([], [], [("code", b"x")], np.array([], np.int64))


def test_a_replay_is_delivered_whole_and_in_order(embedded_broker: Broker, name: Callable[[str], str], year: pa.Table) -> None:
    topic = name("replay")
    create(embedded_broker.address, [topic], 1, {})
    start = datetime(2013, 7, 4, tzinfo=UTC)
    table = between(year, "at", start, start + timedelta(days=4))
    keys, values = encode(table, FlightEvent, KEYS)
    times = table["at"].cast(pa.int64()).to_numpy()
    bad = malformed(FlightEvent, values[:100], large=1_500_000)
    keys, values, times = plant(keys, values, bad, times)
    told: list[int] = []
    replay({"bootstrap.servers": embedded_broker.address}, topic, keys, values, times, None, told.append)
    assert told[-1] == len(values) > 10_000
    assert consumed(embedded_broker.address, topic, len(values)) == list(zip(keys, values, strict=True))


def test_a_paced_replay_takes_the_time_of_its_events(embedded_broker: Broker, name: Callable[[str], str]) -> None:
    topic = name("paced")
    create(embedded_broker.address, [topic], 1, {})
    times = np.arange(61, dtype=np.int64) * 60_000_000
    handed: list[float] = []
    began = time.monotonic()
    replay(
        {"bootstrap.servers": embedded_broker.address},
        topic,
        [b"k"] * 61,
        [b"%d" % n for n in range(61)],
        times,
        speed=3_600.0,
        progress=lambda sent: handed.extend([time.monotonic() - began] * (sent - len(handed))),
    )
    assert len(handed) == 61
    due = np.arange(61) / 60
    assert (np.array(handed) >= due).all()
    assert np.median(np.array(handed) - due) < 0.25


def test_what_is_not_delivered_is_an_error(nowhere: str) -> None:
    config = {"bootstrap.servers": nowhere, "delivery.timeout.ms": "500", "message.timeout.ms": "500"}
    with pytest.raises(ReplayError, match="replay to gone: 3 messages or more not delivered"):
        replay(config, "gone", [b"k"] * 3, [b"v"] * 3, np.arange(3), None)


def test_the_command_replays_the_days_asked_for_and_prints_what_it_sent(
    embedded_broker: Broker, name: Callable[[str], str], year: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = name("command")
    create(embedded_broker.address, [topic], 1, {})
    pq.write_table(between(year, "at", None, datetime(2013, 1, 8, tzinfo=UTC)), tmp_path / "events.parquet")
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nimport pyarrow.parquet as pq\nfrom streams.flights import FlightEvent, flights\n"
        f"def history(): return pq.read_table({str(tmp_path / 'events.parquet')!r}).cast(FlightEvent.arrow())\n"
        f"events = replace(flights.events, topic={topic!r})\n"
        "mine = replace(flights, events=events, model=replace(flights.model, history=history))\n"
    )
    command = [f"{tmp_path / 'mine.py'}:mine", "--brokers", embedded_broker.address, "--config", "linger.ms=2"]
    assert main([*command, "--start", "2013-01-03", "--end", "2013-01-05"]) == 0
    said = json.loads(capsys.readouterr().out)
    asked = between(year, "at", datetime(2013, 1, 3, tzinfo=UTC), datetime(2013, 1, 5, tzinfo=UTC))
    expected = encode(asked, FlightEvent, KEYS)[1]
    assert (said["sent"], said["malformed"], said["bytes"]) == (asked.num_rows, 0, sum(map(len, expected)))
    assert [value for _, value in consumed(embedded_broker.address, topic, len(expected))] == expected


def test_wrong_use_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, nowhere: str, embedded_broker: Broker
) -> None:
    monkeypatch.setattr("ops.topics.TIMEOUT", 1.0)
    assert main(["nothing.py:job"]) == 2
    assert main(["flights", "--brokers", nowhere]) == 1
    assert main(["flights", "--brokers", embedded_broker.address]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split()[0:2] for line in lines] == [["no", "pipeline"], ["no", "Kafka"], ["the", "broker"]]
