"""Phases of one job are compared kind by kind, and the shadow that hangs does so when it is to."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from bench import shadow
from bench.proving.phases import Seen, compared, quantiles, windows
from bench.proving.stream import BINS, FACTOR, FIRST_MS, SECONDS_A_BIN, Counted, Stream
from models.engine import OnnxEngine, TimedOut
from models.news import loaded, try_out
from models.spec import Input, ModelSpec


def test_kinds_are_compared_with_the_first_in_their_turns() -> None:
    """Two turns of two kinds, of two windows each; the second kind takes twice as long, and has a gap."""
    found = Counted(Stream("s", 1.0))
    for window in range(8):
        counts = np.zeros(BINS, np.int64)
        milliseconds = 10.0 if window % 4 < 2 else 20.0
        counts[round(np.log(milliseconds / FIRST_MS) / np.log(FACTOR))] = 1000
        found.took[window] = counts
    found.came = bytearray(40_000)
    found.came[::10] = b"\1" * 4_000
    found.came[36_010:36_050:10] = bytes(4)
    phases = [("none", 0, 10.0), ("some", 10.0, 20.0), ("none", 20.0, 30.0), ("some", 30.0, 40.0)]
    assert SECONDS_A_BIN == 5.0
    seen = Seen(found, phases, "", [])
    by_kind = quantiles(seen, {"p99": 0.99})
    figures = {one["what"]: one for one in compared("x", by_kind, {"longest gap": 10.0}, {"p99": 1.1})}
    assert figures["p99 some: times that none"]["median"] == pytest.approx(2, rel=0.06)
    assert figures["p99 some: times that none"]["goal"] == 1.1
    assert figures["longest gap some"]["max"] == pytest.approx(50)
    assert figures["longest gap some: more than none"]["median"] == pytest.approx(20)
    assert not [what for what in figures if what.startswith("p99") and "more than" in what]
    assert quantiles(windows(seen), {})["some"]["longest gap"] == pytest.approx([10, 10, 10, 50])
    assert [round(value) for value in quantiles(windows(seen), {"p99": 0.99})["none"]["p99"]] == [10] * 4


def test_the_endless_model_stands_its_trial_and_hangs_in_the_stream(tmp_path: Path) -> None:
    spec = ModelSpec("endless", tuple(Input(name, "number") for name in "nabc"))
    model = helper.make_model(shadow.endless(), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    spec.write(tmp_path)
    engine, _ = loaded(tmp_path, partial(OnnxEngine, seconds=0.3), False)
    assert isinstance(engine, OnnxEngine)
    try_out(engine, None)
    rows = np.full((3, 4), shadow.HANGS_FROM - 1, np.float32)
    assert np.isfinite(engine.infer(rows)).all()
    rows[2, 0] += 1
    with pytest.raises(TimedOut):
        engine.infer(rows)
    engine.close()
