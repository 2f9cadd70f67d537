"""A second pipeline, which shares nothing with the flights but the house: payments, with an engine made of arithmetic."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.schema import Integer, Kind, Number, Schema, Text, Time
from features.spec import Fields, Last, Window
from models.policy import Bands
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Decisions, Drift, Model, Pipeline
from streams.settings import JobSettings
from streams.topic import Topic

Payment = Schema(
    "Payment",
    version=3,
    fields={
        "kind": Kind(("refund", "paid")),
        "at": Time(after="2024-01-01", before="2025-01-01"),
        "payment": Integer(low=0),
        "card": Text(optional=True, max_bytes=20),
        "shop": Text(max_bytes=20),
        "amount": Number(low=0, high=1e6),
    },
)


def payments(drift: Drift | None = None, **topic: Any) -> Pipeline:
    return Pipeline(
        name="payments",
        events=Topic("pay", schema=Payment, time="at", key="card", id="payment", ties=("payment",), **topic),
        decide_on="kind == 'paid'",
        features=[
            Fields("amount"),
            Window("card", "amount", over="1h", aggs=("count", "sum", "mean", "min", "max"), where="kind == 'paid'"),
            Last("shop", "amount", within="12h", where="kind == 'refund'"),
        ],
        model=Model("payments"),
        policy=Bands(block=0.7, otherwise="allow"),
        drift=drift,
        sinks=[Decisions("verdicts", features=True)],
    )


NAMES = tuple(payments().feature_names(()))


class Arithmetic:
    """An engine that needs no file: a logistic score of the plain sum of what is not missing."""

    spec = ModelSpec("payments", tuple(Input(name, "number", ()) for name in NAMES))
    kind = "arithmetic"

    def warm(self) -> None: ...

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(sizes, 0.0)

    def infer(self, matrix: npt.NDArray[np.float32], out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        return (1 / (1 + np.exp(-np.nan_to_num(matrix).sum(axis=1) / 1000))).astype(np.float32)

    def close(self) -> None: ...


CHAMPION = Champion(1, Arithmetic(), None)


def stream(n: int, seed: int = 0) -> list[tuple[bytes | None, bytes]]:
    """n events in time order, with ties, missing cards and some reading of the past."""
    rng = np.random.default_rng(seed)
    seconds = np.sort(rng.integers(0, 4 * n, n)) + 1_704_200_000
    events = []
    for k in range(n):
        card = None if rng.random() < 0.05 else f"card-{rng.integers(40)}"
        event = {
            "kind": "paid" if rng.random() < 0.7 else "refund",
            "at": np.datetime64(int(seconds[k]), "s").astype(str) + "Z",
            "payment": k,
            "shop": f"shop-{rng.integers(9)}",
            "amount": float(rng.integers(1, 400)),
        }
        events.append((card and card.encode(), json.dumps(event | ({"card": card} if card else {})).encode()))
    return events


def settings(home: Path, **values: Any) -> JobSettings:
    return JobSettings(**({"home": home, "recovery": False, "metrics_port": 0} | values))


def decisions(sink: MemorySink, topic: str = "verdicts") -> dict[str, dict[str, Any]]:
    """By decision_id; the first one counts."""
    found: dict[str, dict[str, Any]] = {}
    for value in sink.values(topic):
        decision = json.loads(value)
        found.setdefault(decision["decision_id"], decision)
    return found
