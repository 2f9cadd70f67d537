"""The flights' training learns what is there to be learned, twice the same, and serves what it trained."""

import doctest
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import models.metrics
from models.engine import OnnxEngine
from models.flights import train
from models.metrics import auc
from models.spec import ModelSpec, assemble, digest

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")


def frame(n: int, seed: int) -> pa.Table:
    """Flights that are late by a delay with a heavy tail, where it is known, and by their carrier."""
    rng = np.random.default_rng(seed)
    delay = rng.lognormal(2, 1.5, n) * rng.choice([-0.2, 1], n)
    known = rng.random(n) < 0.7
    carrier = rng.choice(["UA", "AA", "DL", "OO"], n, p=[0.5, 0.3, 0.15, 0.05])
    chance = 1 / (1 + np.exp(2 - np.where(known & (delay > 20), 2.5, 0) - (carrier == "AA") * 1.5))
    start = datetime(2013, 1, 1, tzinfo=UTC)
    return pa.table(
        {
            "carrier": pa.array(carrier, mask=rng.random(n) < 0.02),
            "delay": pa.array(delay, mask=~known),
            "count": pa.array(rng.integers(0, 50, n)),
            "never": pa.nulls(n, pa.float64()),
            "event_id": pa.array(np.arange(n)),
            "event_time": pa.array([start + timedelta(minutes=int(k)) for k in rng.permutation(n)]),
            "label": pa.array(rng.random(n) < chance),
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float], list[tuple[str, float]]]:
    said: list[tuple[str, float]] = []
    folder = tmp_path_factory.mktemp("model")
    return folder, train(frame(6000, 0), folder, seed=5, progress=lambda what, share: said.append((what, share))), said


def test_what_can_be_learned_is_learned_and_served(trained: tuple[Path, dict[str, float], list[tuple[str, float]]]) -> None:
    folder, metrics, said = trained
    spec = ModelSpec.read(folder)
    assert spec.names == ("carrier", "delay", "count", "never")
    assert spec.inputs[0].vocabulary == ("UA", "AA", "DL", "OO")
    assert (spec.seed, dict(spec.metrics)) == (5, metrics)
    assert metrics["rows"] + metrics["held_out_rows"] == 6000
    fresh = frame(4000, 1)
    engine = OnnxEngine(folder)
    matrix, _ = assemble(fresh.combine_chunks().to_batches()[0], spec)
    scores = engine.infer(matrix)
    labels = fresh["label"].to_numpy()
    assert auc(labels, scores) > 0.68
    assert abs(auc(labels, scores) - metrics["auc"]) < 0.06
    assert abs(scores.mean() - labels.mean()) < 0.03
    assert [share for what, share in said if what == "training"][-1] == 1
    assert said[-1] == ("exporting", 1.0)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx"]


def test_values_never_seen_score_like_an_average_one(trained: tuple[Path, dict[str, float], list[tuple[str, float]]]) -> None:
    engine = OnnxEngine(trained[0])
    rows = np.array([[code, np.nan, 25, np.nan] for code in range(5)], np.float32)
    unknown, *known = engine.infer(rows).tolist()
    assert min(known) < unknown < max(known)
    wild = np.array([[0, 1e30, -1e30, 1e30]], np.float32)
    assert 0 < engine.infer(wild)[0] < 1


@pytest.mark.slow
def test_training_twice_gives_the_same_files_and_another_seed_others(
    tmp_path: Path, trained: tuple[Path, dict[str, float], list[tuple[str, float]]]
) -> None:
    for seed in (5, 6):
        train(frame(6000, 0), tmp_path / str(seed), seed=seed, progress=lambda what, share: None)
    assert digest(tmp_path / "5") == digest(trained[0])
    assert digest(tmp_path / "6") != digest(trained[0])


def test_the_file_tells_nothing_of_the_place_it_was_made_in(
    trained: tuple[Path, dict[str, float], list[tuple[str, float]]],
) -> None:
    content = (trained[0] / "model.onnx").read_bytes()
    assert str(Path(models.metrics.__file__).parent).encode() not in content
    assert b".py" not in content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(["label"]), "expected a column label without nulls"),
        (lambda table: table.slice(0, 50), "expected at least 100 rows, got 50"),
        (lambda table: table.set_column(6, "label", pa.array([True] * 200)), "labels of both kinds, got 200 true of 200"),
    ],
)
def test_a_frame_that_teaches_nothing_is_refused(tmp_path: Path, change: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(change(frame(200, 0)), tmp_path, seed=0, progress=lambda what, share: None)  # type: ignore[operator]


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(60) < 0.4, rng.integers(0, 10, 60)
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels] for b in scores[~labels]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc([True], [1.0]))
    assert doctest.testmod(models.metrics).failed == 0
