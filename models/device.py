"""A CUDA device as engines use it: memory, streams, graphs and events, by PyTorch."""

import ctypes
import time
from collections.abc import Callable
from typing import Any, Protocol

from models.engine import ModelRefused

SPIN_SECONDS, NAP_SECONDS = 0.001, 0.00005


class NoDevice(ModelRefused):
    """There is no CUDA device that can be used."""


class Device(Protocol):
    """What an engine needs of a device. Arrays are PyTorch tensors float32; streams, graphs and events are its own."""

    name: str
    """Of the device and its driver: an engine that was built for it may not run on another."""

    def pinned(self, *shape: int) -> Any:
        """Page-locked memory of the host, from and to which copies need not wait."""

    def memory(self, *shape: int) -> Any:
        """Memory of the device."""

    def put(self, network: Any) -> Any:
        """A PyTorch module, moved to the device."""

    def stream(self) -> Any:
        """What is done on a stream is done in order, and beside other streams."""

    def handle(self, stream: Any) -> int:
        """A stream's cudaStream_t."""

    def copy(self, target: Any, source: Any, stream: Any) -> None:
        """Has a stream copy an array into another of its shape; a pinned one must be left alone until it has."""

    def do(self, work: Callable[[], None], stream: Any) -> None:
        """Has a stream do what `work` asks PyTorch for."""

    def capture(self, work: Callable[[], None], stream: Any) -> Any:
        """The graph of all that `work` has the stream do; nothing is done yet. Addresses are those of now."""

    def launch(self, graph: Any, stream: Any) -> Any:
        """Has a stream do all of a graph again; returns an event that happens when it is done."""

    def until(self, event: Any, seconds: float = 0.0) -> bool:
        """Waits for an event, for so many seconds at most (0: as long as it takes); whether it happened."""

    def settle(self, stream: Any) -> None:
        """Waits until a stream has done all. Raises RuntimeError for what went wrong on the device."""


class Cuda:
    """A CUDA device by PyTorch. Raises NoDevice where there is none."""

    def __init__(self, index: int = 0) -> None:
        import torch

        if not torch.cuda.is_available():
            raise NoDevice("expected a CUDA device, got none that PyTorch can use")
        self._torch, self._device = torch, torch.device("cuda", index)
        try:
            torch.cuda.set_device(self._device)
            major, minor = torch.cuda.get_device_capability(index)
            built = f"driver for CUDA {_driver()}, PyTorch for {torch.version.cuda}"
            self.name = f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}, {built}"
        except (OSError, RuntimeError) as error:
            raise NoDevice(f"expected CUDA device {index}, got none that can be used: {error}") from error

    def pinned(self, *shape: int) -> Any:
        return self._torch.zeros(shape, dtype=self._torch.float32, pin_memory=True)

    def memory(self, *shape: int) -> Any:
        return self._torch.zeros(shape, dtype=self._torch.float32, device=self._device)

    def put(self, network: Any) -> Any:
        return network.to(self._device)

    def stream(self) -> Any:
        return self._torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def handle(self, stream: Any) -> int:
        return int(stream.cuda_stream)

    def copy(self, target: Any, source: Any, stream: Any) -> None:
        with self._torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)

    def do(self, work: Callable[[], None], stream: Any) -> None:
        with self._torch.cuda.stream(stream):
            work()

    def capture(self, work: Callable[[], None], stream: Any) -> Any:
        graph = self._torch.cuda.CUDAGraph()
        cuda = self._torch.cuda
        with cuda.stream(stream), cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            work()  # cuda.stream comes back to the stream before, too, where what is captured fails
        return graph

    def launch(self, graph: Any, stream: Any) -> Any:
        event = self._torch.cuda.Event()  # type: ignore[no-untyped-call]
        with self._torch.cuda.stream(stream):
            graph.replay()
            event.record(stream)
        return event

    def until(self, event: Any, seconds: float = 0.0) -> bool:
        if not seconds:
            event.synchronize()
            return True
        began = time.perf_counter()
        while not event.query():
            passed = time.perf_counter() - began
            if passed > seconds:
                return False
            time.sleep(NAP_SECONDS if passed > SPIN_SECONDS else 0)  # others may have the GIL meanwhile
        return True

    def settle(self, stream: Any) -> None:
        stream.synchronize()


def _driver() -> str:
    """The newest CUDA that the driver knows."""
    version = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
