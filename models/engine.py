"""Engines: what turns a matrix into scores. ONNX Runtime on a CPU is the default; others fit the same protocol: PyTorch
(models/pytorch.py), TensorRT (models/tensorrt_engine.py)."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as native

from models.spec import ModelSpec

Matrix = npt.NDArray[np.float32]
FLOAT32 = np.dtype(np.float32)
PLAIN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
UNLOADABLE = (
    native.Fail, native.InvalidArgument, native.InvalidGraph, native.InvalidProtobuf, native.NoSuchFile, native.NotImplemented,
    native.RuntimeException,
)  # fmt: skip
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
GRAPH, MAPPED = "model.onnx", ".mapped"
WARM_SIZES = (1, 7, 64, 1024)
LEAST_LOOK_SECONDS = 0.005


class Engine(Protocol):
    """A loaded model. One thread uses it at a time. kind: what computes it, for people: a few words that hold no version."""

    spec: ModelSpec
    kind: str

    def warm(self) -> None:
        """Called once before the first batch: makes later calls as fast as they will be."""

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        """The seconds that `infer` takes for each number of rows: the median of a few calls."""

    def infer(self, matrix: Matrix, out: Matrix | None = None) -> Matrix:
        """Scores float32 [n], or [n, k] of a model with k > 1 outputs, of a matrix float32 [n, K], columns as in spec.inputs;
        `out` of that shape is written into and returned."""

    def close(self) -> None:
        """Called once after the last batch: gives back threads and memory."""


class Load(Protocol):
    """Makes the engine of a version's folder: an engine's class, or what calls one.

    threads: of one call, where that is the engine's to choose. seconds: which a call may take (0: as long as it likes), else it
    raises TimedOut. checked: the files are known to be good, and what was made from them (models/mapped.py): what may take
    seconds with a large model is left out. Raises ModelRefused for a version that cannot be served.
    """

    def __call__(self, folder: Path, *, threads: int = 1, seconds: float = 0.0, checked: bool = False) -> Engine: ...


class TimedOut(TimeoutError):  # noqa: N818
    """A call of a model took too long, and was ended."""


def timed_out(spec: ModelSpec, rows: int, seconds: float) -> TimedOut:
    """That a call of a model took longer than so many seconds."""
    return TimedOut(f"model {spec.name}: expected scores of {rows} rows within {seconds:g} s, got none")


class Limit:
    """Ends calls of a session that take longer than so many seconds: between two nodes of its graph, nobody can within one."""

    def __init__(self, seconds: float) -> None:
        """options: of the calls to limit, each within `with`; passed: whether the last one was ended."""
        self.options, self.passed, self.seconds = ort.RunOptions(), False, seconds
        self._began = 0.0
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="limit", daemon=True)
        self._thread.start()

    def __enter__(self) -> None:
        with self._lock:
            if self.passed:
                self.options.terminate = self.passed = False
            self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._lock:
            self._began = 0.0

    def end(self) -> None:
        """Has its thread end."""
        self._closed.set()

    def close(self) -> None:
        """Ends its thread."""
        self.end()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(max(self.seconds / 4, LEAST_LOOK_SECONDS)):
            with self._lock:
                if self._began and time.monotonic() - self._began > self.seconds:
                    self.options.terminate = self.passed = True


class ModelRefused(ValueError):  # noqa: N818
    """The files of a model cannot be served; the message says which and why."""


class OnnxEngine:
    """model.onnx of a folder beside its model.json, in ONNX Runtime.

    threads, seconds, checked: see Load. device: "cpu", or "cuda" where ONNX Runtime is built for it. The graph takes one float
    matrix [n, K] with any n and gives one float [n] or [n, 1], or [n, k] for k outputs. Raises ModelRefused for another shape,
    weights outside the file, or operators that are not ONNX's own.
    """

    def __init__(
        self, folder: Path, *, threads: int = 1, seconds: float = 0.0, checked: bool = False, device: str = "cpu"
    ) -> None:
        self.spec, self.kind = ModelSpec.read(folder), f"ONNX Runtime, {device}"
        path = folder / GRAPH
        try:
            session = _mapped_session(folder, threads) if checked and device == "cpu" else None
            self.mapped = session is not None
            # a path is read by the runtime, Python is not held meanwhile
            self._session = session or session_of(str(path) if checked else checked_graph(path)[0], threads, device)
        except UNLOADABLE as error:
            raise ModelRefused(f"{path}: ONNX Runtime cannot load it: {error}") from None
        name, output = _check_shape(self._session, self.spec, path)
        self._input, self._outputs, self._single = name, [output], self.spec.outputs == 1
        self._call = self._session._sess.run  # what InferenceSession.run looks for first, in a microsecond, is known here
        self._limit = Limit(seconds) if seconds else None
        if self._limit:
            weakref.finalize(self, self._limit.end)  # who forgets to close an engine leaves no thread behind

    def warm(self) -> None:
        warm_up(self)

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return profiled(self, sizes)

    def infer(self, matrix: Matrix, out: Matrix | None = None) -> Matrix:
        check_matrix(matrix, self.spec)
        scores = self._run(matrix) if len(matrix) else np.empty(self.spec.shape(0), np.float32)
        if len(scores) != len(matrix):
            raise ValueError(f"model {self.spec.name}: expected scores of {len(matrix)} rows, got {list(scores.shape)}")
        if self._single:
            scores = scores.reshape(-1)
        if out is None:
            return scores
        out[:] = scores
        return out

    def _run(self, matrix: Matrix) -> Matrix:
        limit = self._limit
        if limit is None:
            return self._call(self._outputs, {self._input: matrix}, None)[0]
        try:
            with limit:
                return self._call(self._outputs, {self._input: matrix}, limit.options)[0]
        except native.Fail:
            if not limit.passed:
                raise
        raise timed_out(self.spec, len(matrix), limit.seconds)

    def close(self) -> None:
        if self._limit:
            self._limit.close()
        del self._call, self._session


def check_matrix(matrix: Matrix, spec: ModelSpec) -> None:
    """Raises ValueError for another matrix than a model takes."""
    if matrix.ndim != 2 or matrix.shape[1] != spec.columns or matrix.dtype != FLOAT32:
        found = f"{matrix.dtype} {list(matrix.shape)}"
        raise ValueError(f"model {spec.name}: expected a matrix float32 [n, {spec.columns}], got {found}")


def session_of(content: bytes | str, threads: int = 1, device: str = "cpu", *, optimised: bool = True) -> ort.InferenceSession:
    """An ONNX model, or the file of one, on the CPU or on "cuda", with full precision. optimised: else its nodes are computed
    as they stand. Raises what is in UNLOADABLE, and ModelRefused where ONNX Runtime is not built for the device."""
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ModelRefused(f"expected an ONNX Runtime with {provider}, got one with {', '.join(ort.get_available_providers())}")
    if device == "cuda":
        ort.preload_dlls()  # CUDA's libraries may be those of PyTorch
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(content, options, providers=[(provider, {"use_tf32": "0"} if device == "cuda" else {})])
    if provider not in session.get_providers():  # it says so in a log, and takes the CPU
        raise ModelRefused(f"expected ONNX Runtime to use {provider}, got {', '.join(session.get_providers())}")
    return session


def warm_up(engine: Engine) -> None:
    """A call of each of a few sizes."""
    for rows in WARM_SIZES:
        engine.infer(_zeros(engine, rows))


def profiled(engine: Engine, sizes: Sequence[int]) -> dict[int, float]:
    """The median seconds of a few calls, for each number of rows."""
    return {rows: median_seconds(partial(engine.infer, _zeros(engine, rows))) for rows in sizes}


def _zeros(engine: Engine, rows: int) -> Matrix:
    return np.zeros((rows, engine.spec.columns), np.float32)


def median_seconds(call: Callable[[], object], calls: int = 9) -> float:
    """What a call takes, in the median."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def mapped(folder: Path) -> Path:
    """Where a version's graph is once more, with its weights apart (models/mapped.py), if it is: beside its folder, whose own
    files are those of its digest."""
    return folder.with_name(folder.name + MAPPED)


