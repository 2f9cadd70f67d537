"""PyTorch engines: for comparison, and for models that cannot be exported.

A pipeline takes one as `Model("clicks", engine=Torch(network_of))`, with a function that makes the network of a version's
folder: in code, its weights from a file of safetensors. Nothing of the folder is run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from models.buckets import BucketEngine, Place, Work
from models.device import Cuda, Device
from models.engine import Engine, Matrix, ModelRefused, check_matrix, profiled, warm_up
from models.spec import ModelSpec
from models.tensorrt import BUCKETS

Mode = Literal["eager", "compile", "graph"]


class TorchEngine:
    """A network on the CPU, or a device that it was moved to. It cannot end a call that takes long."""

    def __init__(self, spec: ModelSpec, network: nn.Module, device: str = "cpu") -> None:
        """network: from float32 [n, K] to [n], [n, 1] or [n, k], as it is or compiled."""
        self.spec, self.kind = spec, f"PyTorch, {device}"
        self._network, self._device = network, device

    def warm(self) -> None:
        warm_up(self)

    def profile(self, sizes: Sequence[int]) -> dict[int, float]:
        return profiled(self, sizes)

    def infer(self, matrix: Matrix, out: Matrix | None = None) -> Matrix:
        check_matrix(matrix, self.spec)
        scores = np.empty(self.spec.shape(len(matrix)), np.float32) if out is None else out
        if len(matrix):
            with torch.inference_mode():
                given = torch.from_numpy(np.require(matrix, requirements=["C", "W"]))  # PyTorch may write to all it has
                found = self._network(given.to(self._device))
                scores[:] = fitting(found, self.spec, len(matrix)).cpu().numpy().reshape(scores.shape)
        return scores

    def close(self) -> None:
        del self._network


def graph_engine(
    spec: ModelSpec, network: nn.Module, buckets: Sequence[int], device: Device, *, seconds: float = 0.0
) -> BucketEngine:
    """A network on a device, a CUDA graph for each bucket of rows. network: on the device, from float32 [n, K] to [n], [n, 1]
    or [n, k]. seconds: which a bucket may take (0: as long as it likes)."""

    def ready(place: Place) -> Work:
        def computed() -> None:
            with torch.inference_mode():
                place.scores.copy_(fitting(network(place.matrix), spec, len(place.matrix)))

        return lambda: device.do(computed, place.stream)

    return BucketEngine(spec, "PyTorch, CUDA graphs", buckets, device, ready, seconds)


@dataclass(frozen=True)
class Torch:
    """Loads a version into PyTorch: a `models.engine.Load`, for `Model(engine=...)`.

    network: makes the network of a version's folder; what it raises for files that are not such is why the version is refused.
    mode: as it is, compiled by `torch.compile` (a C++ compiler is needed, and about a minute), or captured in CUDA graphs, for
    which there has to be a device. buckets: the sizes that batches are cut to for graphs.
    """

    network: Callable[[Path], nn.Module]
    mode: Mode = "eager"
    buckets: tuple[int, ...] = BUCKETS
    device: Callable[[], Device] = Cuda

    def __call__(self, folder: Path, *, threads: int = 1, seconds: float = 0.0, checked: bool = False) -> Engine:
        """threads: PyTorch's are of the whole process. seconds: only a graph can be left alone."""
        torch.set_num_threads(threads)
        try:
            spec, network = ModelSpec.read(folder), self.network(folder).eval()
        except (OSError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelRefused(f"{folder}: PyTorch cannot load it: {type(error).__name__}: {error}") from error
        if self.mode == "graph":
            device = self.device()
            return graph_engine(spec, device.put(network), self.buckets, device, seconds=seconds)
        made: Any = torch.compile(network, dynamic=True) if self.mode == "compile" else network
        return TorchEngine(spec, made)


def fitting(scores: torch.Tensor, spec: ModelSpec, rows: int) -> torch.Tensor:
    """Scores as [n, k]; raises ValueError for another number of them."""
    if scores.numel() != rows * spec.outputs:
        expected = list(spec.shape(rows))
        raise ValueError(f"model {spec.name}: expected scores {expected}, got {list(scores.shape)}")
    return scores.reshape(rows, spec.outputs)
