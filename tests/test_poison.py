"""A message that kills the job is found by what was in work when it died, and set aside; nothing else is lost or doubled."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from bench.proving.job import ALL as SHARED
from bench.proving.job import COUNT, SUM, Tally, event, pipeline
from features.schema import Schema, Text
from models.spec import Input, ModelSpec
from ops.restart import Patience, pause
from ops.suspects import Found, Kept, Search, after, overlap
from sinks.memory import MemorySink
from streams.decode import Decoded, Decoder, json_decoder
from streams.job import Champion
from streams.pipeline import Pipeline
from streams.poison import CODE
from streams.replays import ORIGINAL
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource
from streams.trail import ALL, Trail

KEYS = 3


class DeadError(Exception):
    """Stands for a process that dies."""


class Nothing:
    """An engine that scores everything with 0."""

    spec = ModelSpec("faults", tuple(Input(name, "number", ()) for name in ("n", COUNT, SUM, SHARED)))
    kind = "nothing"

    def warm(self) -> None: ...

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(sizes, 0.0)

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        return np.zeros(len(matrix), np.float32)

    def close(self) -> None: ...


def real(batch: pa.RecordBatch) -> bool:
    """Whether it has real messages."""
    return batch.num_rows > 0 and batch.column("_key")[0].as_py() != b"rehearsal"


def dying(poison: set[tuple[int, int]], deaths: list[tuple[int, int]]) -> Decoder:
    """A decoder that dies of the messages at these places."""
    decoder = json_decoder(Tally, topic="dying-in")

    def decode(batch: pa.RecordBatch) -> Decoded:
        places = zip(batch.column("_partition").to_pylist(), batch.column("_offset").to_pylist(), strict=True)
        if hit := poison & set(places) if real(batch) else set():
            deaths.append(min(hit))
            raise DeadError(str(hit))
        return decoder(batch)

    return decode


def lived(job: Pipeline, home: Path, logs: Sequence[Sequence[Any]], rows: int, most: int = 40) -> tuple[MemorySink, Kept]:
    """Runs a job again and again until it lives to the end of its logs, as ops/restart.py does; what it wrote in all lives."""
    said = JobSettings(home=home, recovery=True, metrics_port=0, epoch_seconds=0.01)
    sink, kept = MemorySink(), Kept.load(home / "deaths.json")
    for _ in range(most):
        search = kept.search
        careful = search if search and search.piece else None
        trail = Trail(home / "trail", careful.ranges if careful else None, careful.piece if careful else ALL)
        trail.clear()
        try:
            run(
                job,
                said,
                registry=CollectorRegistry(),
                source=MemorySource(logs, rows=rows),
                sink=sink,
                champion=Champion(1, Nothing(), None),
                trail=trail,
                aside=kept.aside,
            )
            return sink, kept
        except DeadError:
            kept.search, found = after(kept.search, trail.worked())
            if found:
                kept.aside[found.partition, found.offset] = "death"
            kept.save()
            kept = Kept.load(home / "deaths.json")
    raise AssertionError(f"still dying after {most} lives: {kept}")


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=6, phases=[Phase.generate])
def test_whatever_messages_kill_are_set_aside_and_all_others_decided_as_if_they_had_not_come(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 120), min_size=1, max_size=3), "messages of each partition")
    places = [(partition, offset) for partition, size in enumerate(sizes) for offset in range(size)]
    poison = data.draw(st.sets(st.sampled_from(places), max_size=2), "poison")
    rows = data.draw(st.sampled_from([1, 7, 64]), "rows of a poll")
    deaths = list[tuple[int, int]]()
    original = pipeline("dying")
    job = replace(original, events=replace(original.events, decoder=dying(poison, deaths)))
    logs = [[(None, event(f"p{p}-k{n % KEYS}", "s", n)) for n in range(size)] for p, size in enumerate(sizes)]
    sink, kept = lived(job, tmp_path_factory.mktemp("home"), logs, rows)
    assert set(kept.aside) == poison
    letters = {(one["partition"], one["offset"]): one for one in map(orjson.loads, sink.values("dying-in.dead"))}
    assert set(letters) == poison
    assert all(one["code"] == CODE for one in letters.values())
    first = dict[str, dict[str, Any]]()
    for one in map(orjson.loads, sink.values("dying-out")):
        first.setdefault(one["decision_id"], one)
    expected = dict[str, int]()
    for partition, size in enumerate(sizes):
        seen = [0] * KEYS
        for n in range(size):
            if (partition, n) not in poison:
                expected[f"dying/dying-in/{partition}/{n}"] = seen[n % KEYS]
                seen[n % KEYS] += 1
    assert {name: one["features"][COUNT] for name, one in first.items()} == expected
    assert len(deaths) <= 12 * len(poison)


def test_a_death_that_does_not_come_again_sets_nothing_aside(tmp_path: Path) -> None:
    """Each message kills once, on its own bad day, and none is to blame."""
    once = {(0, n) for n in range(0, 60, 9)}
    decoder, killed = json_decoder(Tally, topic="dying-in"), set[tuple[int, int]]()

    def decode(batch: pa.RecordBatch) -> Decoded:
        hit = {(0, n) for n in batch.column("_offset").to_pylist()} & (once - killed)
        if hit and real(batch):
            killed.add(min(hit))
            raise DeadError("bad day")
        return decoder(batch)

    original = pipeline("dying")
    job = replace(original, events=replace(original.events, decoder=decode))
    sink, kept = lived(job, tmp_path, [[(None, event("k", "s", n)) for n in range(60)]], 7)
    assert not kept.aside
    assert killed == once
    assert len({one["decision_id"] for one in map(orjson.loads, sink.values("dying-out"))}) == 60


def test_a_message_is_set_aside_after_two_deaths_of_its_own_and_not_before() -> None:
    search, found = after(None, {0: (100, 1000), 1: (5, 6)})
    assert (search, found) == (Search({0: (100, 1000), 1: (5, 6)}), None)
    search, found = after(search, {0: (100, 500)})
    assert search == Search({0: (100, 500)}, 25, 2)
    assert not found
    search, found = after(search, {0: (125, 150)})
    assert search == Search({0: (125, 150)}, 2, 3)
    assert not found
    search, found = after(search, {0: (131, 133)})
    assert search == Search({0: (131, 133)}, 1, 4)
    assert not found
    search, found = after(search, {0: (132, 133)})
    assert search == Search({0: (132, 133)}, 1, 5, 1)
    assert not found
    assert after(search, {}) == (search, None), "a death with nothing in work says nothing"
    assert after(search, {0: (140, 141)}) == (Search({0: (140, 141)}), None), "it has passed: another death, another search"
    assert after(search, {0: (132, 133)}) == (None, Found(0, 132, 6))


def test_the_trail_outlives_its_writer_and_lets_one_partition_read_at_a_time(tmp_path: Path) -> None:
    writer = Trail(tmp_path / "trail", {1: (10, 12), 0: (3, 5)}, 2)
    for partition, position in ((0, 3), (1, 8), (2, 7)):
        writer.begins(partition, position)
    assert [writer.most(partition, True) for partition in (1, 2, 0)] == [0, 0, 2]
    writer.polled(0, 3, 5)
    assert writer.most(0, False) == 0
    assert Trail(tmp_path / "trail").worked() == {0: (3, 5)}
    writer.durable(0, 5)
    assert [writer.most(partition, True) for partition in (0, 1, 2)] == [0, 2, 0]
    writer.durable(1, 12)
    assert [writer.most(partition, False) for partition in (0, 1, 2)] == [ALL] * 3
    assert overlap({0: (1, 5), 1: (0, 9)}, {0: (5, 9), 1: (3, 20)}) == {1: (3, 9)}


def test_a_restarter_waits_longer_each_time_in_vain_and_has_patience_for_so_many_deaths_within_a_while() -> None:
    assert [pause(times) for times in (0, 1, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 2, 30]
    patience = Patience(2, 10)
    assert [patience.ends(now) for now in (0, 1, 11.5, 12, 13)] == [False, False, False, False, True]


def raw(offsets: Sequence[int], originals: Sequence[int] | None = None) -> pa.RecordBatch:
    """A raw batch of partition 0 with messages at these offsets."""
    n = len(offsets)
    columns: dict[str, pa.Array] = {
        "_key": pa.array([b"k"] * n, pa.binary()),
        "_value": pa.array([event("k", "s", offset) for offset in offsets], pa.binary()),
        "_partition": pa.array([0] * n, pa.int32()),
        "_offset": pa.array(offsets, pa.int64()),
        "_appended_at": pa.array([0] * n, pa.int64()),
        "_polled_at": pa.array([0] * n, pa.int64()),
    }
    return pa.RecordBatch.from_pydict(columns | ({} if originals is None else {ORIGINAL: pa.array(originals, pa.int64())}))


def test_a_poisonous_replay_is_set_aside_under_its_first_name_and_a_corrected_one_is_worked_on() -> None:
    topic, said = pipeline("dying").events, JobSettings()
    decode = topic.decode("dying/decode", said, aside={(0, 5): "two deaths"})
    found = decode(raw([3, 4, 5, 6]))
    assert found.rows.column("_offset").to_pylist() == [3, 4, 6]
    assert found.dead.column("reason").to_pylist() == [
        "dying/decode: expected a message that can be worked on, got two deaths (dying-in/0@5)"
    ]
    corrected = decode(raw([7, 8, 9], [7, 5, 9]))
    assert corrected.rows.column("_offset").to_pylist() == [7, 8, 9]
    assert corrected.rows.column(ORIGINAL).to_pylist() == [7, 5, 9]
    again = topic.decode("dying/decode", said, aside={(0, 8): "two deaths"})(raw([7, 8, 9], [7, 5, 9]))
    assert again.rows.column("_offset").to_pylist() == [7, 9]
    assert again.dead.column("_offset").to_pylist() == [8]
    assert again.dead.column(ORIGINAL).to_pylist() == [5]


def test_poison_of_a_topic_with_secrets_shows_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "ab" * 32)
    topic = pipeline("dying").events
    fields = topic.schema.fields | {"key": Text(max_bytes=20, secret=True)}
    closed = replace(topic, schema=Schema("Tally", version=1, fields=fields))
    said = JobSettings(secret_key=SecretStr("env:TEST_KEY"))
    dead = closed.decode("dying/decode", said, aside={(0, 5): "two deaths"})(raw([4, 5])).dead
    assert dead.column("code").to_pylist() == [CODE]
    assert "two deaths" in dead.column("reason")[0].as_py()
    assert dead.column("closed").to_pylist() == [True]
    assert [dead.column(name)[0].as_py() for name in ("value", "_key", "sha256")] == [None, None, None]


def test_suspects_are_past_when_all_of_them_are_durable(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "trail")
    trail.begins(0, 5)
    trail.begins(2, 9)
    assert not trail.past({0: (1, 6), 2: (1, 9)})
    trail.durable(0, 6)
    assert trail.past({0: (1, 6), 2: (1, 9)})


def test_a_torn_file_of_deaths_is_said_and_named(tmp_path: Path) -> None:
    (tmp_path / "deaths.json").write_text('{"search": nu')
    with pytest.raises(ValueError, match=r"deaths.json: expected what is known of deaths, got no JSON .*: delete it"):
        Kept.load(tmp_path / "deaths.json")
