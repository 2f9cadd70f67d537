"""64 numbers of four digits and a network 64-256-256-1, answered with the id and the score.

headrace run bench/workloads/vector.py:vector
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from bench.dense import Dense
from bench.pooled import F64, I64
from features.schema import Integer, Schema, Vector
from features.spec import Fields
from sinks.encoders import Scores
from streams.pipeline import Decisions, Model, Pipeline
from streams.topic import Topic

SIZES = (64, 256, 256, 1)

Point = Schema("Point", version=1, fields={"id": Integer(low=0), "x": Vector(SIZES[0])})

JOB = """
from bench.workloads.vector import pipeline

job = pipeline("{input}", "{output}")
"""


def pipeline(source: str, target: str) -> Pipeline:
    """Each point scored."""
    return Pipeline(
        name="vector",
        events=Topic(source, schema=Point, id="id"),
        features=[Fields("x")],
        model=Model("vector"),
        sinks=[Decisions(target, encode=Scores())],
    )


def event(numbers: Sequence[str]) -> tuple[str, str]:
    """What stands around the id of a point."""
    return '{"id":', f',"x":[{",".join(numbers)}]}}'


def read(values: Sequence[bytes]) -> tuple[I64, F64]:
    """Ids and scores of output messages; infinity for a score that is there and no number."""
    text = pl.Series(values, dtype=pl.Binary).cast(pl.String, strict=False)
    ids = text.str.extract(r'"id":\s*(\d{1,18})').cast(pl.Int64, strict=False).fill_null(-1)
    scores = text.str.extract(r'"score":\s*\[?([-+.0-9eE]+)').cast(pl.Float64, strict=False)
    said = text.str.contains('"score"', literal=True).fill_null(False)
    return ids.to_numpy(), np.where(scores.is_null() & said, np.inf, scores.to_numpy()).reshape(-1, 1)


vector = pipeline("vector-points", "vector-scores")
workload = Dense(
    name="vector",
    sizes=SIZES,
    decimals=4,
    input="x",
    event=event,
    first=1_000_000_000,
    read=read,
    echoes=False,
    pipeline=JOB,
)
