"""A recovery store is looked into, written anew, moved, exported and dropped; decisions are those of one left alone."""

import json
import pickle
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import test_exactly_once as once
from hypothesis import example, given
from hypothesis import strategies as st
from payments import CHAMPION, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry
from test_rebuild import bare, going, half, quick, spread, whole_of
from test_snapshots import GROUPS, cut, everything

from kernels.hashing.cpu import hash_column
from ops.cli import run_command
from ops.state_export import export
from ops.state_move import drop, lost, move
from ops.state_store import look, tell
from sinks.memory import MemorySink
from sinks.memory_log import MemoryLane, MemoryLog
from streams.migrate import cut_again, migrate
from streams.pipeline import Pipeline
from streams.positions import kept
from streams.run import run
from streams.shards import Shards
from streams.source import MemorySource
from streams.start import RecoveryError, store_of
from streams.store import Store
from streams.store_writer import partition_of

LOGS = spread(stream(3000), 2)
UNTIL = 900


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, MemorySink]]:
    """A job that was stopped halfway, by order: its home and what it had sent."""
    found = {}
    for order in ("arrival", "event"):
        home, sink = tmp_path_factory.mktemp(order), MemorySink()
        half(home, quick(order), LOGS, sink, UNTIL)
        found[order] = home, sink
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return whole_of(tmp_path_factory.mktemp("whole"), quick("event"), LOGS)


def copied(made: dict[str, tuple[Path, MemorySink]], order: str, home: Path) -> tuple[Path, MemorySink]:
    shutil.copytree(made[order][0], home, dirs_exist_ok=True)
    sink = MemorySink()
    sink.topics = {topic: list(pairs) for topic, pairs in made[order][1].topics.items()}
    return home, sink


def goes_on(home: Path, pipeline: Pipeline, sink: MemorySink, undisturbed: dict[str, Any]) -> None:
    """Runs to the end: as if nothing had been, and no snapshot is where Bytewax would not look for it."""
    sent = len(sink.values("verdicts"))
    going(home, pipeline, LOGS, sink)
    assert bare(decisions(sink)) == undisturbed
    assert len(sink.values("verdicts")) > sent
    with Store(store_of(pipeline, settings(home))) as store:
        for part in store.parts:
            with closing(sqlite3.connect(part.path)) as file:
                for step, key in file.execute("SELECT DISTINCT step_id, state_key FROM snaps"):
                    assert partition_of(step, key, store.count) == part.index


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "partitions"), [(8, 3), (3, 1), (16, 2)])
def test_written_anew_it_decides_as_if_nothing_had_been(
    tmp_path: Path, made: dict[str, Any], undisturbed: dict[str, Any], shards: int, partitions: int
) -> None:
    home, sink = copied(made, "event", tmp_path)
    pipeline, job = quick("event", shards=shards), settings(home)
    before = look(quick("event"), job, "payments")
    done = migrate(pipeline, job, "payments", partitions)
    assert (done.shards, done.partitions) == ((8, shards), (1, partitions))
    after = look(pipeline, job, "payments")
    for same in ("positions", "entities", "resume_epoch", "executions", "workers", "state_begins"):
        assert after[same] == before[same]
    assert after["goes_on"]
    assert after["partitions"] == {"count": partitions, "here": list(range(partitions)), "missing": []}
    assert after["bytes"]["replaced"] == after["unfinished_snapshots"] == 0
    assert (home / "recovery" / "payments.old" / "part-0.sqlite3").exists()
    goes_on(home, pipeline, sink, undisturbed)


