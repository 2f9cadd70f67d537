"""A model trained elsewhere scores here as it did there; what does not fit the pipeline is refused, with both lists."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper
from payments import NAMES, payments, settings
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from models.engine import ModelRefused, OnnxEngine
from models.reference import Reference, ReferenceTooShortError
from models.registry import ModelNotFound, record, resolve
from ops.cli import run_command
from ops.register import register
from streams.inputs import InputsDifferError
from streams.settings import JobSettings

DAYS, ROWS = 20, 120
START = datetime(2024, 3, 1, tzinfo=UTC)


def frame(names: tuple[str, ...] = NAMES, seed: int = 0) -> pa.Table:
    """A frame of three weeks whose label hangs on the first two columns."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(DAYS * ROWS, len(names))).astype(np.float32)
    times = np.datetime64("2024-03-01", "us") + (np.arange(len(matrix)) * (86_400_000_000 // ROWS)).astype("timedelta64[us]")
    columns = {name: matrix[:, k] for k, name in enumerate(names)}
    label = matrix[:, 0] + matrix[:, 1] > 0.5
    return pa.table({**columns, "event_time": pa.array(times, pa.timestamp("us", "UTC")), "label": label})


def matrix_of(table: pa.Table, names: tuple[str, ...] = NAMES) -> np.ndarray:
    return np.stack([table[name].to_numpy() for name in names], axis=1)


@pytest.fixture(scope="module")
def trained() -> GradientBoostingClassifier:
    table = frame()
    return GradientBoostingClassifier(n_estimators=20, random_state=0).fit(matrix_of(table), table["label"].to_numpy())


def exported(model: object, path: Path, **options: object) -> Path:
    made = to_onnx(model, initial_types=[("X", FloatTensorType([None, len(NAMES)]))], **options)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    pq.write_table(frame(), tmp_path / "frame.parquet")
    return tmp_path / "frame.parquet"


@pytest.fixture
def job(tmp_path: Path) -> JobSettings:
    return settings(tmp_path / "home")


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_boosted_tree_scores_as_where_it_was_trained(
    tmp_path: Path, reference: Path, job: JobSettings, trained: GradientBoostingClassifier, zipmap: bool
) -> None:
    file = exported(trained, tmp_path / "tree.onnx", options={"zipmap": zipmap})
    made = register("payments", file, reference, job, pipeline=payments(), champion=True)
    version = resolve(job.registry_uri, "payments", into=tmp_path / "models")
    assert (version.digest, version.version, made.unused) == (made.version.digest, 1, ())
    assert {path.suffix for path in version.folder.iterdir()} == {".onnx", ".json", ".safetensors"}
    engine = OnnxEngine(version.folder)
    fresh = matrix_of(frame(seed=1))
    assert engine.infer(fresh) == pytest.approx(trained.predict_proba(fresh)[:, 1], abs=1e-6)
    assert made.metrics["auc"] > 0.9
    profile = Reference.load(version.folder)
    assert (profile.names, len(profile.days), profile.rows_a_day) == ((*NAMES, "score"), DAYS, ROWS)


def test_a_regressors_output_is_the_score_and_a_version_is_no_champion_unless_asked(
    tmp_path: Path, reference: Path, job: JobSettings
) -> None:
    table = frame()
    tree = GradientBoostingRegressor(n_estimators=5, random_state=0).fit(matrix_of(table), table["label"].to_numpy() * 3.0)
    register("payments", exported(tree, tmp_path / "tree.onnx"), reference, job, pipeline=None, champion=False)
    with pytest.raises(ModelNotFound):
        resolve(job.registry_uri, "payments", into=tmp_path / "models")
    register("payments", tmp_path / "tree.onnx", reference, job, pipeline=None, champion=True)
    version = resolve(job.registry_uri, "payments", into=tmp_path / "models")
    assert version.version == 2
    assert OnnxEngine(version.folder).infer(matrix_of(table)) == pytest.approx(tree.predict(matrix_of(table)), abs=1e-5)


def columns_model(names: list[str], types: list[int], path: Path) -> Path:
    """An ONNX with one input [n, 1] for each column: the sum of them."""
    inputs = [helper.make_tensor_value_info(name, kind, ["n", 1]) for name, kind in zip(names, types, strict=True)]
    casts = [helper.make_node("Cast", [name], [f"{name}_f"], to=TensorProto.DOUBLE) for name in names]
    total = helper.make_node("Sum", [f"{name}_f" for name in names], ["total"])
    graph = helper.make_graph(
        [*casts, total], "sum", inputs, [helper.make_tensor_value_info("total", TensorProto.DOUBLE, ["n", 1])]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_an_input_for_each_column_is_fed_by_name_and_type(tmp_path: Path, reference: Path, job: JobSettings) -> None:
    kinds = [TensorProto.DOUBLE, TensorProto.INT64, *[TensorProto.FLOAT] * (len(NAMES) - 2)]
    file = columns_model([*reversed(NAMES)], [*reversed(kinds)], tmp_path / "sum.onnx")
    register("payments", file, reference, job, pipeline=payments(), champion=True)
    engine = OnnxEngine(resolve(job.registry_uri, "payments", into=tmp_path / "models").folder)
    rows = np.arange(5 * len(NAMES), dtype=np.float32).reshape(5, -1) + 0.5
    expected = rows.sum(1) - 0.5
    assert engine.infer(rows) == pytest.approx(expected)


def test_inputs_that_are_not_the_features_are_shown_beside_them(
    tmp_path: Path, job: JobSettings, trained: GradientBoostingClassifier, capfd: pytest.CaptureFixture[str]
) -> None:
    file = exported(trained, tmp_path / "tree.onnx")
    other = (NAMES[1], NAMES[0], *NAMES[2:-1], "merchant_age")
    pq.write_table(frame(other), tmp_path / "frame.parquet")
    with pytest.raises(InputsDifferError, match="model payments: its inputs are not features of pipeline payments") as caught:
        register("payments", file, tmp_path / "frame.parquet", job, pipeline=payments(), champion=True)
    lines = caught.value.__notes__
    assert lines[0].split() == ["model", "payments", "pipeline", "payments"]
    assert any(line.startswith("  >") and "merchant_age number" in line and NAMES[-1] in line for line in lines)
    assert any(line.startswith("   ") and line.count(f"{NAMES[2]} number") == 2 for line in lines)
    assert not (tmp_path / "home").exists()


def test_a_feature_left_out_is_said_and_not_refused(
    tmp_path: Path, job: JobSettings, trained: GradientBoostingClassifier
) -> None:
    table = frame(NAMES[:-1])
    tree = GradientBoostingClassifier(n_estimators=2).fit(matrix_of(table, NAMES[:-1]), table["label"].to_numpy())
    made = to_onnx(tree, initial_types=[("X", FloatTensorType([None, len(NAMES) - 1]))])
    (tmp_path / "tree.onnx").write_bytes(made.SerializeToString())
    pq.write_table(table, tmp_path / "frame.parquet")
    found = register("payments", tmp_path / "tree.onnx", tmp_path / "frame.parquet", job, pipeline=payments(), champion=True)
    assert found.unused == NAMES[-1:]


def test_what_cannot_be_a_model_or_a_reference_is_said_and_nothing_recorded(
    tmp_path: Path, reference: Path, job: JobSettings, trained: GradientBoostingClassifier
) -> None:
    file = exported(trained, tmp_path / "tree.onnx")

    def refused(error: type[Exception], match: str, onnx_file: Path = file, rows: pa.Table | None = None) -> None:
        if rows is not None:
            pq.write_table(rows, tmp_path / "other.parquet")
        used = reference if rows is None else tmp_path / "other.parquet"
        with pytest.raises(error, match=match):
            register("payments", onnx_file, used, job, pipeline=None, champion=True)
        assert not (tmp_path / "home").exists()

    refused(ModelRefused, "no.onnx: expected an ONNX file, got No such file", tmp_path / "no.onnx")
    (tmp_path / "text.onnx").write_text("a pickle, perhaps")
    refused(ModelRefused, "text.onnx: expected an ONNX model", tmp_path / "text.onnx")
    refused(ValueError, "expected a column event_time of timestamps without nulls, got none", rows=frame().drop(["event_time"]))
    refused(ValueError, "expected rows, got none", rows=frame().slice(0, 0))
    refused(ReferenceTooShortError, "expected at least 14 whole days", rows=frame().slice(0, 5 * ROWS))
    words = frame().set_column(0, NAMES[0], pa.array(["a"] * DAYS * ROWS))
    refused(ModelRefused, f"column {NAMES[0]}: expected a number or a dictionary of strings, got string", rows=words)
    refused(ModelRefused, f"expected a matrix of as many columns as the reference has .{len(NAMES) + 1}: ",
            rows=frame().append_column("more", pa.array(np.zeros(DAYS * ROWS))))  # fmt: skip


def test_outputs_that_are_no_score_are_refused_by_name(
    tmp_path: Path, reference: Path, job: JobSettings, trained: GradientBoostingClassifier
) -> None:
    model = onnx.load_model(exported(trained, tmp_path / "tree.onnx", options={"zipmap": False}))
    del model.graph.output[1]
    onnx.save(model, tmp_path / "label.onnx")
    with pytest.raises(ModelRefused, match=r"expected one output of floats.*, got label int64 \[n\]: name it with --output"):
        register("payments", tmp_path / "label.onnx", reference, job, pipeline=None, champion=True)
    table = frame()
    three = GradientBoostingClassifier(n_estimators=2).fit(matrix_of(table), np.arange(len(table)) % 3)
    file = exported(three, tmp_path / "three.onnx")
    with pytest.raises(ModelRefused, match=r"expected a score a row, or the probabilities of two classes, got \[3, 3\]"):
        register("payments", file, reference, job, pipeline=None, champion=True)
    with pytest.raises(ModelRefused, match=r"expected an output nothing of floats, got "):
        register("payments", tmp_path / "tree.onnx", reference, job, pipeline=None, champion=True, output="nothing")


def test_categories_come_in_as_places_in_the_frames_dictionary_and_minus_one(tmp_path: Path, job: JobSettings) -> None:
    table = frame(("country", "amount"))
    words = pa.DictionaryArray.from_arrays(np.arange(len(table)) % 3, ["NO", "DE", "FR"])
    pq.write_table(table.set_column(0, "country", words), tmp_path / "frame.parquet")
    file = columns_model(["country", "amount"], [TensorProto.FLOAT] * 2, tmp_path / "sum.onnx")
    register("payments", file, tmp_path / "frame.parquet", job, pipeline=None, champion=True)
    folder = resolve(job.registry_uri, "payments", into=tmp_path / "models").folder
    assert json.loads((folder / "model.json").read_text())["inputs"] == [
        {"name": "country", "kind": "category", "vocabulary": ["NO", "DE", "FR"]},
        {"name": "amount", "kind": "number"},
    ]
    matrix = np.array([[0, 0.5], [1, 0.5], [3, 0.5]], np.float32)
    assert OnnxEngine(folder).infer(matrix).tolist() == [-0.5, 0.5, 2.5]


def test_the_command_says_what_was_recorded(
    tmp_path: Path, reference: Path, trained: GradientBoostingClassifier, capfd: pytest.CaptureFixture[str]
) -> None:
    file = exported(trained, tmp_path / "tree.onnx")
    more = ["--onnx", str(file), "--reference", str(reference), "--home", str(tmp_path / "home")]
    assert run_command(["models", "register", "payments", *more, "--champion"]) == 0
    out = capfd.readouterr().out
    assert out.startswith("payments version 1 is champion, digest ")
    assert "amount (number)" in out
    pipeline = tmp_path / "shop.py"
    pipeline.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                        "from payments import payments\nfrom dataclasses import replace\n"
                        "job = payments()\njob = replace(job, features=[*job.features[1:], job.features[0]])\n")  # fmt: skip
    assert run_command(["models", "register", "payments", *more, "--pipeline", f"{pipeline}:job"]) == 1
    err = capfd.readouterr().err.splitlines()
    assert err[0].startswith("headrace: model payments: its inputs are not features of pipeline payments")
    assert len(err) > len(NAMES)


def test_a_version_without_an_alias_leaves_the_champion(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.onnx").write_bytes(b"one")
    record(uri, "m", tmp_path / "m", params={}, metrics={})
    (tmp_path / "m" / "model.onnx").write_bytes(b"two")
    assert record(uri, "m", tmp_path / "m", params={}, metrics={}, alias="").version == 2
    assert resolve(uri, "m", into=tmp_path / "models").version == 1
