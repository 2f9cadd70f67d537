"""The real flow with vectors: scored all at once, several scores a row, and messages written by an encoder of one's own."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from payments import settings
from prometheus_client import CollectorRegistry

from features.schema import Integer, Schema, Time, Vector
from features.spec import Fields, Window
from models.policy import Bands
from models.spec import Input, ModelSpec
from sinks.encoders import Echo, Scores
from sinks.memory import MemorySink
from sinks.messages import Messages
from streams.budget import Budget
from streams.decode import Decoded
from streams.job import Champion
from streams.pipeline import Decisions, Drift, Model, Pipeline
from streams.run import run
from streams.source import MemorySource
from streams.topic import Topic

F32 = npt.NDArray[np.float32]
Point = Schema("Point", 1, {"id": Integer(), "x": Vector(3)})
Image = Schema("Image", 1, {"n": Integer(), "pixels": Vector(4, text=True)})


class Sums:
    """An engine that needs no file: `outputs` weighted sums of a row."""

    def __init__(self, name: str, width: int, outputs: int = 1) -> None:
        self.spec = ModelSpec("sums", (Input(name, "vector", width=width),), outputs=outputs)
        self.kind = "arithmetic"
        self.weights = np.arange(1, width * outputs + 1, dtype=np.float32).reshape(width, outputs)

    def warm(self) -> None: ...

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return dict.fromkeys(sizes, 0.0)

    def infer(self, matrix: F32, out: F32 | None = None) -> F32:
        scores: F32 = matrix @ self.weights
        return scores[:, 0] if self.spec.outputs == 1 else scores

    def close(self) -> None: ...


def pipeline(schema: Schema, id: str, vector: str, sinks: list[Decisions], **more: Any) -> Pipeline:
    topic = Topic("points", schema=schema, id=id, **more.pop("topic", {}))
    return Pipeline(name="points", events=topic, features=[Fields(vector)], model=Model("sums"), sinks=sinks, **more)


def served(home: Path, job: Pipeline, engine: Sums, logs: list[list[tuple[bytes | None, bytes]]], rows: int = 7) -> MemorySink:
    sink = MemorySink()
    champion = Champion(1, engine, None)
    run(job, settings(home), registry=CollectorRegistry(), source=MemorySource(logs, rows=rows), sink=sink, champion=champion)
    return sink


def points(n: int) -> list[tuple[bytes | None, bytes]]:
    rng = np.random.default_rng(n)
    return [(b"k%d" % k, json.dumps({"id": k, "x": rng.normal(size=3).round(4).tolist()}).encode()) for k in range(n)]


def expected(log: list[tuple[bytes | None, bytes]], engine: Sums) -> dict[int, float]:
    events = [json.loads(value) for _, value in log]
    return {event["id"]: float(engine.infer(np.array([event["x"]], np.float32))[0]) for event in events}


@pytest.mark.parametrize("partitions", [1, 3])
def test_every_event_is_scored_without_time_key_or_policy(tmp_path: Path, partitions: int) -> None:
    log, engine = points(100), Sums("x", 3)
    logs = [log[k::partitions] for k in range(partitions)]
    job = pipeline(Point, "id", "x", [Decisions("scores", encode=Scores())])
    sink = served(tmp_path, job, engine, logs)
    found = {item["id"]: item["score"] for item in map(json.loads, sink.values("scores"))}
    assert len(sink.values("scores")) == 100
    assert found == pytest.approx(expected(log, engine), rel=1e-5, abs=1e-5)
    by_id = {json.loads(value)["id"]: key for key, value in zip(sink.keys("scores"), sink.values("scores"), strict=True)}
    assert by_id == {json.loads(value)["id"]: key for key, value in log}


def test_an_event_comes_back_with_its_scores_and_a_bad_one_goes_to_dead_letters(tmp_path: Path) -> None:
    good = [f'{{"n":{k},"pixels":"{k},0.5,0.25,1,","prediction":null}}'.encode() for k in range(20)]
    bad = [b'{"n":20,"pixels":"1,2,3","prediction":null}', b'{"n":21,"pixels":"1,2,x,4","prediction":null}']
    engine = Sums("pixels", 4, outputs=2)
    job = pipeline(Image, "n", "pixels", [Decisions("out", encode=Echo("prediction"))])
    sink = served(tmp_path, job, engine, [[(None, value) for value in (*good[:9], *bad, *good[9:])]])
    values = sink.values("out")
    assert len(values) == 20
    for value, event in zip(values, good, strict=True):
        before, _, after = value.partition(b'"prediction":')
        assert before == event.partition(b'"prediction":')[0]
        row = np.array([[*map(float, json.loads(event)["pixels"].split(",")[:4])]], np.float32)
        assert json.loads(after[:-1]).endswith(",")
        assert [float(text) for text in json.loads(after[:-1]).split(",")[:-1]] == pytest.approx(engine.infer(row)[0].tolist())
    dead = [json.loads(value)["reason"] for value in sink.values("points.dead")]
    assert [reason.partition(" (")[0] for reason in dead] == [
        "points/decode: expected 4 numbers, got 3 numbers at $.pixels",
        'points/decode: expected float, got "x" at $.pixels[2]',
    ]


def test_decisions_are_made_of_vectors_too_and_beside_other_messages(tmp_path: Path) -> None:
    log, engine = points(30), Sums("x", 3)
    sinks = [Decisions("verdicts", features=True), Decisions("scores", encode=Scores())]
    job = pipeline(Point, "id", "x", sinks, policy=Bands(high=0.0, otherwise="low"), decide_on="id >= 10")
    sink = served(tmp_path, job, engine, [log])
    decisions = [json.loads(value) for value in sink.values("verdicts")]
    want = expected(log, engine)
    assert [decision["event_id"] for decision in decisions] == list(range(10, 30))
    assert len(sink.values("scores")) == 20
    for decision in decisions:
        assert decision["decision"] == ("high" if want[decision["event_id"]] >= 0 else "low")
        event = json.loads(log[decision["event_id"]][1])
        assert np.array(decision["features"]["x"], np.float32).tolist() == np.array(event["x"], np.float32).tolist()


def test_what_is_late_is_counted_where_no_decision_says_so(tmp_path: Path) -> None:
    job = pipeline(Point, "id", "x", [Decisions("scores", encode=Scores())], budget=Budget(0.001))
    registry = CollectorRegistry()
    parts = {"source": MemorySource([points(100)], rows=7), "sink": MemorySink(), "champion": Champion(1, Sums("x", 3), None)}
    run(job, settings(tmp_path), registry=registry, **parts)
    assert registry.get_sample_value("headrace_flags_total", {"pipeline": "points", "flag": "late"}) == 100


def test_windows_over_the_time_of_arrival(tmp_path: Path) -> None:
    """Without a time field the broker's is the event's: in memory it is always the same, so that all is in the window."""
    schema = Schema("Point", 1, {"id": Integer(), "group": Integer(), "x": Vector(3)})
    log: list[tuple[bytes | None, bytes]] = [
        (None, json.dumps({"id": k, "group": k % 2, "x": [k, 0, 0]}).encode()) for k in range(10)
    ]
    window = Window("group", "id", over="1h", aggs=("count", "sum"), where="id >= 0")
    engine = Sums("x", 3)
    spec = ModelSpec("sums", (Input("x", "vector", width=3), Input("id_count_1h_by_group", "number")))
    engine.spec, engine.weights = spec, np.array([[0], [0], [0], [1]], np.float32)
    job = Pipeline(
        name="points",
        events=Topic("points", schema=schema, id="id"),
        features=[Fields("x"), window],
        model=Model("sums"),
        sinks=[Decisions("scores", encode=Scores())],
    )
    sink = served(tmp_path, job, engine, [log], rows=3)
    assert [json.loads(value)["score"] for value in sink.values("scores")] == [k // 2 for k in range(10)]


def test_the_append_time_is_a_column_of_its_own() -> None:
    topic = Topic("points", schema=Point, id="id")
    assert topic.columns.field("_time").type == Time.arrow
    decode = topic.decode("points/decode", settings(Path()), whole=True)
    raw = pa.record_batch(
        {
            "_key": pa.array([b"k", None], pa.binary()),
            "_value": pa.array([points(1)[0][1], b"nonsense"], pa.binary()),
            "_partition": pa.array([0, 0], pa.int32()),
            "_offset": pa.array([5, 6], pa.int64()),
            "_appended_at": pa.array([1_700_000_000_123, 0], pa.int64()),
            "_polled_at": pa.array([0, 0], pa.int64()),
        }
    )
    decoded = decode(raw)
    assert isinstance(decoded, Decoded)
    assert decoded.rows["_time"].cast(pa.int64()).to_pylist() == [1_700_000_000_123_000]
    assert decoded.rows["_value"].to_pylist() == [points(1)[0][1]]
    assert decoded.dead.num_rows == 1


class Broken:
    """An encoder that fails."""

    columns = ("id",)

    def __call__(self, batch: pa.RecordBatch, scores: F32, topic: str) -> Messages:
        raise RuntimeError(f"{batch.num_rows} rows for {topic}")


def test_what_cannot_be_is_said_when_the_pipeline_is_made_or_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sink out: expected a policy that makes decisions, or an encode, got neither"):
        pipeline(Point, "id", "x", [Decisions("out")])
    with pytest.raises(ValueError, match="sink out: its encoder reads nr: no such field in Point"):
        pipeline(Point, "id", "x", [Decisions("out", encode=Scores("nr"))])
    own = {"decoder": lambda batch: Decoded(batch, batch)}
    with pytest.raises(ValueError, match="its encoder reads _value, which a decoder of one's own does not keep"):
        pipeline(Point, "id", "x", [Decisions("out", encode=Echo("p"))], topic=own)
    with pytest.raises(ValueError, match="time: no field when in schema Point"):
        pipeline(Point, "id", "x", [Decisions("out", encode=Scores())], topic={"time": "when"})
    log = [points(3)]
    policy = pipeline(Point, "id", "x", [Decisions("out")], policy=Bands(high=0.5, otherwise="low"))
    with pytest.raises(ValueError, match="model sums: expected one output, as policies and drift need, got 2"):
        served(tmp_path, policy, Sums("x", 3, 2), log)
    drift = pipeline(Point, "id", "x", [Decisions("out", encode=Scores())], drift=Drift("drift"))
    with pytest.raises(ValueError, match="expected numbers and categories, whose drift can be measured, got a vector"):
        served(tmp_path, drift, Sums("x", 3), log)
    with pytest.raises(RuntimeError, match="1 rows for out"):
        served(tmp_path, pipeline(Point, "id", "x", [Decisions("out", encode=Broken())]), Sums("x", 3), log)


def test_stopped_in_the_middle_nothing_is_lost(tmp_path: Path) -> None:
    log, engine, sink, stop = points(2000), Sums("x", 3), MemorySink(), threading.Event()
    job = pipeline(Point, "id", "x", [Decisions("scores", encode=Scores())])
    champion, values = Champion(1, engine, None), settings(tmp_path, recovery=True, epoch_seconds=0.01)
    sink.on_write = lambda messages: stop.set()
    source = MemorySource([log], rows=10, stop=stop, until_end=False)
    run(job, values, registry=CollectorRegistry(), source=source, sink=sink, champion=champion)
    some = len(sink.values("scores"))
    assert 0 < some < 2000
    sink.on_write = lambda messages: None
    run(job, values, registry=CollectorRegistry(), source=MemorySource([log]), sink=sink, champion=champion)
    assert sorted(json.loads(value)["id"] for value in sink.values("scores")) == list(range(2000))
