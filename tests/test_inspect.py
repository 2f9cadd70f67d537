"""One decision, explained: what was served, from the record, its event, from the topic, and what is said where one is gone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import Search, cards, secret_payments, whole
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from payments import CHAMPION, NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild_kafka import fill

from kernels.keyed_hash.naive import keyed_hash
from ops.broker import Broker, free_port
from ops.cli import run_command
from ops.explain import NotAnIdError, Place, shortest, shown
from sinks.memory import MemorySink
from sinks.memory_log import MemoryLane, MemoryLog
from streams.log import KafkaLog
from streams.pipeline import Pipeline, Record
from streams.run import run
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes]]
FILE = """
import sys
from dataclasses import replace

sys.path.insert(0, {here!r})
from {module} import {make}

job = {make}()
job = replace(job, events=replace(job.events, topic={topic!r}))
"""
KEY = "0f" * 16


def on(topic: str, pipeline: Pipeline) -> Pipeline:
    return replace(pipeline, events=replace(pipeline.events, topic=topic))


def serve(
    home: Path,
    logs: list[Log],
    pipeline: Pipeline | None = None,
    record: Record | None = None,
    replays: dict[tuple[int, int], int] | None = None,
    **values: Any,
) -> dict[str, dict[str, Any]]:
    """Decides with a record; returns the decisions by id."""
    sink, source = MemorySink(), MemorySource(logs, rows=100, replays=replays)
    job = replace(pipeline or payments(), record=record or Record()), settings(home, **values)
    run(*job, registry=CollectorRegistry(), source=source, sink=sink, champion=replace(CHAMPION, digest="d1"))
    return decisions(sink)


def file_of(folder: Path, topic: str, make: str = "payments", module: str = "payments") -> str:
    file = folder / "shop.py"
    file.write_text(FILE.format(here=str(Path(__file__).parent), module=module, make=make, topic=topic))
    return f"{file}:job"


def asked(capfd: pytest.CaptureFixture[str], home: Path, decision_id: str, *options: str) -> dict[str, Any]:
    """What the command says as JSON."""
    assert run_command(["inspect", decision_id, "--home", str(home), "--json", *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def refused(capfd: pytest.CaptureFixture[str], home: Path, decision_id: str, *options: str, code: int = 1) -> str:
    """The one line that it says instead."""
    assert run_command(["inspect", decision_id, "--home", str(home), "--no-event", *options]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_decision_is_shown_as_it_was_served(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = list(serve(tmp_path, [stream(50)]).values())[-1]
    found = asked(capfd, tmp_path, one["decision_id"], "--no-event")
    for name in ("decision_id", "event_id", "event_time", "decision", "score", "reasons", "flags", "model", "model_version"):
        assert found[name] == one[name]
    assert (found["pipeline"], found["topic"], found["partition"], found["model_digest"]) == ("payments", "pay", 0, "d1")
    assert one["decision_id"] == f"payments/pay/0/{found['offset']}"
    assert [each["name"] for each in found["features"]] == list(NAMES)
    for each in found["features"]:
        served = one["features"][each["name"]]
        assert each["value"] == (served if served is None else float(str(np.float32(served))))
    assert [each["source"] for each in found["features"]] == ["field", *["stream"] * 6]
    assert found["decided_at"].endswith("Z")
    assert [found[name] for name in ("appended_at", "polled_at", "delivered_at")] == [None] * 3
    assert found["event"] == {"state": "unread", "said": "--no-event", "fields": None}
    folder = tmp_path / "record" / "payments"
    assert found["record"] == {"folder": str(folder), "share": 1, "age_by": "event", "counts": "first", "repeats": 0}
    assert run_command(["inspect", one["decision_id"], "--record", str(folder), "--no-event"]) == 0
    told = capfd.readouterr().out.splitlines()
    assert told[0] == f"{'decision':15} {one['decision']}, score {one['score']}"
    assert told[1] == f"{'model':15} payments, version 1, digest d1"
    assert f"{'position':15} topic pay, partition 0, offset {found['offset']}" in told
    assert [line.split()[0] for line in told if line.endswith("not recorded")] == ["appended_at", "polled_at", "delivered_at"]
    assert [line.split()[0] for line in told if line.startswith("  ")] == list(NAMES)


@pytest.mark.parametrize(
    "given",
    [
        "payments", "payments/pay/0", "payments/pay/0/1/2", "/pay/0/1", "payments//0/1", "payments/pay/0/", "payments/pay/x/1",
        "payments/pay/0/-1", "payments/pay/0/01", "payments/pay/0/\u0661", "payments/pay/0/9223372036854775808",
        "payments/pay/2147483648/0", "payments/pay/0/99999999999999999999999",
    ],
)  # fmt: skip
def test_what_is_no_id_is_refused_at_the_door(tmp_path: Path, capfd: pytest.CaptureFixture[str], given: str) -> None:
    with pytest.raises(NotAnIdError):
        Place.of(given)
    said = refused(capfd, tmp_path, given, code=2)
    assert "expected a decision_id, PIPELINE/TOPIC/PARTITION/OFFSET" in said


def test_an_id_is_taken_apart() -> None:
    place = Place.of("my-fraud/pay.eu/7/9223372036854775807")
    assert place == Place("my-fraud", "pay.eu", 7, 2**63 - 1)
    assert str(place) == "my-fraud/pay.eu/7/9223372036854775807"


def test_no_record_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = refused(capfd, tmp_path, "payments/pay/0/1")
    assert f"pipeline payments has no record in {tmp_path / 'record' / 'payments'}: record=Record()" in said
    serve(tmp_path, [stream(50)])
    folder = str(tmp_path / "record" / "payments")
    said = refused(capfd, tmp_path, "payments/other/0/1", "--record", folder)
    assert "is of payments/pay/..., expected one of payments/other/..." in said


def test_the_folder_is_that_of_the_pipeline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = next(iter(serve(tmp_path / "home", [stream(50)], record=Record(str(tmp_path / "kept")))))
    file = file_of(tmp_path, "pay")
    assert "has no record in" in refused(capfd, tmp_path / "home", place, "--pipeline", file)
    with Path(file.removesuffix(":job")).open("a") as more:
        more.write(f"from streams.pipeline import Record\njob = replace(job, record=Record({str(tmp_path / 'kept')!r}))\n")
    assert asked(capfd, tmp_path / "home", place, "--pipeline", file, "--no-event")["decision_id"] == place
    said = refused(capfd, tmp_path, "other/pay/0/1", "--pipeline", file, code=2)
    assert "expected pipeline other, as in the id, got payments" in said


def test_where_the_record_has_no_such_decision_it_says_how_far_it_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = stream(50)
    offsets = sorted(int(each.rpartition("/")[2]) for each in serve(tmp_path, [log]))
    serve(tmp_path, [[], log])
    refund = next(k for k in range(offsets[0], 50) if k not in offsets)
    said = refused(capfd, tmp_path, f"payments/pay/0/{refund}")
    assert f"of partition 0 it has offsets {offsets[0]} to {offsets[-1]}: this event was not one to decide on" in said
    assert ", in sealed files of 20" in said
    assert "lost" not in said
    assert "this one is not decided yet" in refused(capfd, tmp_path, "payments/pay/0/999")
    assert "of partition 7 it has nothing: what is older is gone" in refused(capfd, tmp_path, "payments/pay/7/0")
    next((tmp_path / "record" / "payments" / "worker-0").glob("00000001-*.parquet")).unlink()
    said = refused(capfd, tmp_path, f"payments/pay/0/{offsets[0]}")
    assert "; before those it has lost 1 file; of partition 0 it has nothing: what is older is gone" in said


def test_what_the_share_leaves_out_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    served = serve(tmp_path, [stream(200)], record=Record(share=0.5))
    found, missing = list[str](), list[str]()
    for place in list(served)[:60]:
        code = run_command(["inspect", place, "--home", str(tmp_path), "--no-event"])
        (missing if code else found).append(place)
    said = capfd.readouterr().err.splitlines()
    assert len(found) > 15
    assert len(missing) == len(said) > 15
    assert all(", a share of 0.5 of them, " in line and line.endswith("the share leaves this one out") for line in said)


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_of_several_rows_it_shows_the_one_that_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str], delivery: str) -> None:
    for year in (2024, 2025):
        home, written = tmp_path / str(year), MemoryLog()
        now = int(np.datetime64(f"{year}-06-01", "ns").astype(int))
        parts: dict[str, Any] = {
            "lanes": lambda shard, log=written: MemoryLane(log, str(shard)),
            "clock_ns": lambda now=now: now,
            "champion": CHAMPION,
        }
        parts |= {} if delivery == "exactly_once" else {"sink": MemorySink()}
        job = settings(home, recovery=True, delivery=delivery)
        pipeline = replace(payments(), record=Record(str(tmp_path / "kept")))
        run(pipeline, job, registry=CollectorRegistry(), source=MemorySource([stream(100)]), **parts)
    paid = next(k for k, (_, value) in enumerate(stream(100)) if json.loads(value)["kind"] == "paid")
    options = [f"payments/pay/0/{paid}", "--record", str(tmp_path / "kept"), "--no-event"]
    found = asked(capfd, tmp_path, *options)
    first, last = delivery == "at_least_once", delivery == "exactly_once"
    assert found["decided_at"] == f"{2024 + last}-06-01T00:00:00.000000Z"
    assert (found["record"]["counts"], found["record"]["repeats"]) == ("first" if first else "last", 1)
    assert run_command(["inspect", *options]) == 0
    assert f"; of 2 rows of this decision the {'first' if first else 'last'} counts\n" in capfd.readouterr().out


def test_the_fields_of_the_event_are_those_of_the_topic(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    embedded_broker: Broker,
    name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    topic, log, at = name("pay"), stream(60), embedded_broker.address
    place = list(serve(tmp_path, [log], on(topic, payments())))[-1]
    options = [place, "--pipeline", file_of(tmp_path, topic), "--brokers", at]
    found = asked(capfd, tmp_path, *options)
    assert (found["event"]["state"], found["event"]["said"]) == ("gone", f"the broker at {at} has no {topic}/0")
    fill(at, topic, [log])
    found = asked(capfd, tmp_path, *options)
    event = json.loads(log[found["offset"]][1])
    assert found["event"]["state"] == "there"
    assert found["event"]["fields"] == {"card": None, **event, "at": event["at"].replace("Z", ".000000Z")}
    assert found["appended_at"] > "2024"
    assert run_command(["inspect", *options[:1], "--home", str(tmp_path), *options[1:]]) == 0
    told = capfd.readouterr().out.splitlines()
    after = told[told.index("fields of the event as its topic has them:") + 1 :]
    assert [line.split()[0] for line in after] == ["kind", "at", "payment", "card", "shop", "amount", "record"]
    monkeypatch.setattr(KafkaLog, "marks", lambda log, partition: (found["offset"] + 1, 60))
    gone = asked(capfd, tmp_path, *options)
    begins = f"{topic}/0 begins at offset {found['offset'] + 1} now, what was before is deleted"
    assert gone["event"] == {"state": "gone", "said": begins, "fields": None}
    assert gone["features"] == found["features"]
    assert gone["appended_at"] is None


def test_what_is_at_its_position_may_be_another_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], embedded_broker: Broker, name: Callable[[str], str]
) -> None:
    """An event that failed first and was sent again, corrected; and a topic that was made anew."""
    topic, log = name("pay"), stream(60)
    paid = [k for k, (_, value) in enumerate(log) if json.loads(value)["kind"] == "paid"]
    bad, other = paid[5], paid[10]
    log = [*log[:bad], (None, b"{nonsense"), *log[bad + 1 :], log[bad]]
    place = f"payments/{topic}/0"
    assert f"{place}/{bad}" in serve(tmp_path, [log], on(topic, payments()), replays={(0, 60): bad})
    fill(embedded_broker.address, topic, [[*log[:other], log[paid[11]], *log[other + 1 :]]])
    options = ["--pipeline", file_of(tmp_path, topic), "--brokers", embedded_broker.address]
    found = asked(capfd, tmp_path, f"{place}/{bad}", *options)["event"]
    assert (found["state"], found["fields"]) == ("undecodable", None)
    assert found["said"].startswith("not_json, payments/inspect: expected ")
    assert "headrace dead replay" in found["said"]
    found = asked(capfd, tmp_path, f"{place}/{other}", *options)["event"]
    assert (found["state"], found["fields"]) == ("other", None)
    assert f"the topic has payment {paid[11]} of 2024-" in found["said"]
    assert f", the record payment {other} of 2024-" in found["said"]


def test_a_broker_or_a_pipeline_that_is_not_there_leaves_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ops.explain.ANSWER_SECONDS", 1.0)
    place, at = next(iter(serve(tmp_path, [stream(50)]))), f"127.0.0.1:{free_port()}"
    found = asked(capfd, tmp_path, place, "--brokers", at)
    assert found["event"]["state"] == "unread"
    assert "--pipeline PATH.py:NAME" in found["event"]["said"]
    found = asked(capfd, tmp_path, place, "--brokers", at, "--pipeline", file_of(tmp_path, "pay"))
    assert found["event"]["said"].startswith(f"no Kafka broker answers at {at} ")
    found = asked(capfd, tmp_path, place, "--brokers", at, "--pipeline", file_of(tmp_path, "later"))
    assert found["event"]["said"] == "pipeline payments reads topic later, expected pay"
    assert found["score"] is not None


@pytest.mark.slow
def test_what_is_secret_is_never_shown(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    embedded_broker: Broker,
    name: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HEADRACE_SECRET_KEY", raising=False)
    monkeypatch.setenv("CARD_KEY", KEY)
    topic, numbers = name("pay"), cards(3)
    log: Log = [(card.encode(), json.dumps(whole(card, k)).encode()) for k, card in enumerate(numbers)]
    serve(tmp_path, [log], on(topic, secret_payments()), secret_key="env:CARD_KEY")
    fill(embedded_broker.address, topic, [log])
    brokers, said = ["--brokers", embedded_broker.address], list[str]()
    named = ["--pipeline", file_of(tmp_path, topic, "secret_payments", "cards")]

    def of(*options: str) -> dict[str, Any]:
        arguments = ["inspect", f"payments/{topic}/0/1", "--home", str(tmp_path), *brokers, *options]
        for more in ([], ["--json"]):
            assert run_command([*arguments, *more]) == 0
            said.append("".join(capfd.readouterr()))
        found: dict[str, Any] = json.loads(said[-1])
        return found["event"]

    assert of()["state"] == "unread"
    found = of(*named)
    assert found["state"] == "unread"
    assert "there is no key to hash it with" in found["said"]
    monkeypatch.setenv("HEADRACE_SECRET_KEY", "env:CARD_KEY")
    found = of(*named)
    assert (found["state"], found["said"]) == ("there", "hashes: card, payer")
    assert found["fields"]["card"] == found["fields"]["payer"] == keyed_hash(bytes.fromhex(KEY), numbers[1].encode())
    assert Search(numbers).found("\n".join(said).encode()) == set()


@pytest.mark.slow
def test_an_event_that_kafka_has_deleted_is_said_to_be_gone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], apache_kafka: Broker, name: Callable[[str], str]
) -> None:
    topic, log, at = name("pay"), stream(60), apache_kafka.address
    places = list(serve(tmp_path, [log], on(topic, payments())))
    fill(at, topic, [log])
    admin = AdminClient({"bootstrap.servers": at})  # what is asked of it is answered while it is there
    (deleted,) = admin.delete_records([TopicPartition(topic, 0, 30)]).values()
    assert deleted.result(30).low_watermark == 30
    capfd.readouterr()  # a broker that has just begun lets its producers wait, and they say so
    options = ["--pipeline", file_of(tmp_path, topic), "--brokers", at]
    found = asked(capfd, tmp_path, places[0], *options)["event"]
    assert (found["state"], found["fields"]) == ("gone", None)
    assert found["said"] == f"{topic}/0 begins at offset 30 now, what was before is deleted"
    assert asked(capfd, tmp_path, places[-1], *options)["event"]["state"] == "there"


def test_numbers_and_texts_are_shown_for_what_they_are() -> None:
    assert [shortest(float(np.float32(value))) for value in (0.1, 1 / 3, 1e10)] == [0.1, 0.33333334, 1e10]
    assert shortest([float(np.float32(0.1)), None]) == [0.1, None]
    assert [shown(value) for value in (None, [], ["a", 1], "shop-1")] == ["none", "none", "a, 1", "shop-1"]
    assert shown("a\x1b[2Jb") == r"'a\x1b[2Jb'"
