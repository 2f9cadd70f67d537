"""The card payments of docs/examples/payments: a million cards, Avro by a schema registry, a stored profile of each card.

Every message is a payment of a world that the model has not seen, in order of time, and is decided on; its score is that of a
run in memory over the same messages. The model is trained on a small world, in a home of its own. The registry is the fake of
the tests, in this process. A relay has no place here: its answers, the messages, are not read.
"""

import hashlib
import importlib
import sqlite3
import struct
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bench.workloads import Job, Prepared, Progress, write_payloads
from bench.workloads.flights import SCORES, Flights, prepared
from models.registry import ModelNotFound, resolve
from ops.avro_messages import avro_schema, encode_avro, register
from ops.examples import EXAMPLES
from ops.fake_registry import fake_registry
from ops.train import prepare_stored, train
from streams.pipeline import Pipeline
from streams.settings import JobSettings

FOLDER = EXAMPLES / "payments"
CARDS, DAYS = 1_000_000, 1
SEED = 9
SMALL = {"cards": 6_000, "days": 15, "validation_cards": 100, "validation_days": 1, "held_out_seed": SEED}
PATIENCE = 60.0
PROFILE = ("typical_amount", "payments_a_day", "age_days")
KNOWN = "all-cards"
HEAD, FLOAT = 20, b"\x35"
"""The bytes of a key before the length of its text; and those before a float in a value."""

JOB = """
import sys
from dataclasses import replace

sys.path.insert(0, "{folder}")
from pipeline import pipeline
from streams.pipeline import Decisions

job = replace(
    pipeline,
    events=replace(pipeline.events, topic="{input}"),
    sinks=[Decisions("{output}")],
    drift=replace(pipeline.drift, topic="{output}.drift"),
)
"""


class Payments(Flights):
    """The workload (bench/workloads/__init__.py). cards: of the world that pays."""

    name = "payments"
    passes = ""

    def __init__(self, cards: int = CARDS, days: int = DAYS) -> None:
        super().__init__()
        self._cards, self._days = cards, days
        self._registry = fake_registry()
        self._address = ""

    def ready(self, home: Path, progress: Progress) -> None:
        """Writes the cards' profiles to the Feast store, and trains the model, where that was not done before."""
        sys.path.insert(0, str(FOLDER))
        self._samples: Any = importlib.import_module("samples")
        made: Pipeline = importlib.import_module("pipeline").pipeline
        size = self._samples.Size(**SMALL, held_out_cards=self._cards, held_out_days=self._days)
        self._later = size.trained_on
        self._folder = home.absolute() / "bench" / f"{self.name}-{self._cards}"
        repo = self._folder / "repo"
        repo.mkdir(parents=True, exist_ok=True)
        for path in (FOLDER / "feature_repo").glob("*.*"):
            (repo / path.name).write_text(path.read_text())
        few = replace(size, held_out_seed=SEED + 1, held_out_cards=100, held_out_days=1)
        model = replace(made.model, history=partial(self._samples.history, few), until=f"{size.trained_on}")
        self._pipeline = replace(made, model=model, feast_repo=repo, sources=self._samples.profiles(few))
        self._address = self._address or self._registry.__enter__().address
        self._settings = JobSettings(
            home=self._folder,
            registry=f"sqlite:///{self._folder / 'mlflow.db'}",
            schema_registry=self._address,
            stored_entities=2 * self._cards + 10_000,
            stored_patience_seconds=PATIENCE,
        )
        prepare_stored(self._pipeline, self._settings, progress)
        try:
            self.model()
        except ModelNotFound:
            train(self._pipeline, self._settings, seed=0, until=model.trained_until, progress=progress)
        if not (repo / "data" / KNOWN).exists():
            progress(f"payments: writing the profiles of {self._cards:,} cards", 0.0)
            write_profiles(repo, self._samples.profiles_of(self._samples.make_world(SEED, self._cards), size.trained_on))
            (repo / "data" / KNOWN).touch()

    def model(self) -> Path:
        """The champion's files."""
        name = self._pipeline.model.name
        return resolve(self._settings.registry_uri, name, into=self._folder / "models").folder.absolute()

    def repo(self) -> Path:
        """The copy of the example's Feast repo, with the profiles of all cards."""
        return self._folder / "repo"

    def job(self) -> Job:
        """The example's pipeline on other topics."""
        environment = {
            "HEADRACE_REGISTRY": self._settings.registry_uri,
            "HEADRACE_FEAST_REPO": str(self.repo()),
            "HEADRACE_SCHEMA_REGISTRY": self._address,
            "HEADRACE_STORED_ENTITIES": str(self._settings.stored_entities),
            "HEADRACE_STORED_PATIENCE_SECONDS": str(PATIENCE),
        }
        return Job(JOB.replace("{folder}", str(FOLDER)), ("{input}.dead", "{output}.drift"), environment, self._pipeline.shards)

    def prepare(self, messages: int, progress: Progress) -> Prepared:
        """The first `messages` payments of the world. Raises ValueError where it has fewer."""
        schema = self._pipeline.events.schema
        id = register(self._address, f"{self._pipeline.events.topic}-value", avro_schema(schema))
        folder = self._folder / f"events-{self._version()}-{id}"
        if not (folder / SCORES).exists():
            progress(f"payments: {self._days} days of {self._cards:,} cards", 0.0)
            later = int((self._later - self._samples.START).astype(np.int64))
            world = self._samples.make_world(SEED, self._cards)
            table, _ = self._samples.world_payments(world, self._days, later)
            keys, values = encode_avro(table, schema, self._pipeline.events.keys, id)
            ids = table["payment_id"].to_numpy()
            write_payloads(folder, keys, values, ids)
            progress(f"payments: scoring {len(ids):,} in memory", 0.0)
            np.save(folder / SCORES, self._scores(list(zip(keys, values, strict=True)), ids))
        there = len(np.load(folder / SCORES, mmap_mode="r"))
        if messages > there:
            raise ValueError(f"payments: expected at most {there:,} messages, which {self._days} days have, got {messages:,}")
        return prepared(folder, messages)

    def _version(self) -> str:
        """What the events and their scores depend on."""
        told = [self.model().name, SEED, self._days]
        told += [path.read_text() for path in sorted([*FOLDER.glob("*.py"), *self.repo().glob("*.py")])]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:12]


def write_profiles(repo: Path, cards: pl.DataFrame) -> None:
    """Adds cards to the offline source and the online store of the example's repo. The store is written as Feast's SQLite store
    has it (a row for each cell, the key serialized, the value a message of one float), which takes Feast minutes."""
    known = pl.read_parquet(repo / "data" / "cards.parquet")
    pl.concat([known, cards]).write_parquet(repo / "data" / "cards.parquet")
    store = sqlite3.connect(repo / "data" / "online.db")
    like, when, created = store.execute("SELECT entity_key, event_ts, created_ts FROM payments_card_profile").fetchone()
    head = bytes(like)[:HEAD]
    keys = [head + struct.pack("<I", len(card)) + card.encode() for card in cards["card"].to_list()]
    for name in PROFILE:
        raw = cards[name].to_numpy().astype("<f4").tobytes()
        cells = [FLOAT + raw[k : k + 4] for k in range(0, len(raw), 4)]
        rows = ((key, name, cell, when, created) for key, cell in zip(keys, cells, strict=True))
        store.executemany(
            "INSERT INTO payments_card_profile (entity_key, feature_name, value, event_ts, created_ts) VALUES (?, ?, ?, ?, ?)",
            rows,
        )
    store.commit()
    store.close()


workload = Payments()
