"""A log for machines: one JSON object a line, whoever says it, with the ids that are known, and but a few lines a second."""

import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from cards import Search, cards, secret_payments, whole
from payments import Arithmetic, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_budget_flow import Slow
from test_cli import cluster, payments_file, said_by
from test_swapping import champion, until, version

from kernels.keyed_hash.naive import keyed_hash
from models.news import Good, News, news_file
from models.spec import digest
from ops.broker import Broker
from ops.errors import hush, report
from ops.logs import say, speak
from ops.topics import create
from ops.workers import heard
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.budget import Budget
from streams.job import Champion
from streams.notices import Notices
from streams.pipeline import Pipeline
from streams.run import run
from streams.source import MemorySource

KEY = "0f" * 16
Log = list[tuple[bytes | None, bytes | None]]
Said = list[tuple[str, dict[str, Any]]]
VERSIONS = {
    "one": ("amount_mean_1h_by_card", "amount"),
    "two": ("amount", "amount_mean_1h_by_card"),
    "bad": ("nobody", "knows"),
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test says as JSON, no other does."""
    monkeypatch.setenv("MLFLOW_CONFIGURE_LOGGING", "false")
    yield
    speak("text", "")


def lines(text: str) -> list[dict[str, Any]]:
    """All lines, each of which has to be an object."""
    return [json.loads(line) for line in text.splitlines()]


def test_whoever_says_it_each_line_is_an_object_and_says_of_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    speak("json", "payments", 3)
    say("payments: well", out=True, model="payments", model_version=2)
    logging.getLogger("some.library").warning("the store %s", "answers\nagain")
    error = ValueError("no such thing")
    error.add_note("as a free lunch")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        hush()
        warnings.warn("no news to anybody", DeprecationWarning, stacklevel=1)
        warnings.warn("half full", UserWarning, stacklevel=1)
    assert report(error) == 1
    out, err = capsys.readouterr()
    assert out == ""
    said = lines(err)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one.pop("time")) for one in said)
    of = {"pipeline": "payments", "worker": 3}
    assert said == [
        {"level": "info", **of, "message": "payments: well", "model": "payments", "model_version": 2},
        {"level": "warning", **of, "message": "the store answers\nagain", "logger": "some.library"},
        {"level": "warning", **of, "message": "UserWarning: half full"},
        {"level": "critical", **of, "message": "no such thing", "error": "ValueError", "notes": ["as a free lunch"]},
    ]


def test_text_is_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    speak("json", "payments")
    speak("text", "payments", 3)
    say("ready", out=True, model_version=2)
    say("not well", level="warning", model_version=2)
    report(ValueError("no such thing"))
    assert capsys.readouterr() == ("ready\n", "not well\nheadrace: no such thing\n")


def test_what_a_worker_says_is_passed_on_and_what_it_dies_of_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    for how in ("text", "json"):
        speak(how, "payments")
        assert heard("headrace: no bread", 1) == "no bread"
        assert capsys.readouterr().err == ""
    speak("json", "payments", 1)
    say("well")
    report(RuntimeError("no bread"))
    well, died = capsys.readouterr().err.splitlines()
    speak("text", "payments")
    assert heard(died, 1) == "", "nobody asked for JSON"
    assert capsys.readouterr().err == f"worker 1: {died}\n"
    speak("json", "payments")
    assert [heard(line, 1) for line in (well, died, "Segmentation fault", '{"half":')] == ["", "no bread", "", ""]
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [well, died]
    others = [json.loads(line) for line in said[2:]]
    assert [(one["worker"], one["message"]) for one in others] == [(1, "Segmentation fault"), (1, '{"half":')]


@pytest.mark.slow
def test_all_workers_and_who_started_them_write_json(
    tmp_path: Path, embedded_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(embedded_broker.address, ["pay", "verdicts", "pay.dead"], 1, {})
    monkeypatch.setenv("HEADRACE_LOG", "json")
    during = "if worker == 1 and Path(settings.home, 'go').exists(): raise ValueError('no such thing as a free lunch')"
    with cluster(payments_file(tmp_path, during=during), embedded_broker.address, 3, tmp_path) as process:
        for number in range(3):
            said_by(tmp_path, number, process)
        (tmp_path / "go").touch()
        assert process.wait(20) == 1
        assert process.stderr is not None
        said = lines(process.stderr.read())
    assert {one["pipeline"] for one in said} == {"payments"}
    ready = {one["worker"] for one in said if one["message"].startswith("payments: worker") and "ready" in one["message"]}
    assert ready == {0, 1, 2}
    died = [(one["worker"], one["message"], one["error"]) for one in said if one["level"] == "critical"]
    assert died[0] == (1, "no such thing as a free lunch", "ValueError")
    assert died[-1] == (None, "worker 1 of 3: no such thing as a free lunch", "WorkerDiedError")


class Picky(Arithmetic):
    """Throws at large payments, or at all."""

    def __init__(self, most: float) -> None:
        self.most = most

    def infer(self, matrix: npt.NDArray[np.float32], out: Any = None) -> npt.NDArray[np.float32]:
        if (matrix[:, 0] > self.most).any():
            raise RuntimeError("a node of the graph divides by zero")
        return super().infer(matrix)


def said_of(
    home: Path, messages: Log, engine: Arithmetic, pipeline: Pipeline | None = None, **values: Any
) -> tuple[Said, dict[str, dict[str, Any]], MemorySink]:
    """What a job says of a log, with fields, its decisions, and its sink."""
    said, sink = Said(), MemorySink()
    parts = {"clock_ns": engine.clock_ns} if isinstance(engine, Slow) else {}
    run(
        pipeline or payments(),
        settings(home, **values),
        registry=CollectorRegistry(),
        source=MemorySource([messages], rows=250, **parts),
        sink=sink,
        champion=Champion(7, engine, None, "d7"),
        say=lambda words, **fields: said.append((words, fields)),
        **parts,
    )
    return said, decisions(sink), sink


def test_decisions_by_the_fallback_are_said_with_ids_and_the_model_that_failed(tmp_path: Path) -> None:
    began = time.monotonic()
    said, decided, _ = said_of(tmp_path, stream(3000), Picky(390), log="json")
    seconds = time.monotonic() - began
    flagged = [one for one in decided.values() if "fallback" in one["flags"]]
    assert 10 < len(flagged) < len(decided)
    told = [fields for _, fields in said if fields.get("kind") == "fallback"]
    assert 1 <= len(told) <= seconds + 1
    ids = {"decision_id": flagged[0]["decision_id"], "event_id": flagged[0]["event_id"]}
    model = {"model": "payments", "model_version": 7, "model_digest": "d7"}
    assert told[0] == {"level": "warning", "kind": "fallback", "rows": told[0]["rows"]} | ids | model
    assert 1 <= sum(one["rows"] for one in told) <= len(flagged)
    ((words, fields),) = [one for one in said if "no score for" in one[0]]
    assert "divides by zero" in words
    assert fields.items() >= (model | {"error": "RuntimeError", "level": "warning", "resting": False}).items()
    assert not [one for one in said_of(tmp_path, stream(3000), Picky(390))[0] if "kind" in one[1]], "for machines alone"


def test_what_was_late_and_what_was_shed_is_said_apart(tmp_path: Path) -> None:
    pipeline = replace(payments(), budget=Budget(10, "shed"))
    said, decided, _ = said_of(tmp_path, stream(20_000), Slow(0.02), pipeline, log="json")
    first = {fields["kind"]: fields for _, fields in reversed(said) if "kind" in fields}
    assert first.keys() == {"late", "shed"}
    shed = [one for one in decided.values() if one["score"] is None]
    late = [one for one in decided.values() if one["score"] is not None and "late" in one["flags"]]
    for kind, those in (("late", late), ("shed", shed)):
        assert (first[kind]["decision_id"], first[kind]["event_id"]) == (those[0]["decision_id"], those[0]["event_id"])


def test_dead_letters_are_said_with_their_position_and_without_what_they_hold(tmp_path: Path) -> None:
    log: Log = [*stream(600)]
    log[37] = log[400] = (None, b'{"kind": "what nobody should read"}')
    said, _, sink = said_of(tmp_path, log, Arithmetic(), log="json")
    letters = [json.loads(value) for value in sink.values("pay.dead")]
    assert [one["offset"] for one in letters] == [37, 400]
    told = [fields for _, fields in said if fields.get("kind") == "dead_letter"]
    place = {name: letters[0][name] for name in ("topic", "partition", "offset", "code")}
    assert told[0] == {"level": "warning", "kind": "dead_letter", "rows": 1} | place
    assert place["offset"] == 37
    assert "nobody" in letters[0]["reason"]
    assert "nobody" not in repr(said)


def test_a_kind_is_said_once_a_second_and_none_of_its_rows_is_forgotten() -> None:
    now, said = [100.0], Said()
    notices = Notices(lambda words, **fields: said.append((words, fields)), "pay", lambda: now[0])

    def dead(offset: int, rows: int) -> None:
        columns = {"code": ["not_json"] * rows, "_partition": [2] * rows, "_offset": list(range(offset, offset + rows))}
        notices.dead(pa.RecordBatch.from_pydict(columns))

    for k in range(8):
        dead(10 * k, 3)
        now[0] += 0.25
    assert [(words, fields["rows"], fields["offset"]) for words, fields in said] == [
        ("3 dead letters", 3, 0),
        ("12 dead letters", 12, 40),
    ]


def test_nothing_secret_comes_into_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event's own id is a card number, each decision is one of the fallback, and each other message is broken."""
    monkeypatch.setenv("CARD_KEY", KEY)
    numbers, like = cards(200), secret_payments()
    pipeline = replace(like, events=replace(like.events, id="payer"))
    log: Log = []
    for k, card in enumerate(numbers):
        good = json.dumps(whole(card, k)).encode()
        log += [(card.encode(), good), (card.encode(), good[:-1])]
    said, decided, _ = said_of(tmp_path, log, Picky(0), pipeline, log="json", secret_key="env:CARD_KEY")
    assert {fields["kind"] for _, fields in said if "kind" in fields} == {"fallback", "dead_letter"}
    told = next(fields for _, fields in said if fields.get("kind") == "fallback")
    assert told["event_id"] == keyed_hash(bytes.fromhex(KEY), numbers[0].encode())
    assert told["decision_id"] in decided
    search = Search(numbers)
    assert search.found(repr(log).encode())
    assert not search.found(repr(said).encode())


def test_a_version_that_takes_over_or_is_refused_is_named(tmp_path: Path) -> None:
    models, sink, said = tmp_path / "models", MemorySink(), Said()
    one, two, bad = (version(models / name, inputs, 40) for name, inputs in VERSIONS.items())
    file = news_file(models, "payments")
    steps: Iterator[Callable[[], None]] = iter(
        [
            lambda: News("payments", (Good(9, digest(bad), "bad"),)).write(file),
            lambda: News("payments", (Good(2, digest(two), "two"),)).write(file),
        ]
    )

    def on_write(messages: Messages) -> None:
        if step := next(steps, None):
            before = len(said)
            step()
            until(lambda: len(said) > before)

    sink.on_write = on_write
    run(
        payments(),
        settings(tmp_path),
        registry=CollectorRegistry(),
        source=MemorySource([stream(4000)], rows=50),
        sink=sink,
        champion=champion(1, one),
        say=lambda words, **fields: said.append((words, fields)),
    )
    refused, swapped = (fields for _, fields in said)
    model = {"model": "payments"}
    assert refused == model | {"level": "warning", "model_version": 9, "model_digest": digest(bad)[:12]}
    assert swapped == model | {"model_version": 2, "model_digest": digest(two), "before": 1}
