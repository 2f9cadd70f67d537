"""The demo's flights: a year of events from October on, its years repeated for as long as messages are needed.

A decision is due for each event of kind `scheduled`, and its score is that of a run in memory over the same events in order. A
system whose answers carry no score (the relay) must pass the event on as it is.

The stored features come from a copy of our Feast repo in which they never go stale: the repeated years come later than their
bound, and a peer that reads them through Feast's SDK has no bound. So every system is given the same values.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from prometheus_client import CollectorRegistry

from bench.workloads import PAYLOADS, Checked, Job, Prepared, Progress, write_payloads
from features.expressions import compile_expression, mask
from models.flights_history import REPO, write_sources
from models.registry import resolve
from ops.demo import ready as train_if_missing
from ops.feast_repo import prepare as prepare_repo
from ops.replay import between, encode
from sinks.memory import MemorySink
from streams.flights import flights
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource

OCTOBER = datetime(2013, 10, 1, tzinfo=UTC)
NEW_IDS = 1_000_000
YEAR_DAYS = 371
SCORES = "scores.npy"
TOLERANCE = 1e-4
TTL, NO_TTL = "TTL = timedelta(days=120)", "TTL = timedelta(days=36_500)"
STEP = 250_000

JOB = """
from dataclasses import replace

from streams.flights import flights
from streams.pipeline import Decisions

job = replace(
    flights,
    events=replace(flights.events, topic="{input}"),
    sinks=[Decisions("{output}")],
    drift=replace(flights.drift, topic="{output}.drift"),
)
"""


class Flights:
    """The workload (bench/workloads/__init__.py)."""

    name = "flights"
    passes = '"kind":"scheduled"'

    def __init__(self) -> None:
        self._settings = JobSettings()
        self._folder = Path()
        self._pipeline = flights

    def ready(self, home: Path, progress: Progress) -> None:
        """Trains the model if the registry of `home` has none, and makes the Feast repo."""
        settings = JobSettings(home=home)
        train_if_missing(flights, settings, progress)
        self._folder = home.absolute() / "bench" / self.name
        repo = self._folder / "repo"
        copy_repo(REPO, repo)
        prepare_repo(repo, lambda doing: progress(doing, 0.0), write_sources, flights.model.until)
        self._settings = settings.model_copy(update={"feast_repo": repo, "registry": settings.registry_uri})

    @property
    def width(self) -> int:
        """The number of the champion's inputs."""
        return len(json.loads((self.model() / "model.json").read_text())["inputs"])

    def model(self) -> Path:
        """The champion's files."""
        return resolve(self._settings.registry_uri, flights.model.name, into=self._settings.home / "models").folder.absolute()

    def repo(self) -> Path:
        """The copy of our Feast repo."""
        return flights.repo(self._settings)

    def job(self) -> Job:
        """The demo's pipeline on other topics."""
        environment = {"HEADRACE_REGISTRY": self._settings.registry, "HEADRACE_FEAST_REPO": str(self.repo())}
        return Job(JOB, ("{input}.dead", "{output}.drift"), environment)

    def prepare(self, messages: int, progress: Progress) -> Prepared:
        """The first `messages` events; made and scored in steps, and kept."""
        rounded = STEP
        while rounded < messages:
            rounded *= 2
        made = sorted((int(path.name.split("-")[1]), path) for path in self._folder.glob(f"events-*-{self._version()}"))
        for count, folder in made:
            if count >= messages and (folder / SCORES).exists():
                return prepared(folder, messages)
        folder = self._folder / f"events-{rounded}-{self._version()}"
        progress(f"flights: making {rounded:,} events", 0.0)
        table = pa.concat_tables(repeated(rounded)).slice(0, rounded)
        keys, values = encode(table, flights.events.schema, flights.events.keys)
        batch = table.unify_dictionaries().combine_chunks().to_batches()[0]
        due = mask(compile_expression(flights.decide_on, batch.schema), batch)
        ids = np.where(due, batch[flights.events.id].fill_null(-1).to_numpy(zero_copy_only=False), -1).astype(np.int64)
        shutil.rmtree(folder, ignore_errors=True)
        write_payloads(folder, keys, values, ids)
        progress(f"flights: scoring {int(due.sum()):,} decisions in memory", 0.0)
        np.save(folder / SCORES, self._scores(list(zip(keys, values, strict=True)), ids))
        return prepared(folder, messages)

    def _version(self) -> str:
        """What the events and their scores depend on."""
        told = [self.model().name, flights.events.schema, flights.features, flights.decide_on, YEAR_DAYS]
        told += [path.read_text() for path in sorted(self.repo().glob("*.py"))]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]

    def _scores(self, log: list[tuple[bytes | None, bytes]], ids: np.ndarray) -> np.ndarray:
        """f32 [n]: the score of each event in a run in memory, NaN where none is due."""
        sink = MemorySink()
        with tempfile.TemporaryDirectory() as home:
            settings = self._settings.model_copy(update={"home": Path(home), "recovery": False, "metrics_port": 0})
            run(
                replace(self._pipeline, drift=None),
                settings,
                registry=CollectorRegistry(),
                source=MemorySource([log]),
                sink=sink,
            )
        got, scores = read(sink.values(self._pipeline.sinks[0].topic))
        order = np.argsort(got)
        rows = np.flatnonzero(ids >= 0)
        expected = np.full(len(ids), np.nan, np.float32)
        if not np.array_equal(got[order], np.sort(ids[rows])):
            raise ValueError(f"{self.name}: expected {len(rows):,} decisions of the run in memory, got {len(got):,}")
        expected[rows] = scores[order][np.searchsorted(got[order], ids[rows])]
        return expected

    def check(self, prepared: Prepared, values: Sequence[bytes], *, ordered: bool) -> Checked:
        """Scores within 1e-4 where there are any and the messages were read in order; else a score there is, or the event's
        own bytes."""
        ids, scores = read(values)
        expected, events = _expected(prepared)
        due = prepared.ids()
        rows = np.flatnonzero(due >= 0)
        rows = rows[np.argsort(due[rows])]
        place = np.clip(np.searchsorted(due[rows], ids), 0, max(0, len(rows) - 1))
        known = (due[rows][place] == ids) & (ids >= 0) if len(rows) else np.zeros(len(ids), np.bool_)
        row = rows[place] if len(rows) else np.zeros(len(ids), np.int64)
        scored = ~np.isnan(scores)
        with np.errstate(invalid="ignore"):
            close = np.abs(scores - expected[row]) <= TOLERANCE if ordered else (scores >= 0) & (scores <= 1)
        wrong = ~known | (scored & ~close)
        passed_on = np.flatnonzero(known & ~scored)
        if len(passed_on):
            same = pa.compute.equal(
                pa.array([values[k] for k in passed_on.tolist()], pa.large_binary()), events.take(row[passed_on])
            )
            wrong[passed_on] = ~same.to_numpy(zero_copy_only=False)
        why = _why(values, scores, expected[row], known, wrong)
        return Checked(np.where(known, ids, -1), wrong, why, known & ~scored)


