"""Engines on a device, against fakes of the device and of TensorRT's runtime (fake_cuda.py): cut, copied, computed in order."""

import doctest
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, FakeTensorRT
from hypothesis import given
from hypothesis import strategies as st
from small_models import logistic

from models import buckets, tensorrt, tensorrt_engine
from models.buckets import BucketEngine, cutter
from models.device import Cuda, NoDevice
from models.engine import Engine, ModelRefused, OnnxEngine, TimedOut
from models.pytorch import graph_engine
from models.spec import Input, ModelSpec
from models.tensorrt import Plan
from models.tensorrt_engine import TensorRT

SIZES = (1, 8, 64)
SPEC = ModelSpec("small", tuple(Input(name, "number") for name in "abc"), outputs=2)
WEIGHTS = np.array([[1, 2], [-3, 0.5], [0.25, -1]], np.float32)


def scores(matrix: np.ndarray) -> np.ndarray:
    return (matrix.astype(np.float64) @ WEIGHTS).astype(np.float32)


def matrix_of(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((rows, seed)).standard_normal((rows, 3)).astype(np.float32)


def fake(seed: int = 0, seconds: float = 0.0) -> tuple[BucketEngine, FakeCuda, FakeTensorRT]:
    device = FakeCuda(seed)
    module = FakeTensorRT(device, scores, SIZES)
    return tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, module, seconds=seconds), device, module


def by_torch(seed: int = 0) -> BucketEngine:
    network = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(WEIGHTS.T))
    return graph_engine(SPEC, network, SIZES, FakeCuda(seed))


@pytest.mark.parametrize("made", [lambda seed: fake(seed)[0], by_torch])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 9, 63, 64, 65, 128, 129, 200, 1000])
def test_any_number_of_rows_gets_its_scores_whatever_streams_do(made: Callable[[int], Engine], rows: int) -> None:
    for seed in range(5):
        engine = made(seed)
        for turn in range(3):  # memory holds what was there before
            matrix = matrix_of(rows, turn)
            out = np.full((rows, 2), np.nan, np.float32)
            found = engine.infer(matrix, out)
            assert found is out
            np.testing.assert_allclose(found, scores(matrix), rtol=1e-5, atol=1e-6)
        engine.close()


def test_one_slot_computes_while_the_next_one_copies() -> None:
    engine, device, _ = fake()
    device.log.clear()
    engine.infer(matrix_of(64 * 4))
    launches = [k for k, words in enumerate(device.log) if words.startswith("launch")]
    assert [device.log[k] for k in launches] == ["launch on 0", "launch on 1"] * 2
    assert device.log[: launches[1] + 1].count("until") == 0, "the second is on its way before the host waits for the first"
    assert device.log.count("until") == 4


def test_all_is_captured_before_the_first_batch_and_nothing_after() -> None:
    engine, device, _ = fake()
    assert device.log.count("capture") == 2 * len(SIZES)
    engine.warm()
    engine.infer(matrix_of(100))
    assert device.log.count("capture") == 2 * len(SIZES)
    assert sorted(engine.profile((1, 100))) == [1, 100]


IN, WORK = " " * 16, "work()\n"
TO, BACK = "device.copy(matrix[:size], given[:size], stream)\n", "device.copy(taken[:size], scores[:size], stream)\n"
FILL = "            slot.given[: last - first] = matrix[first:last]\n"
LAUNCH = "            event = self._device.launch(slot.graphs[size][0], slot.stream)\n"
BROKEN: list[tuple[Any, str, str]] = [
    (buckets, TO + IN + WORK, WORK + IN + TO),
    (buckets, WORK + IN + BACK, BACK + IN + WORK),
    (buckets, FILL + LAUNCH, LAUNCH + FILL),
    (buckets, "self._until(flight.event, len(scores))", "pass"),
    (buckets, "            if len(self._flying) == SLOTS:\n                self._land(scores)\n", ""),
    (buckets, "return device.capture(whole, stream), whole", "return device.capture(whole, stream), int"),
    (buckets, "return device.capture(whole, stream), whole", "return device.capture(whole, stream), work"),
    (buckets, "            whole()  # what", "            pass  # what"),
    (buckets, "self._slots[number % SLOTS]", "self._slots[0]"),
    (buckets, "device.settle(stream)\n", "pass\n"),
    (tensorrt_engine, "good and context.set_input_shape(given[0], tuple(place.matrix.shape))", "good"),
    (tensorrt_engine, "device.settle(place.stream)\n", "pass\n"),
    (tensorrt_engine, "profiles[rows]", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "line", "other"), BROKEN)