def test_moved_to_several_homes_and_back_nothing_is_lost(
    tmp_path: Path, made: dict[str, Any], undisturbed: dict[str, Any]
) -> None:
    home, sink = copied(made, "event", tmp_path / "home")
    pipeline, homes = quick("event"), [tmp_path / "pod-0", tmp_path / "pod-1"]
    with pytest.raises(RecoveryError, match="2 folders, and 1 partitions: --partitions 2 makes one for each"):
        move(pipeline, settings(home), "payments", [], homes)
    safe = kept(store_of(pipeline, settings(home)), "payments")
    assert move(pipeline, settings(home), "payments", [], homes, 3) == {str(homes[0]): [0, 2], str(homes[1]): [1]}
    assert not store_of(pipeline, settings(home)).exists()
    found = look(pipeline, settings(homes[1]), "payments")
    assert found["goes_on"]
    assert found["partitions"] == {"count": 3, "here": [1], "missing": [0, 2]}
    with pytest.raises(RecoveryError, match=r"expected all 3 partitions .* got 1: see --from"):
        move(pipeline, settings(homes[1]), "payments", [], [home])
    with pytest.raises(RecoveryError, match="is there already: headrace state drop payments --home"):
        move(pipeline, settings(home), "payments", homes, [homes[0]])
    assert move(pipeline, settings(home), "payments", homes[::-1], [home]) == {str(home): [0, 1, 2]}
    assert kept(store_of(pipeline, settings(home)), "payments") == safe
    goes_on(home, pipeline, sink, undisturbed)


def test_what_is_shown_is_what_there_is(tmp_path: Path, made: dict[str, Any]) -> None:
    home, _ = copied(made, "arrival", tmp_path)
    pipeline, job = quick("arrival"), settings(home)
    found = look(pipeline, job, "payments")
    safe = kept(store_of(pipeline, job), "payments")
    assert {int(number): at["decided"] for number, at in found["positions"].items()} == safe
    read = [json.loads(value) for number, end in safe.items() for _, value in LOGS[number][:end]]
    cards = {event["card"] for event in read if "card" in event}
    shops = {event["shop"] for event in read}
    assert sum(shard["entities"]["card"] for shard in found["shards"]) == len(cards)
    assert sum(shard["entities"]["shop"] for shard in found["shards"]) == len(shops)
    assert found["entities"] == len(cards) + len(shops)
    steps = found["bytes"]["steps"]
    assert found["bytes"]["current"] == sum(step["current"] for step in steps.values())
    assert sum(shard["bytes"] for shard in found["shards"]) == steps["payments.features"]["current"]
    assert found["bytes"]["files"] >= found["bytes"]["current"] + found["bytes"]["replaced"] + found["bytes"]["spare"]
    assert all(step["snapshots"] <= 2 * step["keys"] for step in steps.values())  # the others are gone
    said = tell(json.loads(json.dumps(found)))
    for words in ("partitions   1", f"at epoch {found['resume_epoch']}", "the pipeline goes on with it", "0", "at_least_once"):
        assert words in said


def test_exported_features_are_those_of_the_events_that_were_read(tmp_path: Path, made: dict[str, Any]) -> None:
    home, _ = copied(made, "arrival", tmp_path)
    pipeline, job = quick("arrival"), settings(home)
    assert export(pipeline, job, "payments", tmp_path / "out") == {"card": 40, "shop": 9}
    told = json.loads((tmp_path / "out" / "store.json").read_text())
    at = np.datetime64(told["features_at"].rstrip("Z"))
    rows = pl.read_parquet(tmp_path / "out" / "card.parquet")
    safe = kept(store_of(pipeline, job), "payments")
    sums: dict[str, list[float]] = {}
    for number, end in safe.items():
        for _, value in LOGS[number][:end]:
            event = json.loads(value)
            since = at.astype("datetime64[s]") - np.datetime64(event["at"][:-1])
            if "card" in event and since <= np.timedelta64(20, "m"):
                sums.setdefault(event["card"], []).append(event["amount"])
    hashes = hash_column(pa.array(list(sums)))
    assert hashes.tolist() != sorted(hashes.tolist())
    seen = {row["entity_hash"]: row for row in rows.iter_rows(named=True)}
    assert len(seen) == rows.height == 40
    for card, hashed in zip(sums, hashes.tolist(), strict=True):
        row = seen.pop(hashed)
        assert row["amount_sum_20m_by_card"] == pytest.approx(sum(sums[card]))
        assert row["amount_count_20m_by_card"] == len(sums[card])
        assert row["shard"] == hashed % 8
    assert all(row["amount_count_20m_by_card"] == 0 for row in seen.values())


