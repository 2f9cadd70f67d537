"""Runs payments twice from memory, the second time from the first's recovery store, and prints what Numba compiles once a job
says that it is ready. Run with NUMBA_CACHE_DIR set to an empty folder."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher
from payments import Arithmetic, payments, settings, stream
from prometheus_client import CollectorRegistry

from features.spec import Derived, Fields, Last, Window
from models.reference import build_reference
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Drift
from streams.run import run
from streams.source import MemorySource

DAY_US = 86_400_000_000
MANY = Window(
    "shop",
    "amount",
    over="2h",
    aggs=("count", "sum", "mean", "min", "max", "std", "last", "age", "distinct", "rate", "decayed"),
    half_life="30m",
)
PIPELINE = replace(
    payments(Drift("payment-drift", rate=0.05)),
    features=[
        Fields("amount"),
        Derived("minute", "minute_of_day(at, 'Europe/Berlin')"),
        Window("card", "amount", over="1h", aggs=("count", "mean"), where="kind == 'paid'"),
        MANY,
        Last("shop", "amount", within="12h", where="kind == 'refund'"),
    ],
)


class Engine(Arithmetic):
    spec = ModelSpec("payments", tuple(Input(name, "number", ()) for name in PIPELINE.feature_names(())))


def champion() -> Champion:
    rng, names = np.random.default_rng(0), PIPELINE.feature_names(())
    days = np.repeat(np.arange(19_700, 19_740), 200)
    matrix = rng.normal(size=(len(days), len(names))).astype(np.float32)
    scores = rng.random(len(days)).astype(np.float32)
    return Champion(1, Engine(), build_reference(names, [False] * len(names), matrix, scores, days * DAY_US))


def main(home: Path) -> None:
    compiled: list[str] = []
    original = Dispatcher.compile

    def compile(self: Any, signature: Any) -> Any:
        if compiled:
            compiled.append(f"{self.py_func.__module__}.{self.py_func.__name__} {signature}")
        return original(self, signature)

    Dispatcher.compile = compile
    events = [*stream(4000), (None, b"no json"), (b"card-1", b'{"kind": "paid", "at": 3}')]
    for partition in (events[:2000], events):
        compiled.clear()
        run(
            PIPELINE, settings(home, recovery=True, epoch_seconds=0.01), registry=CollectorRegistry(),
            source=MemorySource([partition], rows=3), sink=MemorySink(), champion=champion(),
            on_ready=lambda: compiled.append("ready"),
        )  # fmt: skip
        print("\n".join(compiled))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
