"""A call of a model that takes too long is ended, whatever the model does; the stream goes on with the policy's fallback."""

import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hanging import FOREVER, SPEC, write_hanging
from payments import NAMES, decisions, payments, settings, stream
from prometheus_client import CollectorRegistry

from models.engine import OnnxEngine, TimedOut
from models.news import loaded, try_out
from models.spec import Input, ModelSpec
from sinks.memory import MemorySink
from streams.job import Champion
from streams.pipeline import Model
from streams.run import run
from streams.source import MemorySource

LIMIT = 0.2


def test_a_call_that_would_last_for_years_is_ended_and_the_next_is_as_ever(tmp_path: Path) -> None:
    write_hanging(tmp_path, SPEC)
    engine = OnnxEngine(tmp_path, seconds=LIMIT)
    matrix = np.array([[3, 0], [7, 0], [np.nan, 0]], np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(engine.infer(matrix), [3, 7, 0])
        began = time.monotonic()
        with pytest.raises(TimedOut, match=r"model hanging: expected scores of 1 rows within 0.2 s, got none"):
            engine.infer(np.array([[FOREVER, 0]], np.float32))
        assert LIMIT < time.monotonic() - began < 20 * LIMIT
    assert "limit" in {thread.name for thread in threading.enumerate()}
    engine.close()
    assert "limit" not in {thread.name for thread in threading.enumerate()}


def test_what_is_short_of_the_limit_is_never_ended(tmp_path: Path) -> None:
    """Many calls, one after another, under a watch that looks at each of them: it never ends one for the one before."""
    write_hanging(tmp_path, SPEC)
    engine = OnnxEngine(tmp_path, seconds=1.0)
    matrix = np.array([[20_000, 0]], np.float32)
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        assert engine.infer(matrix)[0] == 20_000
    engine.close()


def test_a_new_version_that_hangs_at_its_own_sample_is_refused(tmp_path: Path) -> None:
    write_hanging(tmp_path, replace(SPEC, medians={"rounds": FOREVER}))
    engine, _ = loaded(tmp_path, partial(OnnxEngine, seconds=LIMIT), False)
    with pytest.raises(
        ValueError, match=r"throws at its own sample: TimedOut: model hanging: expected scores of 64 rows within"
    ):
        try_out(engine, None)
    engine.close()


def test_in_the_flow_the_fallback_decides_while_the_model_hangs(tmp_path: Path) -> None:
    write_hanging(tmp_path / "model", ModelSpec("payments", tuple(Input(name, "number") for name in NAMES)))
    log = stream(600)
    log[200:300] = [(key, value.replace(b'"amount": ', b'"amount": 9')) for key, value in log[200:300]]  # some 9,000 and more
    engine = OnnxEngine(tmp_path / "model", seconds=LIMIT)
    engine.infer = _forever_above(engine, 9000)  # type: ignore[method-assign]
    sink, registry = MemorySink(), CollectorRegistry()
    pipeline = replace(payments(), model=Model("payments", limit=LIMIT))
    began = time.monotonic()
    parts = {"source": MemorySource([log], rows=50), "sink": sink, "champion": Champion(1, engine, None)}
    run(pipeline, settings(tmp_path), registry=registry, **parts)
    assert time.monotonic() - began < 60
    found = list(decisions(sink).values())
    assert len(found) == sum(b'"paid"' in value for _, value in log)
    unscored = [each for each in found if each["score"] is None]
    assert 0 < len(unscored) < len(found)
    assert all("fallback" in each["flags"] for each in unscored)
    assert registry.get_sample_value("headrace_model_failed_rows_total", {"pipeline": "payments"}) == len(unscored)
    engine.close()


def _forever_above(engine: OnnxEngine, amount: float):  # type: ignore[no-untyped-def]
    infer = engine.infer

    def longer(matrix: np.ndarray) -> np.ndarray:
        return infer(np.where(matrix > amount, np.float32(FOREVER), matrix))

    return longer


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a limit of the model's calls of 0 s or more, got -1"):
        replace(payments(), model=Model("payments", limit=-1.0))