def _why(values: Sequence[bytes], scores: np.ndarray, expected: np.ndarray, known: np.ndarray, wrong: np.ndarray) -> str:
    if not wrong.any():
        return ""
    k = int(np.argmax(wrong))
    said = "an answer that is due" if not known[k] else f"score {expected[k]:.6f}" if scores[k] == scores[k] else "the event"
    return f"expected {said}, got {values[k][:300]!r}"


def _expected(prepared: Prepared) -> tuple[np.ndarray, pa.LargeBinaryArray]:
    scores = np.load(prepared.folder / SCORES, mmap_mode="r")[: prepared.messages]
    table = pa.ipc.open_file(pa.memory_map(str(prepared.payloads))).read_all()
    return scores, table.column("value").slice(0, prepared.messages)


def prepared(folder: Path, messages: int) -> Prepared:
    """The first `messages` of a folder that is made."""
    with pa.memory_map(str(folder / PAYLOADS)) as file:
        values = pa.ipc.open_file(file).read_all().column("value").slice(0, messages)
        mean = pa.compute.mean(pa.compute.binary_length(values)).as_py()
    return Prepared(folder, messages, round(mean, 1))


def read(values: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """ids i64 [n] (-1: none) and scores f64 [n] (NaN: none) of output messages."""
    text = pl.Series(values, dtype=pl.Binary).cast(pl.String, strict=False)
    ids = text.str.extract(r'"(?:event_id|flight_id)":\s*(\d{1,18})').cast(pl.Int64, strict=False).fill_null(-1)
    scores = text.str.extract(r'"score":\s*([-+.0-9eE]+|null|NaN)').cast(pl.Float64, strict=False)
    without = text.str.contains(r'"score":\s*(?:null|NaN)').fill_null(False)
    return ids.to_numpy(), np.where(without.to_numpy(), -1.0, scores.to_numpy())


def repeated(messages: int) -> Iterator[pa.Table]:
    """The history from October on, then the whole of it again, each time 371 days later and with other flight ids."""
    assert flights.model.history is not None
    history = flights.model.history()
    time, id = flights.events.time, flights.events.id
    first = between(history, time, OCTOBER, None)
    yield first
    count, again = first.num_rows, 0
    while count < messages:
        again += 1
        frame = pl.DataFrame(history).with_columns(
            pl.col(time) + pl.duration(days=YEAR_DAYS * again), pl.col(id) + NEW_IDS * again
        )
        yield frame.to_arrow().select(history.schema.names).cast(history.schema)
        count += history.num_rows


def copy_repo(source: Path, target: Path) -> None:
    """The definitions of a Feast repo, without its bound on freshness. Raises ValueError if it does not say it as expected."""
    target.mkdir(parents=True, exist_ok=True)
    bounded = 0
    for path in [*source.glob("*.py"), *source.glob("*.yaml")]:
        text = path.read_text()
        bounded += TTL in text
        new, file = text.replace(TTL, NO_TTL), target / path.name
        if not file.exists() or file.read_text() != new:
            file.write_text(new)
    if bounded != 1:
        raise ValueError(f"Feast repo {source}: expected one file with `{TTL}`, got {bounded}")


workload = Flights()