def test_a_broken_order_is_found(module: Any, line: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Path(module.__file__).read_text(encoding="utf-8")
    assert code.count(line) == 1
    broken: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(code.replace(line, other), module.__file__, "exec"), broken)
    if module is buckets:
        monkeypatch.setattr(tensorrt_engine, "BucketEngine", broken["BucketEngine"])
    else:
        monkeypatch.setattr(tensorrt_engine, "tensorrt_engine", broken["tensorrt_engine"])

    with pytest.raises((AssertionError, ModelRefused)):  # noqa: PT012 - which of them finds it is no matter
        for seed in range(5):
            engine = fake(seed)[0]
            for rows in (3, 64 * 5, 300):
                matrix = matrix_of(rows, seed)
                np.testing.assert_allclose(engine.infer(matrix), scores(matrix), rtol=1e-5, atol=1e-6)


@given(
    sizes=st.sets(st.integers(1, 5000), min_size=1, max_size=6),
    rows=st.integers(0, 20_000),
    data=st.data(),
)
def test_a_cut_holds_all_rows_and_is_no_dearer_than_the_smallest_bucket_that_does(
    sizes: set[int], rows: int, data: st.DataObject
) -> None:
    costs = {size: data.draw(st.floats(0.1, 100)) for size in sizes}
    cut = cutter(costs)(rows)
    assert list(cut) == sorted(cut, reverse=True)
    assert sum(cut) >= rows
    assert not cut or sum(cut[:-1]) < rows, "none is empty"
    holds = [size for size in sizes if size >= rows]
    if rows and holds:
        assert sum(costs[size] for size in cut) <= costs[min(holds)] * (1 + 1e-9)


def test_a_cut_by_costs() -> None:
    failed, tried = doctest.testmod(buckets)
    assert (failed, tried) == (0, 2)
    assert len(cutter({1: 1.0, 4096: 1e9})(4095)) == 4095


def test_a_device_that_takes_too_long_is_left_alone_and_asked_again() -> None:
    engine, device, _ = fake(seconds=0.5)
    device.hangs = True
    for _ in range(3):
        with pytest.raises(TimedOut, match=r"model small: expected scores of 70 rows within 0.5 s, got none"):
            engine.infer(matrix_of(70))
    assert sum(words.startswith("launch") for words in device.log) == 2, "what is on its way is waited for first"
    device.hangs = False
    matrix = matrix_of(70, 9)
    np.testing.assert_allclose(engine.infer(matrix), scores(matrix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("deserialize", "TensorRT cannot load it: built by another version"),
        ("context", "TensorRT cannot run it: it does not say why"),
        ("profile", "TensorRT cannot take 1 rows"),
        ("execute", "TensorRT cannot compute 1 rows"),
    ],
)
def test_what_tensorrt_refuses_is_said(broken: str, words: str) -> None:
    device = FakeCuda()
    module = FakeTensorRT(device, scores, SIZES)
    module.broken = broken
    with pytest.raises(ModelRefused, match=f"model small: {words}"):
        tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, module)
    module.broken, module.names = "", ["matrix", "score", "more"]
    with pytest.raises(ModelRefused, match="expected one input and one output, got matrix, score, more"):
        tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, module)


