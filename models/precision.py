"""A model's graph with fewer bits, which is taken only where its scores stay what they were.

What it would score is computed as it stands: fp16 by ONNX's reference, since ONNX Runtime has no fp16 on a CPU and would not
round; int8 by ONNX Runtime without its optimisations, which overflow on CPUs that have no instructions for it.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from models.engine import Matrix, ModelRefused, session_of
from models.news import sample
from models.spec import ModelSpec

HALF_TOLERANCE, INT8_TOLERANCE = 2e-3, 1e-2
ROWS, MISSING = 256, 0.1
SYMMETRIC = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
}
"""As TensorRT wants it."""


def halved(content: bytes, spec: ModelSpec, tolerance: float = HALF_TOLERANCE) -> bytes:
    """The graph in fp16, with inputs and outputs as they were. Raises ModelRefused where a score of the model's sample, or of
    256 rows of the standard normal distribution, some of them missing, differs by more than `tolerance`, or is no number where
    it was one."""
    from onnx.reference import ReferenceEvaluator
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    graph = OnnxModel(convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True))
    graph.topological_sort()
    made: bytes = graph.model.SerializeToString()
    reference = ReferenceEvaluator(made)
    _check(content, lambda matrix: reference.run(None, {reference.input_names[0]: matrix})[0], spec, "fp16", tolerance)
    return made


def quantised(content: bytes, spec: ModelSpec, tolerance: float = INT8_TOLERANCE) -> bytes:
    """The graph with its matrix products in int8, symmetric, as explicit QuantizeLinear and DequantizeLinear: ranges are those
    of the model's sample and of 256 rows of the standard normal distribution. Raises ModelRefused as `halved`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = onnx.load_from_string(content).graph.input[0].name

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Matrix]] = iter([{name: _rows(spec, 0.0)}])

        def get_next(self) -> dict[str, Matrix] | None:
            return next(self._left, None)

    with tempfile.TemporaryDirectory() as scratch:
        given, taken = Path(scratch) / "full.onnx", Path(scratch) / "int8.onnx"
        given.write_bytes(content)
        quantize_static(
            given,
            taken,
            Rows(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options=SYMMETRIC,
        )
        made = taken.read_bytes()
    session = session_of(made, optimised=False)
    _check(content, lambda matrix: session.run(None, {name: matrix})[0], spec, "int8", tolerance)
    return made


def _check(content: bytes, scores: Callable[[Matrix], Any], spec: ModelSpec, precision: str, tolerance: float) -> None:
    session, matrix = session_of(content), _rows(spec, MISSING)
    full = session.run(None, {session.get_inputs()[0].name: matrix})[0]
    try:
        with np.errstate(all="ignore"):
            other = np.asarray(scores(matrix))
    except Exception as error:
        raise ModelRefused(f"model {spec.name}: in {precision} it throws: {type(error).__name__}: {error}") from error
    both = np.isfinite(full) & np.isfinite(other)
    worst = float(np.abs(full - other)[both].max(initial=0.0))
    if worst > tolerance:
        differ = f"its scores differ by {worst:.2g}, expected {tolerance:.2g} at most"
        raise ModelRefused(f"model {spec.name}: in {precision} {differ}")
    if changed := int((np.isfinite(full) != np.isfinite(other)).sum()):
        raise ModelRefused(f"model {spec.name}: in {precision} {changed} scores are numbers that were none, or the other way")


def _rows(spec: ModelSpec, missing: float) -> Matrix:
    """The model's sample, and rows of the standard normal distribution of which a share is missing, with the sample's codes."""
    rng, known = np.random.default_rng(0), sample(spec, None)
    normal = rng.standard_normal((ROWS, spec.columns)).astype(np.float32)
    normal[rng.random(normal.shape) < missing] = np.nan
    codes = np.repeat([each.kind in ("category", "hashed") for each in spec.inputs], [each.width for each in spec.inputs])
    normal[:, codes] = known[rng.integers(len(known), size=ROWS)][:, codes]
    return np.concatenate([normal, known])
