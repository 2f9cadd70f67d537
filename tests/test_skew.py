"""Served features computed again: what is right matches to the last one, and a planted bug is found and named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pay_repo import DAY, make_repo
from payments import CHAMPION, NAMES, Arithmetic, Payment, payments, settings, stream
from prometheus_client import CollectorRegistry

from features import tiles
from features.skew import compare
from features.spec import Fields, Stored
from models.spec import Input, ModelSpec
from ops.cli import run_command
from ops.skew import Report, events_of, lines, skew
from sinks.memory import MemorySink
from streams.decode import json_decoder
from streams.job import Champion
from streams.pipeline import Pipeline, Record
from streams.run import run
from streams.source import MemorySource

Log = list[tuple[bytes | None, bytes]]
FILE = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from payments import payments

pay = payments()
"""


def serve(home: Path, logs: list[Log], pipeline: Pipeline, champion: Champion = CHAMPION, **values: Any) -> Path:
    """Decides with a record; returns its folder."""
    job = replace(pipeline, record=Record()), settings(home, **values)
    run(*job, registry=CollectorRegistry(), source=MemorySource(logs, rows=100), sink=MemorySink(), champion=champion)
    return home / "record" / pipeline.name


def decoded(logs: list[Log]) -> pa.Table:
    """The events of logs with their positions, as from the topic."""
    raw = [partition._log for partition in (MemorySource(logs).build_part("", f"{k:03d}.0", None) for k in range(len(logs)))]
    decode = json_decoder(Payment)
    rows = pa.concat_tables(pa.Table.from_batches([decode(batch).rows]) for batch in raw).unify_dictionaries()
    return rows.select([*Payment.fields, "_partition", "_offset"])


def again(folder: Path, events: pa.Table, pipeline: Pipeline, **values: Any) -> Report:
    return skew(folder, pipeline, settings(folder, **values), events)


