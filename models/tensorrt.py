"""Builds TensorRT engines from a version's ONNX file, for devices that need not be there.

One optimisation profile for each bucket of rows that a batch is cut to. By `tensorrt` where that is installed, else by TensorRT
for RTX, whose engines are made for compute capabilities and finish compiling on the device. Networks are strongly typed: an
fp16 or int8 engine is of such a graph, which is only taken where its scores are those of the fp32 graph (models/precision.py).
"""

import hashlib
import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnx

from models.engine import ModelRefused
from models.files import write_whole
from models.precision import halved, quantised
from models.spec import ModelSpec

BUCKETS = (1, 8, 64, 512, 4096)
CAPABILITIES = ("SM80", "SM89", "SM120")
CURRENT = "CURRENT"
"""The compute capability of the device that is there, as TensorRT for RTX calls it."""
MODULES = ("tensorrt", "tensorrt_rtx_bindings")
Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


class NoTensorRT(ImportError):  # noqa: N818
    """Neither `tensorrt` nor TensorRT for RTX is installed."""


@dataclass(frozen=True)
class Layer:
    """A layer of the network: its name, kind, and the type of its first output."""

    name: str
    kind: str
    precision: str


@dataclass(frozen=True)
class Plan:
    """What an engine was built of and for; sizes in bytes."""

    model: str
    library: str
    precision: str
    buckets: tuple[int, ...]
    capabilities: tuple[str, ...]
    layers: tuple[Layer, ...]
    size: int
    weights: int
    seconds: float


def library() -> tuple[Any, str]:
    """TensorRT's module, and its name and version. Raises NoTensorRT, which says what to install."""
    for name in MODULES:
        try:
            found = importlib.import_module(name)
        except ImportError:
            continue
        return getattr(found, "tensorrt_rtx", found), f"{name.removesuffix('_bindings')} {found.__version__}"
    raise NoTensorRT("TensorRT is not installed: pip install headrace[tensorrt], or tensorrt from NVIDIA's index")


def build(
    content: bytes,
    spec: ModelSpec,
    *,
    precision: Precision = "fp32",
    buckets: Sequence[int] = BUCKETS,
    capabilities: Sequence[str] = CAPABILITIES,
    timings: Path | None = None,
) -> tuple[bytes, Plan]:
    """The engine of an ONNX file with one input float [n, K], and its plan.

    capabilities: as TensorRT for RTX calls them, those it does not know are an error; `tensorrt` itself builds for the device
    that is there. timings: a file of how long layers took before, on the same device, which makes a build shorter; it is added
    to. Raises ModelRefused, naming the layer and TensorRT's reason, for a model that does not convert, or whose scores are
    others with fewer bits; and NoTensorRT.
    """
    (trt, name), began = library(), time.perf_counter()
    if precision != "fp32":
        content = (halved if precision == "fp16" else quantised)(content, spec)
    kept, told = logger(trt)
    builder = trt.Builder(kept)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, kept)
    if not parser.parse(content):
        raise ModelRefused(f"model {spec.name}: TensorRT cannot convert it: {'; '.join(_errors(parser)) or told[-1]}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is what it says
    if hasattr(config, "set_compute_capability"):
        timings = None  # TensorRT for RTX learns none
        known = [each for each in dir(trt.ComputeCapability) if each.startswith("SM")]
        if unknown := [each for each in capabilities if each not in (*known, CURRENT)]:
            raise ValueError(f"expected compute capabilities among {', '.join(known)}, got {', '.join(unknown)}")
        config.num_compute_capabilities = len(capabilities)
        for number, each in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, each), number)
    place = network.get_input(0).name
    for bucket in buckets:
        profile, shape = builder.create_optimization_profile(), (bucket, spec.columns)
        profile.set_shape(place, shape, shape, shape)
        config.add_optimization_profile(profile)
    layers = tuple(_layer(network.get_layer(k)) for k in range(network.num_layers))
    if timings:
        before = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
        config.set_timing_cache(before, False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelRefused(f"model {spec.name}: TensorRT cannot build it: {told[-1] if told else 'it does not say why'}")
    made, weights = bytes(engine), sum(_bytes(each) for each in onnx.load_from_string(content).graph.initializer)
    if timings:
        write_whole(timings, bytes(config.get_timing_cache().serialize()))
    took = time.perf_counter() - began
    plan = Plan(spec.name, name, precision, tuple(buckets), tuple(capabilities), layers, len(made), weights, took)
    return made, plan


def cached(
    folder: Path, digest: str, cache: Path, *, precision: Precision = "fp32", device: str = "", **built: Any
) -> tuple[bytes, Plan]:
    """`build` of a version's folder, or what it built before of the same model, precision, buckets, capabilities, library and
    device (its name and driver, where there is one)."""
    spec, (_, name) = ModelSpec.read(folder), library()
    key = json.dumps([digest, precision, device, name, sorted(built.items())], default=list)
    file = cache / f"{spec.name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.engine"
    told = file.with_suffix(".json")
    if file.exists() and told.exists():
        said = json.loads(told.read_text(encoding="utf-8"))
        said["layers"] = tuple(Layer(**each) for each in said["layers"])
        said |= {name: tuple(said[name]) for name in ("buckets", "capabilities")}
        return file.read_bytes(), Plan(**said)
    cache.mkdir(parents=True, exist_ok=True)
    timings = cache / f"{hashlib.sha256(f'{name} {device}'.encode()).hexdigest()[:24]}.timings"
    made, plan = build((folder / "model.onnx").read_bytes(), spec, precision=precision, timings=timings, **built)
    for path, content in ((file, made), (told, json.dumps(asdict(plan)).encode())):
        write_whole(path, content)
    return made, plan


def logger(trt: Any) -> tuple[Any, list[str]]:
    """A logger that keeps errors and says nothing."""
    told: list[str] = []

    class Kept(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                told.append(message)

    return Kept(), told


def _errors(parser: Any) -> list[str]:
    found = [parser.get_error(k) for k in range(parser.num_errors)]
    return [f"node {each.node_name() or each.node()} ({each.node_operator()}): {each.desc()}" for each in found]


def _layer(layer: Any) -> Layer:
    kind, precision = str(layer.type).rpartition(".")[2], str(layer.get_output(0).dtype).rpartition(".")[2]
    return Layer(layer.name, kind, precision)


def _bytes(tensor: Any) -> int:
    return int(onnx.numpy_helper.to_array(tensor).nbytes)
