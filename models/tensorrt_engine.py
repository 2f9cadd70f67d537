"""The TensorRT engine: a context for each bucket and slot, captured in CUDA graphs (models/buckets.py).

A pipeline takes it as `Model("flights", engine=TensorRT(precision="fp16", otherwise=OnnxEngine))`.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.buckets import BucketEngine, Place, Work
from models.device import Cuda, Device
from models.engine import Engine, Load, ModelRefused
from models.spec import ModelSpec, digest
from models.tensorrt import BUCKETS, CURRENT, NoTensorRT, Precision, cached, library, logger

log = logging.getLogger(__name__)


def tensorrt_engine(
    spec: ModelSpec,
    content: bytes,
    buckets: Sequence[int],
    device: Device,
    trt: Any,
    *,
    precision: str = "fp32",
    seconds: float = 0.0,
) -> BucketEngine:
    """A built engine on a device. content, buckets, precision: as `models.tensorrt.build` made it. trt: TensorRT's module.
    seconds: which a bucket may take (0: as long as it likes). Raises ModelRefused where TensorRT cannot load it there, and says
    why."""
    kept, told = logger(trt)

    def refused(what: str) -> ModelRefused:
        return ModelRefused(f"model {spec.name}: TensorRT cannot {what}: {told[-1] if told else 'it does not say why'}")

    engine = trt.Runtime(kept).deserialize_cuda_engine(content)  # each of TensorRT's objects keeps the one that made it
    if engine is None:
        raise refused("load it")
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    given = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    if len(given) != 1 or len(taken) != 1:
        raise ModelRefused(f"model {spec.name}: expected one input and one output, got {', '.join(names)}")
    for name in names:
        if (kind := engine.get_tensor_dtype(name)) != trt.DataType.FLOAT:
            raise ModelRefused(f"model {spec.name}: {name}: expected float32, got {kind}")
    profiles = {size: number for number, size in enumerate(buckets)}

    def ready(place: Place) -> Work:
        rows, stream = len(place.matrix), device.handle(place.stream)
        context = _context(trt, engine)
        if context is None:
            raise refused("run it")
        good = context.set_optimization_profile_async(profiles[rows], stream)
        device.settle(place.stream)
        good = good and context.set_input_shape(given[0], tuple(place.matrix.shape))
        good = good and context.set_tensor_address(given[0], place.matrix.data_ptr())
        if not (good and context.set_tensor_address(taken[0], place.scores.data_ptr())):
            raise refused(f"take {rows} rows")
        if math.prod(shape := context.get_tensor_shape(taken[0])) != place.scores.numel():
            raise ModelRefused(f"model {spec.name}: expected scores {list(spec.shape(rows))}, got {list(shape)}")

        def work() -> None:
            if not context.execute_async_v3(stream):
                raise refused(f"compute {rows} rows")

        return work

    return BucketEngine(spec, f"TensorRT, {precision}", buckets, device, ready, seconds)


def _context(trt: Any, engine: Any) -> Any:
    """A context with memory for its own profile alone. TensorRT for RTX is not to begin with kernels for any shape and compile
    better ones meanwhile: what is captured stays."""
    memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(memory)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(memory)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


@dataclass(frozen=True)
class TensorRT:
    """Loads a version into TensorRT: a `models.engine.Load`, for `Model(engine=...)`.

    precision: fp16 and int8 are taken only where the scores are the same to 0.002 and 0.01. buckets: the sizes that batches are
    cut to. cache: where engines are kept, by default `engines` beside the version's folder. otherwise: serves a version that
    TensorRT cannot convert or load, or all where there is no device; the log says why. Without it such a version is refused.
    device: makes the device.
    """

    precision: Precision = "fp32"
    buckets: tuple[int, ...] = BUCKETS
    cache: Path | None = None
    otherwise: Load | None = None
    device: Callable[[], Device] = Cuda

    def __call__(self, folder: Path, *, threads: int = 1, seconds: float = 0.0, checked: bool = False) -> Engine:
        try:
            return self._loaded(folder, seconds)
        except (ModelRefused, NoTensorRT, TypeError) as error:  # TypeError: TensorRT's, where it cannot use the device
            if self.otherwise is None:
                raise ModelRefused(str(error)) from error
            log.warning("%s: %s; %s serves it", folder.name, error, getattr(self.otherwise, "__name__", self.otherwise))
        return self.otherwise(folder, threads=threads, seconds=seconds, checked=checked)

    def _loaded(self, folder: Path, seconds: float) -> BucketEngine:
        device, (trt, _) = self.device(), library()
        content, plan = cached(
            folder,
            digest(folder),
            self.cache or folder.parent / "engines",
            precision=self.precision,
            device=device.name,
            buckets=self.buckets,
            capabilities=(CURRENT,),
        )
        spec = ModelSpec.read(folder)
        return tensorrt_engine(spec, content, plan.buckets, device, trt, precision=self.precision, seconds=seconds)