def counted(report: Report, what: str) -> dict[str, int]:
    return {one.feature: getattr(one, what) for one in report.features if getattr(one, what)}


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are a tile too short."""
    make = tiles.Tiles.__init__

    def short(self: tiles.Tiles, *arguments: Any) -> None:
        make(self, *arguments)
        plan = list(self._plan)
        plan[2] = plan[2] - 1
        self._plan = tuple(plan)  # type: ignore[assignment]

    monkeypatch.setattr(tiles.Tiles, "__init__", short)


def test_what_was_served_is_what_is_computed_again(tmp_path: Path) -> None:
    logs = [stream(3000)]
    folder = serve(tmp_path, logs, payments())
    for events in (decoded(logs), decoded(logs).drop(["_partition", "_offset"])):
        report = again(folder, events, payments())
        assert [one.feature for one in report.features] == list(NAMES)
        assert report.skewed == 0
        assert all(one.match == one.rows == report.compared > 2000 for one in report.features)
        assert (report.without_event, report.without_record, report.repeats) == (0, 0, 0)
        assert all(one.smape == 0 for one in report.features)


def test_decisions_by_a_version_that_does_not_take_a_field_are_none_of_its_rows(tmp_path: Path) -> None:
    class Few(Arithmetic):
        spec = ModelSpec("payments", tuple(Input(name, "number", ()) for name in NAMES if name != "amount"))

    logs = [stream(1000)]
    serve(tmp_path, [logs[0][:400]], payments(), Champion(1, Few(), None))
    folder = serve(tmp_path, logs, payments(), Champion(2, Arithmetic(), None))
    report = again(folder, decoded(logs), payments())
    by_few = report.repeats
    assert report.skewed == 0
    assert 200 < by_few < 400, "it is decided on again, and the first decision counts"
    assert {one.feature: one.rows for one in report.features} == {
        name: report.compared - (by_few if name == "amount" else 0) for name in NAMES
    }


def test_an_off_by_one_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [stream(3000)]
    with monkeypatch.context() as patched:
        off_by_one(patched)
        folder = serve(tmp_path, logs, payments())
    report = again(folder, decoded(logs), payments())
    wrong = counted(report, "mismatch")
    assert "amount_count_1h_by_card" in wrong
    assert wrong["amount_count_1h_by_card"] > 0
    assert all(name.endswith("_1h_by_card") for name in wrong)
    count = next(one for one in report.features if one.feature == "amount_count_1h_by_card")
    assert count.largest == 1
    assert 0 < (count.smape or 0) < 0.01
    assert (count.served, count.again) == (count.again - 1, count.again)  # type: ignore[operator]
    assert any(count.first in line for line in lines(report))


def test_in_order_of_arrival_several_partitions_skew_and_in_event_order_they_do_not(tmp_path: Path) -> None:
    log = stream(2000)
    logs = [[message for k, message in enumerate(log) if k % 3 == part] for part in range(3)]
    logs = [logs[0], logs[1], logs[2]]
    by = {}
    for order in ("arrival", "event"):
        folder = serve(tmp_path / order, logs, payments(), order=order)
        by[order] = again(folder, decoded(logs), payments())
    assert by["event"].skewed == 0
    assert by["event"].compared == by["arrival"].compared
    assert by["arrival"].skewed > 100


def test_missing_extra_and_unknown_events_are_counted(tmp_path: Path) -> None:
    logs = [stream(600)]
    folder = serve(tmp_path, [logs[0][:500]], payments())
    report = again(folder, decoded([logs[0][100:]]).drop(["_partition", "_offset"]), payments())
    assert report.without_event > 50
    assert report.without_record > 50
    assert counted(report, "extra")["amount_last_by_shop"] > 0


def test_the_command_says_it_in_text_and_json_and_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = [stream(2000)]
    pipeline, events = tmp_path / "pay.py", tmp_path / "events.parquet"
    pipeline.write_text(FILE)
    pq.write_table(pa.Table.from_pandas(decoded(logs).drop(["_partition", "_offset"]).to_pandas()), events)
    right = serve(tmp_path / "right", logs, payments())
    with monkeypatch.context() as patched:
        off_by_one(patched)
        wrong = serve(tmp_path / "wrong", logs, payments())
    options = ["--events", str(events), "--pipeline", f"{pipeline}:pay"]
    assert run_command(["skew", str(right), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skewed"] == 0
    assert run_command(["skew", str(wrong), *options, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["skewed"] == sum(one["mismatch"] + one["missing"] + one["extra"] for one in found["features"]) > 0
    assert run_command(["skew", str(wrong), *options]) == 1
    assert "amount_count_1h_by_card" in capsys.readouterr().out
    for named, said in (("nowhere.parquet", "expected a Parquet file that exists"), ("history", "pipeline payments has none")):
        assert run_command(["skew", str(right), "--events", named, "--pipeline", f"{pipeline}:pay"]) == 1
        assert said in capsys.readouterr().err
    short = tmp_path / "short.parquet"
    pq.write_table(pq.read_table(events).drop(["shop"]), short)
    assert run_command(["skew", str(right), "--events", str(short), "--pipeline", f"{pipeline}:pay"]) == 1
    assert "expected the fields of Payment, got no shop" in capsys.readouterr().err


def test_kinds_are_read_in_the_schemas_order(tmp_path: Path) -> None:
    """A file made elsewhere has texts; kinds that order events of one time are codes in the order of the schema."""
    table = decoded([stream(50)]).drop(["_partition", "_offset"])
    file = tmp_path / "events.parquet"
    pq.write_table(table.set_column(0, "kind", table["kind"].cast(pa.string())), file)
    found = events_of(payments(), settings(tmp_path), str(file), None)
    assert found["kind"].chunk(0).dictionary.to_pylist() == ["refund", "paid"]
    assert found["kind"].to_pylist() == table["kind"].to_pylist()


@pytest.mark.parametrize(
    ("served", "again", "expected"),
    [
        ([1.0, 2.0, None], [1.0, 2.0, None], (3, 0, 0, 0)),
        ([1.0, 2.0, 3.0], [1.0, 2.1, None], (1, 1, 0, 1)),
        ([None, 2.0, 3.0], [1.0, 2.0 + 1e-7, 3.0], (2, 0, 1, 0)),
        (["a", None, "c"], ["a", "b", "d"], (1, 1, 1, 0)),
        ([float("inf"), 1.0], [float("inf"), 1e9], (1, 1, 0, 0)),
    ],
)
def test_counts(served: list[Any], again: list[Any], expected: tuple[int, ...]) -> None:
    ids = pl.Series([f"id{k}" for k in range(len(served))])
    found = compare("f", pl.Series(served), pl.Series(again), ids)
    assert (found.match, found.mismatch, found.missing, found.extra) == expected


def test_smape_and_what_is_not_compared() -> None:
    ids = pl.Series(["a", "b", "c", "d"])
    served, computed = pl.Series([1.0, 0.0, 3.0, 9.0]), pl.Series([3.0, 0.0, 3.0, 1.0])
    found = compare("f", served, computed, ids, substituted=np.array([False, False, False, True]))
    assert found.smape == pytest.approx((2 * 2 / 4 + 0 + 0) / 3)
    assert (found.largest, found.first, found.served, found.again) == (2, "a", 1.0, 3.0)
    assert (found.match, found.mismatch, found.substituted) == (2, 1, 1)
    other = compare("f", served, computed, ids, own_row=pl.Series([1.0, None, None, 8.0]))
    assert (other.match, other.mismatch, other.other_row) == (2, 1, 1)
    with pytest.raises(ValueError, match="feature f: served as"):
        compare("f", served, pl.Series(["x"] * 4), ids)


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("feast") / "repo")


def test_stored_features_are_recorded_with_source_and_age_and_compared_as_of_their_rows(
    tmp_path: Path, repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the right time match, later ones are told as other rows, stale ones were substituted, unknown ones are null."""
    hours = {"a": (1, -1, 72), "b": (1,), "c": (2,), "nobody": (1,), None: (1,)}
    events = []
    for card, times in hours.items():
        for hour in times:
            at = np.datetime64(DAY.replace(tzinfo=None), "s") + np.timedelta64(hour, "h")
            event = {"kind": "paid", "at": f"{at}Z", "payment": len(events), "shop": "s", "amount": 1.0}
            events.append((at, json.dumps(event | ({"card": card} if card else {})).encode()))
    log: Log = [(b"k", value) for _, value in sorted(events)]
    pipeline = replace(payments(), features=[Fields("amount"), Stored("card_v1", stale={"card_history__mean": 0.5})])
    names = ("amount", "card_history__mean", "card_history__count")

    class Engine(Arithmetic):
        spec = ModelSpec("payments", tuple(Input(name, "number", ()) for name in names))

    options: dict[str, Any] = {"feast_repo": repo, "stored_patience_seconds": 60}
    folder = serve(tmp_path, [log], pipeline, Champion(1, Engine(), None), **options)
    frame = pl.read_parquet(folder / "worker-0" / "*.parquet")
    told = {
        row["event_id"]: (row["source__card_history"], row["age__card_history"], row["card_history__mean"])
        for row in frame.iter_rows(named=True)
    }
    assert told == {
        0: ("store", 3600.0, 2.5),
        1: ("store:future", -3600.0, 2.5),
        2: ("instead:stale", 72 * 3600.0, 0.5),
        3: ("store", 25 * 3600.0, pytest.approx(0.1)),
        4: ("store", 2 * 3600.0, None),
        5: ("none", None, None),
        6: ("none", None, None),
    }
    report = again(folder, decoded([log]), pipeline, **options)
    mean = next(one for one in report.features if one.feature == "card_history__mean")
    assert report.skewed == 0
    assert (mean.match, mean.other_row, mean.substituted) == (5, 1, 1)
    assert run_command(["inspect", "payments/pay/0/5", "--record", str(folder), "--no-event"]) == 0
    assert "store, 2:00:00 old" in capsys.readouterr().out


def harm(folder: Path) -> None:
    file = next(folder.glob("worker-0/00000001*.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(("damage", "code", "said"), [(lambda folder: None, 0, "whole"), (harm, 1, "BROKEN")])
def test_the_command_that_verifies(
    tmp_path: Path, damage: Callable[[Path], None], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = serve(tmp_path, [stream(100)], payments())
    serve(tmp_path, [stream(100)], payments())
    damage(folder)
    assert run_command(["record", "verify", str(folder)]) == code
    assert f"worker-0: 2 files, {'' if code else '1'}" in (out := capsys.readouterr().out)
    assert said in out
    assert run_command(["record", "verify", str(folder), "--json"]) == code
    assert json.loads(capsys.readouterr().out)[0]["files"] == 2
