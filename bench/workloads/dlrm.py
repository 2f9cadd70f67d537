"""Clicks such as Criteo's logs have, 13 counts and 26 words, scored by a DLRM (bench/dlrm.py): the id and the score.

headrace run bench/workloads/dlrm.py:dlrm
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bench.pooled import F32, SEED, Content, Pooled
from bench.workloads.vector import read
from features.schema import Integer, Schema, Text
from features.spec import Fields
from kernels.hashing.naive import hash_bytes
from sinks.encoders import Scores
from streams.pipeline import Decisions, Model, Pipeline
from streams.topic import Topic

NUMBERS = tuple(f"i{k}" for k in range(1, 14))
CATEGORIES = tuple(f"c{k}" for k in range(1, 27))
BUCKETS = 1000
"""Of each category: 13.3 MB of embeddings in all. In MLPerf the largest tables have 40 million rows each."""
MISSING = 0.1
ZIPF = 1.2
SCATTER = 2_654_435_761
"""Knuth's multiplier, which makes of ranks words that look like Criteo's."""
Value = TypeVar("Value")

Click = Schema(
    "Click",
    version=1,
    fields={
        "id": Integer(low=0),
        **{name: Integer(optional=True) for name in NUMBERS},
        **{name: Text(optional=True, max_bytes=8) for name in CATEGORIES},
    },
)

JOB = """
from bench.workloads.dlrm import pipeline

job = pipeline("{input}", "{output}")
"""


class Line(NamedTuple):
    """A click of the logs, None for what it lacks."""

    counts: list[int | None]
    words: list[str | None]


def pipeline(source: str, target: str) -> Pipeline:
    """Each click scored."""
    return Pipeline(
        name="dlrm",
        events=Topic(source, schema=Click, id="id"),
        features=[Fields(*NUMBERS, *CATEGORIES)],
        model=Model("dlrm"),
        sinks=[Decisions(target, encode=Scores())],
    )


def lines(rng: np.random.Generator, n: int) -> list[Line]:
    """n clicks: counts from -2 on, most of them small and a few in the thousands, and words of eight hex digits by Zipf's law.
    A tenth of either is missing."""
    counts = np.floor(rng.lognormal(2, 2, (n, len(NUMBERS)))).astype(np.int64) - 2
    ranks = rng.zipf(ZIPF, (n, len(CATEGORIES))) + np.arange(len(CATEGORIES))
    no_count, no_word = rng.random((n, len(NUMBERS))) < MISSING, rng.random((n, len(CATEGORIES))) < MISSING
    words = [[f"{rank * SCATTER % 2**32:08x}" for rank in row] for row in ranks.tolist()]
    rows = zip(counts.tolist(), no_count.tolist(), words, no_word.tolist(), strict=True)
    return [Line(without(of_counts, lacks), without(of_words, more)) for of_counts, lacks, of_words, more in rows]


def without(values: Sequence[Value], gone: Sequence[bool]) -> list[Value | None]:
    """The values with None for those that are gone."""
    return [None if missing else value for value, missing in zip(values, gone, strict=True)]


def event(line: Line) -> tuple[str, str]:
    """What stands around the id of a click. A count that is missing is null, a word that is missing is not there."""
    found: dict[str, int | str | None] = dict(zip(NUMBERS, line.counts, strict=True))
    found |= {name: word for name, word in zip(CATEGORIES, line.words, strict=True) if word is not None}
    return '{"id":', "," + json.dumps(found, separators=(",", ":"))[1:]


def matrix_of(clicks: Sequence[Line], buckets: int) -> F32:
    """The rows float32 [n, 39] that a model with so many buckets is given, a value at a time by the definition of the hash."""
    rows = [[*map(number, click.counts), *(code(word, buckets) for word in click.words)] for click in clicks]
    return np.array(rows, np.float32).reshape(len(clicks), len(NUMBERS) + len(CATEGORIES))


def number(count: int | None) -> float:
    """NaN for what is missing."""
    return np.nan if count is None else float(count)


def code(word: str | None, buckets: int) -> int:
    """The bucket of a word, 0 for what is missing."""
    return 0 if word is None else 1 + hash_bytes(word.encode()) % (buckets - 1)


@dataclass(frozen=True, kw_only=True)
class Clicks(Pooled):
    """The workload. buckets: of each category in its model."""

    buckets: int = BUCKETS

    @property
    def width(self) -> int:
        """Counts and words."""
        return len(NUMBERS) + len(CATEGORIES)

    @property
    def recipe(self) -> tuple[object, ...]:
        """The first click, which shows how they are made."""
        return self.buckets, event(lines(np.random.default_rng(SEED), 1)[0])

    def content(self, rng: np.random.Generator, n: int) -> Content:
        """n clicks."""
        clicks = lines(rng, n)
        return Content([event(click) for click in clicks], matrix_of(clicks, self.buckets))

    def write_model(self, folder: Path, name: str) -> dict[str, object]:
        """The DLRM with its buckets."""
        from bench.dlrm import write_model

        write_model(folder, name, self.buckets)
        return {"buckets": self.buckets}


dlrm = pipeline("clicks", "click-scores")
workload = Clicks(name="dlrm", first=1_000_000_000, read=read, pipeline=JOB)
