"""Crayfish's feed-forward network (EDBT 2024): 784 numbers as one string of text, echoed with ten scores as another.

headrace run bench/workloads/crayfish.py:crayfish
"""

import re
from collections.abc import Sequence

import numpy as np

from bench.dense import Dense
from bench.pooled import F64, I64
from features.schema import Integer, Schema, Vector
from features.spec import Fields
from sinks.encoders import Echo, Scores
from streams.pipeline import Decisions, Model, Pipeline
from streams.topic import Topic

SIZES = (784, 32, 32, 32, 32, 10)
ID = re.compile(rb'"creationTimestamp":\s*(\d{1,18})[,}\s]')
ANSWER = re.compile(rb'"(?:prediction|scores)":\s*(?:"([^"]*)"|\[([^\]]*)\])')

DataPoint = Schema(
    "DataPoint", version=1, fields={"creationTimestamp": Integer(low=0), "dataPoint": Vector(SIZES[0], text=True)}
)

JOB = """
from bench.workloads.crayfish import pipeline

job = pipeline("{input}", "{output}", echo=ECHO)
"""


def pipeline(source: str, target: str, echo: bool = True) -> Pipeline:
    """Each point scored; written as the event with its prediction filled in, or as its stamp and its scores."""
    return Pipeline(
        name="crayfish",
        events=Topic(source, schema=DataPoint, id="creationTimestamp"),
        features=[Fields("dataPoint")],
        model=Model("crayfish"),
        sinks=[Decisions(target, encode=Echo("prediction") if echo else Scores("creationTimestamp"))],
    )


def event(numbers: Sequence[str]) -> tuple[str, str]:
    """What stands around the stamp of a point."""
    text = "".join(f"{number}," for number in numbers)
    after = f',"dataPointSz1":1,"dataPointSz2":{SIZES[0]},"dataPoint":"{text}","prediction":null}}'
    return '{"creationTimestamp":', after


def read(values: Sequence[bytes]) -> tuple[I64, F64]:
    """Stamps and scores of output messages: `prediction` as text or as a list, or `scores`."""
    ids, scores = np.full(len(values), -1, np.int64), np.full((len(values), SIZES[-1]), np.nan)
    for k, value in enumerate(values):
        if stamp := ID.search(value):
            ids[k] = int(stamp[1])
        start = max(value.rfind(b'"prediction":'), value.rfind(b'"scores":'))
        found = ANSWER.match(value, start) if start >= 0 else None
        numbers = (found[1] or found[2] or b"").strip(b", ").split(b",") if found else []
        if len(numbers) == SIZES[-1]:
            try:
                scores[k] = [float(number) for number in numbers]
            except ValueError:
                scores[k] = np.inf
        elif numbers:
            scores[k] = np.inf
    return ids, scores


def workload_(name: str, echo: bool) -> Dense:
    """With or without the event in its answer."""
    return Dense(
        name=name,
        sizes=SIZES,
        decimals=8,
        input="dataPoint",
        event=event,
        first=1_700_000_000_000,
        read=read,
        echoes=echo,
        pipeline=JOB.replace("ECHO", str(echo)),
        model_name="crayfish",
    )


crayfish = pipeline("crayfish-points", "crayfish-predictions")
workload = workload_("crayfish", echo=True)