def _mapped_session(folder: Path, threads: int) -> ort.InferenceSession | None:
    path = mapped(folder) / GRAPH
    try:
        return session_of(str(path), threads) if path.exists() else None
    except UNLOADABLE:  # it went since, with the news of two newer versions
        return None


def checked_graph(path: Path) -> tuple[bytes, onnx.ModelProto]:
    """A graph's file, and what is in it. Raises ModelRefused for one that is not to be served."""
    try:
        content = path.read_bytes()
        graph = onnx.load_model_from_string(content)
    except (OSError, DecodeError) as error:
        raise ModelRefused(f"{path}: cannot read the model: {error}") from None
    check_graph(graph, str(path))
    return content, graph


def check_graph(model: onnx.ModelProto, path: str) -> None:
    """Raises ModelRefused, beginning with `path`, for weights outside the file, or operators that are not ONNX's own."""
    local = {(function.domain, function.name) for function in model.functions}
    for graph in _graphs(model.graph):
        sparse = [part for each in graph.sparse_initializer for part in (each.values, each.indices)]
        for tensor in (*graph.initializer, *sparse):
            _check_tensor(tensor, path)
        for node in graph.node:
            _check_node(node, path, local)
    for function in model.functions:
        for node in function.node:
            _check_node(node, path, local)


def _check_node(node: onnx.NodeProto, path: str, local: set[tuple[str, str]]) -> None:
    if node.domain not in PLAIN_DOMAINS and (node.domain, node.op_type) not in local:
        raise ModelRefused(f"{path}: node {node.name}: expected an operator of ONNX, got {node.domain}::{node.op_type}")
    for attribute in node.attribute:
        for tensor in (attribute.t, *attribute.tensors):
            _check_tensor(tensor, path)


def _check_tensor(tensor: onnx.TensorProto, path: str) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "another file")
        raise ModelRefused(f"{path}: weights {tensor.name}: expected them inside the file, got {where}")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _check_shape(session: ort.InferenceSession, spec: ModelSpec, path: Path) -> tuple[str, str]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    given = "[n] or [n, 1]" if spec.outputs == 1 else f"[n, {spec.outputs}]"
    expected = f"one input float [n, {spec.columns}] and one output float {given}"
    found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in (*inputs, *outputs))
    good = len(inputs) == len(outputs) == 1 and inputs[0].type == outputs[0].type == "tensor(float)"
    if good:
        rows, *rest = inputs[0].shape
        good = not isinstance(rows, int) and rest == [spec.columns]
        shapes = ([], [1]) if spec.outputs == 1 else ([spec.outputs],)
        good = good and not isinstance(outputs[0].shape[0], int) and outputs[0].shape[1:] in shapes
    if not good:
        raise ModelRefused(f"{path}: expected {expected} as in model.json, got {found}")
    return inputs[0].name, outputs[0].name