def test_dropped_it_says_what_is_lost_and_is_kept_once(tmp_path: Path, made: dict[str, Any]) -> None:
    home, _ = copied(made, "arrival", tmp_path)
    pipeline, job = quick("arrival"), settings(home)
    said = lost(pipeline, job, "pay.py:payments")
    assert "the state of 49 entities, positions 0@" in said
    assert "headrace run pay.py:payments --rebuild" in said
    old = drop(pipeline, job)
    assert old.name == "payments.old"
    assert (old / "made").exists()
    assert not store_of(pipeline, job).exists()
    with pytest.raises(RecoveryError, match=r"there is no recovery store .*: headrace run payments makes one"):
        lost(pipeline, job, "payments")


def test_what_needs_the_topic_is_not_migrated(tmp_path: Path, made: dict[str, Any]) -> None:
    home, _ = copied(made, "arrival", tmp_path)
    changed = replace(quick("arrival"), features=quick().features[1:], shards=3)
    with pytest.raises(RecoveryError, match=r"it has state of Window.*this needs the topic: headrace run pay --rebuild"):
        migrate(changed, settings(home), "pay")
    with pytest.raises(RecoveryError, match=r"it has state of Window.*export it with the pipeline it was made for"):
        export(changed, settings(home), "pay", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert look(changed, settings(home), "pay")["goes_on"] is False


def test_what_is_staged_is_shown_and_written_anew_committed_once(tmp_path: Path) -> None:
    log, written, whole = stream(300), MemoryLog(), MemoryLog()
    once.start(tmp_path / "whole", [log], whole)
    with pytest.raises(once.CrashError):
        once.start(tmp_path / "job", [log], written, crash=("commit.before", 4))
    pipeline, job = replace(payments(), delivery="exactly_once", shards=5), settings(tmp_path / "job")
    (position,) = look(replace(pipeline, shards=8), job, "payments")["positions"].values()
    assert position["staged"] > 0
    assert position["safe"] is None
    before = len(once.decided(written))
    migrate(pipeline, job, "payments", 3)
    assert list(look(pipeline, job, "payments")["positions"].values()) == [position]
    source, lanes = MemorySource([log], rows=10), lambda shard: MemoryLane(written, str(shard))
    run(
        pipeline,
        settings(tmp_path / "job", recovery=True, epoch_seconds=0.001),
        registry=CollectorRegistry(),
        source=source,
        champion=CHAMPION,
        lanes=lanes,
    )
    assert before < len(once.decided(written))
    assert once.decided(written) == once.decided(whole)
    (position,) = look(pipeline, job, "payments")["positions"].values()
    assert position == {"read": 300, "decided": 300, "safe": position["safe"], "staged": position["staged"]}


def test_partitions_that_are_added_to_the_topic_are_read_from_their_beginning(tmp_path: Path, made: dict[str, Any]) -> None:
    home, sink = copied(made, "arrival", tmp_path)
    logs = [*LOGS, stream(200, seed=1)]
    going(home, quick("arrival"), logs, sink)
    paid = {
        f"payments/pay/{number}/{offset}"
        for number, log in enumerate(logs)
        for offset, (_, value) in enumerate(log)
        if b'"paid"' in value
    }
    assert decisions(sink).keys() == paid


@hypothesis.settings(max_examples=12)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32), st.integers(1, 300))
@example(3, 3, 0, 50)
def test_cut_into_other_shards_the_state_is_the_same(before: int, after: int, seed: int, events: int) -> None:
    rng, now = np.random.default_rng(seed), 1_700_000_000
    shards = Shards(GROUPS, before, None)
    for state in shards.states:
        state.update(cut(rng, now, events, 0, 400), (now - 5) * 1_000_000)
    again = Shards(GROUPS, after, None)
    for page in cut_again(shards, GROUPS, after):
        again.resume(pickle.loads(pickle.dumps(page)))
    again.ready()
    np.testing.assert_array_equal(everything(again, now), everything(shards, now))
    assert [state.entities[0] for state in again.states] == [state.entities[0] for state in shards.states]


