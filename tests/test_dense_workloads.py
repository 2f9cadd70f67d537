"""The workloads of vectors: messages as they should be, every system checked alike, and headrace's pipelines answer rightly."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from bench.dense import Dense
from bench.load import Payloads
from bench.workloads import crayfish, crayfish_short, dlrm, load, vector
from features.schema import Vector
from sinks.memory import MemorySink
from streams.pipeline import Pipeline
from streams.pipeline import load as pipeline
from streams.run import run
from streams.settings import JobSettings
from streams.source import MemorySource

ROOT = Path(__file__).parent.parent
N = 40


def quiet(doing: str, share: float) -> None: ...


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.pooled.POOLED", 16)
    monkeypatch.setattr("bench.pooled.STEP", 1_000)


def test_the_workloads_are_found_by_name() -> None:
    assert load("crayfish") is crayfish.workload
    assert load("crayfish_short") is crayfish_short.workload
    assert load("vector") is vector.workload
    assert load("dlrm") is dlrm.workload
    assert isinstance(pipeline(f"{ROOT}/bench/workloads/crayfish.py:crayfish"), Pipeline)
    assert isinstance(pipeline(f"{ROOT}/bench/workloads/vector.py:vector"), Pipeline)
    assert isinstance(pipeline(f"{ROOT}/bench/workloads/dlrm.py:dlrm"), Pipeline)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "make"), [(crayfish, crayfish.pipeline), (crayfish_short, crayfish_short.pipeline), (vector, vector.pipeline)]
)
def test_a_run_in_memory_answers_every_message_and_the_check_sees_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, make: Callable[..., Pipeline]
) -> None:
    small(monkeypatch)
    known: Dense = module.workload  # type: ignore[attr-defined]
    workload = replace(known, _home=[])
    workload.ready(tmp_path, quiet)
    prepared = workload.prepare(N, quiet)
    again = workload.prepare(N, quiet)
    assert again == prepared
    entries = Payloads(prepared.payloads).entries(0, N)
    ids = prepared.ids()
    assert len(entries) == len(set(ids.tolist())) == N
    assert prepared.bytes_mean == pytest.approx(np.mean([len(entry["value"]) for entry in entries]), rel=0.01)
    for entry, id in zip(entries, ids.tolist(), strict=True):
        message = json.loads(entry["value"])
        assert next(iter(message.values())) == id
        assert len(entry["key"]) == 4
    job = make("in", "out", echo=False) if workload.name == "crayfish_short" else make("in", "out")
    sink = MemorySink()
    settings = JobSettings(home=tmp_path, recovery=False, metrics_port=0, registry=workload.settings.registry_uri)
    log = [(entry["key"], entry["value"]) for entry in entries]
    run(job, settings, registry=CollectorRegistry(), source=MemorySource([log], rows=16), sink=sink)
    values = sink.values("out")
    checked = workload.check(prepared, values, ordered=True)
    assert (checked.wrong.any(), checked.why) == (False, "")
    assert sorted(checked.ids.tolist()) == ids.tolist()
    assert sink.keys("out") == [entry["key"] for entry in entries]

    def judged(value: bytes) -> tuple[bool, bool]:
        """Whether a message is taken for an answer, and for a wrong one."""
        one = workload.check(prepared, [value], ordered=True)
        return bool(one.ids[0] >= 0), bool(one.wrong[0])

    assert judged(entries[3]["value"]) == (True, False)
    passed_on = workload.check(prepared, [values[3], entries[3]["value"]], ordered=True).passed_on
    assert passed_on is not None
    assert passed_on.tolist() == [False, True]
    assert judged(entries[3]["value"].replace(b"0", b"1", 1)) in ((True, True), (False, True))
    other = values[4].replace(str(ids[4]).encode(), str(ids[5]).encode())
    assert judged(other) == (True, True)
    assert judged(values[4].replace(str(ids[4]).encode(), str(ids[-1] + 1).encode())) == (False, True)
    assert judged(b"{}") == (False, True)
    assert judged(b"nonsense") == (False, True)
    said = json.loads(values[2])
    pretty = json.dumps(said, indent=1).encode()
    assert judged(pretty) == (True, False)
    last = next(name for name in ("prediction", "scores", "score") if name in said)
    assert judged(json.dumps(said | {last: "0.5"}).encode()) == (True, True)
    if workload.echoes:
        assert judged(json.dumps(said | {"dataPoint": said["dataPoint"][:-3]}).encode()) == (True, True)


def test_the_models_are_what_the_benchmarks_say(tmp_path: Path) -> None:
    """784-32-32-32-32-10 and 64-256-256-1, the same weights each time they are made."""
    import onnx

    from bench.dense import write_model

    shapes = {}
    for workload in (crayfish.workload, vector.workload):
        for folder in ("one", "two"):
            (tmp_path / workload.name / folder).mkdir(parents=True)
            write_model(tmp_path / workload.name / folder, workload.name, workload.input, workload.sizes)
        files = [(tmp_path / workload.name / folder / "model.onnx").read_bytes() for folder in ("one", "two")]
        assert files[0] == files[1]
        graph = onnx.load_model_from_string(files[0]).graph
        shapes[workload.name] = sorted(tuple(each.dims) for each in graph.initializer if len(each.dims) == 2)
        assert [node.op_type for node in graph.node].count("Relu") == len(workload.sizes) - 2
    assert shapes == {
        "crayfish": [(10, 32), (32, 32), (32, 32), (32, 32), (32, 784)],
        "vector": [(1, 256), (256, 64), (256, 256)],
    }


@pytest.mark.slow
def test_the_messages_are_as_long_as_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    for known, low, high in ((crayfish.workload, 8_600, 8_800), (vector.workload, 400, 500)):
        workload = replace(known, _home=[])
        workload.ready(tmp_path, quiet)
        assert low < workload.prepare(10, quiet).bytes_mean < high
    assert isinstance(crayfish.DataPoint.fields["dataPoint"], Vector)