def test_scores_that_are_not_those_of_the_spec_are_refused() -> None:
    device = FakeCuda()
    module = FakeTensorRT(device, scores, SIZES)
    module.outputs = 3
    with pytest.raises(ModelRefused, match=r"model small: expected scores \[1, 2\], got \[1, 3\]"):
        tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, module)
    module.kind = "HALF"
    with pytest.raises(ModelRefused, match="model small: matrix: expected float32, got HALF"):
        tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, module)


def test_what_a_device_cannot_capture_is_refused() -> None:
    device = FakeCuda()
    device.broken = True
    with pytest.raises(ModelRefused, match="model small: the device cannot run it: CUDA error"):
        tensorrt_engine.tensorrt_engine(SPEC, b"plan", SIZES, device, FakeTensorRT(device, scores, SIZES))


def test_batches_are_cut_by_what_buckets_were_measured_to_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, device, _ = fake()
    costs = iter([1.0, 1.1, 1000.0])
    monkeypatch.setattr("models.engine.median_seconds", lambda call: next(costs))
    engine.warm()
    device.log.clear()
    matrix = matrix_of(63)
    np.testing.assert_allclose(engine.infer(matrix), scores(matrix), rtol=1e-5, atol=1e-6)
    assert sum(words.startswith("launch") for words in device.log) == 8


def test_other_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model small: expected a matrix float32 \[n, 3\], got float64 \[2, 3\]"):
        fake()[0].infer(np.zeros((2, 3)))  # type: ignore[arg-type]


def written(folder: Path) -> None:
    logistic(folder, ModelSpec("small", SPEC.inputs), np.array([1, 2, 3], np.float32))


def no_device() -> Any:
    raise NoDevice("expected a CUDA device, got none that PyTorch can use")


def test_without_a_device_the_engine_that_was_named_for_it_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path / "version")
    with caplog.at_level(logging.WARNING):
        engine = TensorRT(otherwise=OnnxEngine, device=no_device)(tmp_path / "version", seconds=1.0)
    assert isinstance(engine, OnnxEngine)
    assert "expected a CUDA device, got none that PyTorch can use; OnnxEngine serves it" in caplog.text
    engine.close()
    with pytest.raises(ModelRefused, match="expected a CUDA device, got none"):
        TensorRT(device=no_device)(tmp_path / "version")


def test_a_version_is_built_once_for_a_device_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "version")
    spec, built, device = ModelSpec.read(tmp_path / "version"), [], FakeCuda()
    plain = OnnxEngine(tmp_path / "version")
    module = FakeTensorRT(device, lambda matrix: plain.infer(matrix).reshape(-1, 1), SIZES)
    module.outputs = 1

    def build(content: bytes, spec: ModelSpec, **settings: Any) -> tuple[bytes, Plan]:
        built.append(settings)
        return b"plan", Plan(spec.name, "fake", "fp32", SIZES, ("CURRENT",), (), 4, 0, 0.0)

    monkeypatch.setattr(tensorrt, "build", build)
    for module_of in (tensorrt, tensorrt_engine):
        monkeypatch.setattr(module_of, "library", lambda: (module, "fake 1"))
    load = TensorRT(buckets=SIZES, device=lambda: device)
    for _ in range(2):
        engine = load(tmp_path / "version")
        matrix = np.random.default_rng(0).random((70, spec.columns), np.float32)
        np.testing.assert_allclose(engine.infer(matrix), plain.infer(matrix), rtol=1e-6)
        engine.close()
    (settings,) = built
    assert settings.pop("timings").parent == tmp_path / "engines"
    assert settings == {"precision": "fp32", "buckets": SIZES, "capabilities": ("CURRENT",)}
    assert len(list((tmp_path / "engines").glob("small-*.engine"))) == 1


def test_cuda_says_that_it_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("NOT PROVEN: there is a CUDA device")
    with pytest.raises(NoDevice, match="expected a CUDA device, got none that PyTorch can use"):
        Cuda()