def test_the_commands(
    tmp_path: Path, made: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(made, "arrival", tmp_path / "home")
    (tmp_path / "pay.py").write_text('from test_rebuild import quick\njob = quick("arrival", shards=3)\n')
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str, code: int = 0) -> str:
        assert run_command(["state", *arguments]) == code
        out, err = capsys.readouterr()
        assert bool(err) == bool(code)
        return out or err

    home = "--home", "home"
    assert "the pipeline does not go on with it" in said("pay.py:job", *home)
    assert json.loads(said("--json", "pay.py:job", *home))["goes_on"] is False
    assert json.loads(said("migrate", "pay.py:job", *home, "--partitions", "2", "--json"))["shards"] == [8, 3]
    assert json.loads(said("show", "pay.py:job", *home, "--json"))["goes_on"] is True
    assert "0 → 0" not in said("migrate", "pay.py:job", *home)
    assert json.loads(said("export", "pay.py:job", "out", *home, "--json"))["rows"] == {"card": 40, "shop": 9}
    assert said("export", "pay.py:job", "out", *home, "--at", "2024-01-02T13:00:00").startswith("out: store.json, card.parquet")
    assert said("move", "pay.py:job", *home, "--to", "a", "--to", "b") == "a: partition 0\nb: partition 1\n"
    assert json.loads(said("move", "pay.py:job", "--from", "a", "--from", "b", "--to", "c", "--json")) == {"c": [0, 1]}
    assert "no recovery store" in said("pay.py:job", *home, code=1)
    assert "c/recovery/payments.old" in said("drop", "pay.py:job", "--home", "c", "--yes")
    assert all(word in said("--help") for word in ("show", "check", "export", "migrate", "move", "drop"))


def test_whether_another_version_goes_on_is_said_by_the_exit_code(
    tmp_path: Path, made: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, _ = copied(made, "arrival", tmp_path / "home")
    changes = {"same": "", "other": ", features=[*quick().features, ADDED]", "shards": ", shards=3"}
    for name, change in changes.items():
        text = f'from test_rebuild import ADDED, quick\njob = quick("arrival"{change})\n'
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str, code: int = 0) -> tuple[str, str]:
        assert run_command(["state", "check", *arguments]) == code
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    store, at = home / "recovery" / "payments", ("--home", "home")
    before = {file: file.read_bytes() for file in store.iterdir() if not file.name.endswith(("-wal", "-shm"))}
    assert said("same.py:job", *at) == (f"payments: goes on with {store}\n", "")
    assert json.loads(said("same.py:job", *at, "--json")[0]) == {"store": str(store), "goes_on": True, "differs": None}
    out, err = said("other.py:job", *at, code=1)
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("headrace: recovery store home/recovery/payments: it has nothing for Window(")
    assert "headrace run other.py:job --rebuild makes the state anew" in err
    out, err = said("shards.py:job", *at, "--json", code=1)
    assert not err
    assert "headrace state migrate shards.py:job" in json.loads(out)["differs"]
    after = {file: file.read_bytes() for file in store.iterdir() if not file.name.endswith(("-wal", "-shm"))}
    assert after == before, "nothing is written"

    assert said("other.py:job", "--home", "nowhere") == ("payments: there is no store to go on with\n", "")
    monkeypatch.setenv("HEADRACE_RECOVERY", "false")
    assert json.loads(said("other.py:job", *at, "--json")[0])["store"] is None
