"""The matrix is what the spec says, and ONNX Runtime serves just the models that match it."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from kernels.hashing.naive import hash_bytes, hash_integer
from models.engine import ModelRefused, OnnxEngine
from models.spec import Input, ModelSpec, assemble

SPEC = ModelSpec(
    "m",
    (Input("x", "number"), Input("carrier", "category", ("UA", "AA")), Input("n", "number"), Input("kind", "category", ("b",))),
    seed=3,
    metrics={"auc": 0.5},
)
KIND = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int8()), pa.array(["a", "b"]))
BATCH = pa.record_batch(
    {
        "kind": KIND,
        "n": pa.array([1, None, 3, 4]),
        "carrier": pa.array(["AA", "ZZ", None, "UA"]),
        "x": pa.array([0.5, None, 1.5, float("nan")]),
    }
)


def test_the_matrix_holds_numbers_and_codes_and_names_what_it_does_not_know() -> None:
    matrix, unknown = assemble(BATCH, SPEC)
    nan = np.nan
    np.testing.assert_array_equal(
        matrix, np.array([[0.5, 2, 1, 0], [nan, 0, nan, 1], [1.5, 0, 3, 0], [nan, 1, 4, 0]], np.float32)
    )
    assert {name: mask.tolist() for name, mask in unknown.items()} == {
        "carrier": [False, True, False, False],
        "kind": [True, False, False, True],
    }


def test_truths_and_whole_numbers_are_numbers_too() -> None:
    spec = ModelSpec("m", (Input("p", "number"), Input("q", "number")))
    batch = pa.record_batch({"p": pa.array([True, None, False]), "q": pa.array([True, False, True])})
    np.testing.assert_array_equal(assemble(batch, spec)[0], np.array([[1, 1], [np.nan, 0], [0, 1]], np.float32))


def test_a_slice_and_a_buffer_of_ones_own_give_the_same_rows() -> None:
    whole, _ = assemble(BATCH, SPEC)
    out = np.full((2, 4), np.nan, np.float32)
    part, unknown = assemble(BATCH.slice(1, 2), SPEC, out)
    assert part is out
    np.testing.assert_array_equal(part, whole[1:3])
    assert unknown["carrier"].tolist() == [True, False]
    none, _ = assemble(BATCH.slice(4), SPEC)
    assert none.shape == (0, 4)


def test_a_column_missing_or_of_another_kind_is_named() -> None:
    with pytest.raises(ValueError, match="model m: input x: expected a column of this name, got none"):
        assemble(BATCH.select(["n", "carrier", "kind"]), SPEC)
    with pytest.raises(ValueError, match="model m: input x: expected a number, got string"):
        assemble(pa.record_batch({"x": pa.array(["1"]), "carrier": pa.array(["AA"])}), SPEC)
    with pytest.raises(ValueError, match="model m: input carrier: expected a category, got int64"):
        assemble(pa.record_batch({"x": pa.array([1.0]), "carrier": pa.array([1])}), SPEC)
    with pytest.raises(ValueError, match=r"expected a matrix of 4 x 4, got \(3, 4\)"):
        assemble(BATCH, SPEC, np.empty((3, 4), np.float32))


def test_a_spec_is_read_as_it_was_written(tmp_path: Path) -> None:
    SPEC.write(tmp_path)
    assert ModelSpec.read(tmp_path) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "model.json: expected format 1, got 2"),
        ({"inputs": [{"name": "x"}]}, "model.json: expected a field kind, got none"),
        ({"inputs": [{"name": "x", "kind": "text"}]}, "input x: expected number, category, vector or hashed, got 'text'"),
        ({"inputs": [{"name": "x", "kind": "number"}] * 2}, "input x is there 2 times"),
        (
            {"inputs": [{"name": "c", "kind": "category", "vocabulary": [1]}]},
            r"input c: expected a vocabulary of strings, got \[1\]",
        ),
        ({"metrics": {"auc": "good"}}, "could not convert"),
    ],
)
def test_a_broken_spec_is_refused_with_file_and_field(tmp_path: Path, change: dict[str, object], message: str) -> None:
    SPEC.write(tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message) as caught:
        ModelSpec.read(tmp_path)
    assert str(path) in str(caught.value)


def linear(
    folder: Path, *, columns: int = 4, rows: str | int = "n", domain: str = "", external: bool = False, flat: bool = True
) -> Path:
    """A model sum_k (k + 1) x_k of a matrix [rows, columns]."""
    weights = numpy_helper.from_array(np.arange(1, columns + 1, dtype=np.float32)[:, None], "w")
    if external:
        (folder / "w.bin").write_bytes(weights.raw_data)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value="w.bin")
    nodes = [helper.make_node("MatMul", ["matrix", "w"], ["product"], name="product", domain=domain)]
    output = "product"
    if flat:
        shape = numpy_helper.from_array(np.array([-1], np.int64), "shape")
        nodes.append(helper.make_node("Reshape", ["product", "shape"], ["score"]))
        output = "score"
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [rows, columns])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows] if flat else [rows, 1])],
        [weights, *([shape] if flat else [])],
    )
    imports = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    SPEC.write(folder)
    return folder


@pytest.mark.parametrize("flat", [True, False])
def test_scores_are_the_graphs_for_any_number_of_rows(tmp_path: Path, flat: bool) -> None:
    engine = OnnxEngine(linear(tmp_path, flat=flat), threads=1)
    engine.warm()
    for n in (0, 1, 3, 257):
        matrix = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
        out = np.full(n, np.nan, np.float32)
        assert engine.infer(matrix, out) is out
        np.testing.assert_allclose(out, matrix @ np.array([1, 2, 3, 4]), rtol=1e-5, atol=1e-5)
        assert engine.infer(matrix).shape == (n,)
    profile = engine.profile([1, 100])
    assert list(profile) == [1, 100]
    assert all(0 < taken < 1 for taken in profile.values())
    with pytest.raises(ValueError, match=r"model m: expected a matrix float32 \[n, 4\], got float32 \[3, 5\]"):
        engine.infer(np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="got float64"):
        engine.infer(np.zeros((3, 4)))  # type: ignore[arg-type]
    engine.close()


def test_a_model_that_is_not_what_its_spec_says_is_refused(tmp_path: Path) -> None:
    for k, (options, message) in enumerate(
        [
            ({"columns": 5}, r"expected one input float \[n, 4\] and one output .* got matrix tensor\(float\) \['n', 5\]"),
            ({"rows": 7}, r"got matrix tensor\(float\) \[7, 4\]"),
            ({"domain": "evil"}, "node product: expected an operator of ONNX, got evil::MatMul"),
            ({"external": True}, "weights w: expected them inside the file, got w.bin"),
        ]
    ):
        folder = tmp_path / str(k)
        folder.mkdir()
        with pytest.raises(ModelRefused, match=message):
            OnnxEngine(linear(folder, **options))  # type: ignore[arg-type]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    SPEC.write(tmp_path)
    with pytest.raises(ModelRefused, match="cannot read the model"):
        OnnxEngine(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"\x00nonsense")
    with pytest.raises(ModelRefused, match="cannot read the model"):
        OnnxEngine(tmp_path)
    model = onnx.load(linear(tmp_path) / "model.onnx")
    model.graph.node[0].input[0] = "nowhere"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match=r"ONNX Runtime cannot load it: .*nowhere"):
        OnnxEngine(tmp_path)


def test_a_custom_operator_hidden_in_a_branch_is_refused(tmp_path: Path) -> None:
    linear(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    node = helper.make_node("Hidden", [], ["y"], name="hidden", domain="evil")
    inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRefused, match=r"node hidden: .* got evil::Hidden"):
        OnnxEngine(tmp_path)


VECTORS = pa.record_batch(
    {
        "x": pa.array([[1, 2], [3, 4], [5, 6], [7, 8]], pa.list_(pa.float32(), 2)),
        "y": pa.array([[1, 2, 3], None, [4, 5, 6], [7, 8, 9]], pa.list_(pa.float32(), 3)),
        "n": pa.array([10.0, None, 30.0, 40.0]),
    }
)


def test_a_vector_alone_is_the_batch_s_own_memory() -> None:
    spec = ModelSpec("m", (Input("x", "vector", width=2),))
    assert (spec.columns, spec.names) == (2, ("x",))
    whole, unknown = assemble(VECTORS, spec)
    np.testing.assert_array_equal(whole, np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32))
    assert unknown == {}
    part, _ = assemble(VECTORS.slice(1, 2), spec)
    np.testing.assert_array_equal(part, whole[1:3])
    assert part.__array_interface__["data"][0] == VECTORS["x"].values.buffers()[1].address + 8
    assert not part.flags.writeable
    assert assemble(VECTORS.slice(4), spec)[0].shape == (0, 2)
    out = np.full((2, 2), np.nan, np.float32)
    assert assemble(VECTORS.slice(1, 2), spec, out)[0] is out
    np.testing.assert_array_equal(out, part)


def test_vectors_stand_beside_numbers_and_are_nan_where_null() -> None:
    spec = ModelSpec("m", (Input("y", "vector", width=3), Input("n", "number"), Input("x", "vector", width=2)))
    nan = np.nan
    expected = [[1, 2, 3, 10, 1, 2], [nan, nan, nan, nan, 3, 4], [4, 5, 6, 30, 5, 6], [7, 8, 9, 40, 7, 8]]
    np.testing.assert_array_equal(assemble(VECTORS, spec)[0], np.array(expected, np.float32))
    np.testing.assert_array_equal(assemble(VECTORS.slice(1, 2), spec)[0], np.array(expected[1:3], np.float32))
    alone, _ = assemble(VECTORS.slice(1), ModelSpec("m", (Input("y", "vector", width=3),)))
    np.testing.assert_array_equal(alone, np.array([[nan] * 3, [4, 5, 6], [7, 8, 9]], np.float32))
    with pytest.raises(ValueError, match=r"input x: expected a vector of 3 numbers, got fixed_size_list<.*>\[2\]"):
        assemble(VECTORS, ModelSpec("m", (Input("x", "vector", width=3),)))


def test_a_spec_with_vectors_and_outputs_is_read_as_it_was_written(tmp_path: Path) -> None:
    spec = ModelSpec("m", (Input("x", "vector", width=64), Input("n", "number")), outputs=10)
    spec.write(tmp_path)
    assert ModelSpec.read(tmp_path) == spec
    for inputs, outputs, message in [
        ((Input("x", "vector", width=0),), 1, "input x: a vector has no width of 0"),
        ((Input("x", "number", width=2),), 1, "input x: a number has no width of 2"),
        ((Input("x", "vector", ("a",), 2),), 1, "input x: a vector has no vocabulary"),
        ((Input("x", "number"),), 0, "expected at least one output, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModelSpec("m", inputs, outputs=outputs)


def test_a_model_with_several_outputs_gives_a_row_of_scores(tmp_path: Path) -> None:
    weights = np.arange(8, dtype=np.float32).reshape(2, 4)
    node = helper.make_node("MatMul", ["matrix", "w"], ["scores"])
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", columns])
        for name, columns in (("matrix", 2), ("scores", 4))
    )
    graph = helper.make_graph([node], "many", [given], [made], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    inputs = (Input("x", "vector", width=2),)
    ModelSpec("many", inputs, outputs=4).write(tmp_path)
    engine = OnnxEngine(tmp_path)
    engine.warm()
    matrix, _ = assemble(VECTORS, engine.spec)
    np.testing.assert_allclose(engine.infer(matrix), matrix @ weights)
    out = np.full((4, 4), np.nan, np.float32)
    assert engine.infer(matrix, out) is out
    assert engine.infer(matrix[:0]).shape == (0, 4)
    assert list(engine.profile([1])) == [1]
    engine.close()
    for outputs, message in [(1, r"one output float \[n\] or \[n, 1\]"), (3, r"one output float \[n, 3\]")]:
        ModelSpec("many", inputs, outputs=outputs).write(tmp_path)
        with pytest.raises(ModelRefused, match=message):
            OnnxEngine(tmp_path)


HASHED = ModelSpec(
    "m",
    (Input("word", "hashed", buckets=1000), Input("n", "hashed", buckets=2**24), Input("kind", "hashed", buckets=2)),
)
WORDS = pa.record_batch(
    {
        "word": pa.array(["68fd1e64", None, "", "größer"]),
        "n": pa.array([7, -1, None, 2**40]),
        "kind": KIND,
    }
)


def bucket(hashed: int, buckets: int) -> int:
    return 1 + hashed % (buckets - 1) if hashed else 0


def test_hashed_inputs_are_the_buckets_of_text_dictionaries_and_integers() -> None:
    words = [hash_bytes(None if word is None else word.encode()) for word in WORDS["word"].to_pylist()]
    numbers = [hash_integer(number) for number in WORDS["n"].to_pylist()]
    expected = [[bucket(word, 1000) for word in words], [bucket(number, 2**24) for number in numbers], [1, 1, 0, 1]]
    matrix, unknown = assemble(WORDS, HASHED)
    assert matrix.astype(np.int64).T.tolist() == expected
    assert unknown == {}
    for column in (WORDS["word"].dictionary_encode(), WORDS["word"].cast(pa.large_string())):
        np.testing.assert_array_equal(assemble(WORDS.set_column(0, "word", column), HASHED)[0], matrix)
    np.testing.assert_array_equal(assemble(WORDS.slice(1, 2), HASHED)[0], matrix[1:3])
    assert assemble(WORDS.slice(4), HASHED)[0].shape == (0, 3)


def test_known_hashes_are_not_made_again_and_the_last_bucket_is_exact() -> None:
    hashes = {"word": np.array([5, 0, 1, 1000], np.uint64), "n": np.array([2**24 - 2, 2**24 - 1, 0, 2**64 - 1], np.uint64)}
    matrix, _ = assemble(WORDS, HASHED, hashes=hashes)
    assert matrix[:, 0].tolist() == [6, 0, 2, 2]
    assert matrix[:, 1].tolist() == [2**24 - 1, 1, 0, 1 + (2**64 - 1) % (2**24 - 1)]


@pytest.mark.parametrize(
    "column", [pa.array([1.5]), pa.array([True]), pa.array([0], pa.timestamp("us")), pa.array([2**63], pa.uint64())]
)
def test_what_cannot_be_hashed_is_named(column: pa.Array) -> None:
    with pytest.raises(ValueError, match=re.escape(f"model m: input x: expected text or integers, got {column.type}")):
        assemble(pa.record_batch({"x": column}), ModelSpec("m", (Input("x", "hashed", buckets=10),)))


def test_a_spec_with_hashed_inputs_is_read_as_it_was_written(tmp_path: Path) -> None:
    HASHED.write(tmp_path)
    assert ModelSpec.read(tmp_path) == HASHED
    assert json.loads((tmp_path / "model.json").read_text())["inputs"][0] == {"name": "word", "kind": "hashed", "buckets": 1000}
    for each, message in [
        (Input("x", "hashed"), r"input x: expected 2 to 2\^24 buckets, got 0"),
        (Input("x", "hashed", buckets=1), "buckets, got 1"),
        (Input("x", "hashed", buckets=2**24 + 1), "buckets, got 16777217"),
        (Input("x", "hashed", ("a",), buckets=10), "input x: a hashed category has no vocabulary"),
        (Input("x", "hashed", width=2, buckets=10), "input x: a hashed category has no width of 2"),
        (Input("x", "number", buckets=10), "input x: a number has no buckets"),
    ]:
        with pytest.raises(ValueError, match=message):
            ModelSpec("m", (each,))
