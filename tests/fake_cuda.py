"""Fakes of a CUDA device and of TensorRT's runtime, which have seen neither: they hold an engine to the order of its calls.

A fake device does nothing when it is asked to, but for a launch, after which it may go on by a few steps, or not: what streams
were given is done when somebody waits, streams in any order that events and the order within a stream allow. So a copy that
nobody waited for has not happened, memory that was written again too early holds the wrong rows, what is launched before its
rows are there may see others, and memory that was never written holds NaN.
"""

import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Step = Callable[[], None]


class FakeStream:
    """What is to be done, in order; graphs are recorded on it while `recording` is a list."""

    def __init__(self, number: int) -> None:
        self.number, self.steps = number, deque[Step]()
        self.recording: list[Step] | None = None

    def add(self, step: Step) -> None:
        (self.steps if self.recording is None else self.recording).append(step)


class FakeEvent:
    happened = False


class FakeCuda:
    """models.device.Device. log: what it was asked for. hangs: launches never end. broken: nothing can be
    captured. seed: in which order streams go on."""

    def __init__(self, seed: int = 0) -> None:
        self.name, self.log = "a fake of a device", list[str]()
        self.hangs = self.broken = False
        self._random, self._streams = random.Random(seed), list[FakeStream]()
        self._memory: dict[int, tuple[str, weakref.ref[np.ndarray]]] = {}

    def pinned(self, *shape: int) -> Any:
        return self._made("host", *shape)

    def memory(self, *shape: int) -> Any:
        return self._made("device", *shape)

    def at(self, where: str, address: int, shape: Sequence[int]) -> Any:
        """The memory of a shape that begins at an address, of whoever has it by now."""
        found, kept = self._memory[address]
        array = kept()
        assert array is not None, "the memory is gone"
        assert found == where, f"expected memory of the {where}, got the {found}'s"
        return torch.from_numpy(array)[: shape[0]]

    def put(self, network: Any) -> Any:
        return network

    def stream(self) -> FakeStream:
        self._streams.append(FakeStream(len(self._streams)))
        return self._streams[-1]

    def handle(self, stream: FakeStream) -> int:
        return stream.number

    def copy(self, target: Any, source: Any, stream: FakeStream) -> None:
        assert target.shape == source.shape
        places = [(self._memory[each.data_ptr()][0], each.data_ptr(), tuple(each.shape)) for each in (target, source)]
        assert {where for where, _, _ in places} == {"host", "device"}

        def step() -> None:
            into, of = (self.at(*place) for place in places)
            into.copy_(of)

        stream.add(step)

    def do(self, work: Step, stream: FakeStream) -> None:
        stream.add(work)

    def on(self, handle: int, step: Step) -> None:
        """As `do`, for who knows a stream by its handle."""
        self._streams[handle].add(step)

    def recording(self, handle: int) -> bool:
        """Whether a stream is being captured."""
        return self._streams[handle].recording is not None

    def capture(self, work: Step, stream: FakeStream) -> list[Step]:
        assert not stream.steps, "captured while it was at work"
        if self.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.log.append("capture")
        stream.recording = []
        work()
        graph, stream.recording = stream.recording, None
        return graph

    def launch(self, graph: list[Step], stream: FakeStream) -> FakeEvent:
        self.log.append(f"launch on {stream.number}")
        event = FakeEvent()

        def done() -> None:
            event.happened = True

        for step in (*graph, done):
            stream.add(step)
        if not self.hangs:
            left = sum(len(each.steps) for each in self._streams)
            enough = self._random.randint(0, left)
            self._go(lambda: sum(len(each.steps) for each in self._streams) <= enough)
        return event

    def until(self, event: FakeEvent, seconds: float = 0.0) -> bool:
        self.log.append("until")
        if self.hangs:
            assert seconds, "it would wait for ever"
            return False
        self._go(lambda: event.happened)
        return True

    def settle(self, stream: FakeStream) -> None:
        assert stream.recording is None, "waited for what is being captured"
        self._go(lambda: not stream.steps)

    def _go(self, enough: Callable[[], bool]) -> None:
        while not enough():
            busy = [each for each in self._streams if each.steps]
            assert busy, "it waits for what no stream was given"
            self._random.choice(busy).steps.popleft()()

    def _made(self, where: str, *shape: int) -> Any:
        array = np.full(shape, np.nan, np.float32)
        made = torch.from_numpy(array)
        self._memory[made.data_ptr()] = where, weakref.ref(array)
        return made


class FakeTensorRT:
    """TensorRT's module, as far as an engine uses it: every engine computes `scores` (float32 [n, K] to [n, k]).

    broken: the name of the call that fails. kind, outputs: of its scores.
    """

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)

    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    DataType = SimpleNamespace(FLOAT="FLOAT")
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE=1)

    def __init__(self, device: FakeCuda, scores: Callable[[np.ndarray], np.ndarray], buckets: tuple[int, ...]) -> None:
        self.device, self.scores, self.buckets = device, scores, buckets
        self.broken, self.names, self.kind, self.outputs = "", ["matrix", "score"], "FLOAT", 2

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        def deserialize(content: bytes) -> "FakeEngine | None":
            if self.broken == "deserialize":
                logger.log(self.ILogger.Severity.ERROR, "built by another version")
                return None
            return FakeEngine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    """trt.ICudaEngine."""

    def __init__(self, module: FakeTensorRT) -> None:
        self._module, self.num_io_tensors = module, len(module.names)

    def get_tensor_name(self, number: int) -> str:
        return self._module.names[number]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "matrix" else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return self._module.kind

    def create_execution_context(self, memory: int) -> "FakeContext | None":
        return None if self._module.broken == "context" else FakeContext(self._module)


class FakeContext:
    """trt.IExecutionContext: a profile, then a shape, then addresses, then executions, all on one stream. It computes in memory
    of its own, which is gone with it."""

    def __init__(self, module: FakeTensorRT) -> None:
        self._module, self._rows, self._places, self._alive = module, 0, dict[str, int](), [True]
        self._shape: tuple[int, ...] = ()
        self._stream: int | None = None
        self._ran = False

    def __del__(self) -> None:
        self._alive[0] = False

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert self._stream is None, "the profile is chosen once"
        self._stream = stream

        def chosen() -> None:
            self._rows = self._module.buckets[number]

        self._module.device.on(stream, chosen)
        return self._module.broken != "profile"

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "matrix"
        assert self._rows, "a shape before the profile is chosen, on its stream"
        self._shape = shape
        return shape[0] == self._rows

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert self._shape, "asked for scores before the shape"
        return (self._rows, self._module.outputs)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self._shape, "an address before the shape"
        self._places[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert set(self._places) == {"matrix", "score"}, "executed before all addresses are known"
        assert stream == self._stream, "executed on another stream than the profile was chosen on"
        module, alive, shape = self._module, self._alive, self._shape
        assert self._ran or not module.device.recording(stream), "captured before it has run once"
        self._ran = True
        given, taken = self._places["matrix"], self._places["score"]

        def step() -> None:
            assert alive[0], "the context is gone, and its memory"
            matrix, out = (module.device.at("device", each, shape) for each in (given, taken))
            out.copy_(torch.from_numpy(module.scores(matrix.numpy())))

        module.device.on(stream, step)
        return module.broken != "execute"
