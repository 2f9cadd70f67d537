"""A GPU measured: its own ceilings, our kernels, and engines side by side.

python -m bench.gpu [--json FILE] [--seconds 0.5]

It needs a CUDA device, PyTorch built for it and CuPy; ONNX Runtime for CUDA and TensorRT take part where they are installed.
Every kernel's results are first compared with its naive twin's, and every engine's scores with ONNX Runtime's on the CPU: what
differs has no figures, and the exit code is 1. Then: what the device copies and multiplies at most; bytes a second of each
kernel, and their share of that; and for each engine and number of rows the time from a matrix in the host's memory to scores
there, copies included. The model is DLRM (bench/dlrm.py). It takes a few minutes.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench import dlrm
from bench.engines import taken
from bench.figures import Figure, WrongError, figure, shown
from bench.gpu_checks import CHECKS, SIZES, On
from bench.gpu_stand import CASES
from bench.show import made, number, say, write
from kernels.gather import gpu as gather
from kernels.gpu import launch
from models.device import Cuda, NoDevice
from models.engine import Engine, Matrix, ModelRefused, OnnxEngine
from models.pytorch import TorchEngine, graph_engine
from models.spec import ModelSpec
from models.tensorrt_engine import TensorRT

ROWS = (1, 8, 64, 512, 4096)
TOLERANCE, FP16_TOLERANCE = 1e-3, 1e-2
COPIED, SIDE, CALLS, BUSY_CYCLES = 2**30, 8192, 20, 20_000_000
MORE = ("torch", "cupy-cuda13x", "cupy-cuda12x", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="of each engine and number of rows  [default: 0.5]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    try:
        device = Cuda()
        import cupy
    except (NoDevice, ImportError) as error:
        print(f"bench.gpu: {error}: nothing was measured", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    print(device.name)
    figures: list[Figure] = []
    wrong: list[str] = []
    for one in chain(ceilings(), kernels(cupy, wrong), engines(device, cupy, options.seconds, wrong)):
        print(shown(one), flush=True)
        figures.append(one)
    for words in wrong:
        print(f"WRONG: {words}", file=sys.stderr)
    whole = made("gpu", {"name": "gpu"}, {"seconds": options.seconds})
    whole["versions"] |= dict(filter(None, map(_version, MORE)))
    write(whole | {"device": device.name, "figures": figures, "wrong": wrong}, options.json)
    return bool(wrong)


def ceilings() -> Iterator[Figure]:
    """What the device copies and multiplies."""
    here = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    pinned = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    yield figure("ceiling", "copied on the device, read and written", "GB/s", [each / 1e9 for each in copied()])
    for what, target, source in (("to", here, pinned), ("from", pinned, here)):
        seconds = on_device(partial(target.copy_, source, non_blocking=True))
        yield figure("ceiling", f"copied {what} the device", "GB/s", [COPIED / each / 1e9 for each in seconds])
    for what, kind, tf32 in (("fp32", torch.float32, False), ("tf32", torch.float32, True), ("fp16", torch.float16, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        square = torch.randn(SIDE, SIDE, dtype=kind, device="cuda")
        seconds = on_device(partial(torch.matmul, square, square))
        yield figure("ceiling", f"multiplied, {what}", "TFLOP/s", [2 * SIDE**3 / each / 1e12 for each in seconds])
    torch.backends.cuda.matmul.allow_tf32 = False


def kernels(cupy: Any, wrong: list[str]) -> Iterator[Figure]:
    """Each kernel checked, then its bytes a second."""
    on, most = On(launch, cupy.asarray, cupy.asnumpy), median(copied())
    for name, check in CHECKS.items():
        say(f"kernel {name}")
        try:
            for n in (*SIZES, 100_003):
                check(on, n)
        except (AssertionError, RuntimeError) as error:  # CuPy's are RuntimeErrors
            wrong.append(f"kernel {name}: other results than its naive twin: {error}")
            continue
        if name not in CASES:
            continue
        case = CASES[name](cupy)
        moved = [case.moved / each for each in on_device(case.run)]
        yield figure(case.kernel, case.what, "GB/s", [each / 1e9 for each in moved])
        yield figure(case.kernel, "of what the device copies", "%", [100 * each / most for each in moved])


def engines(device: Cuda, cupy: Any, seconds: float, wrong: list[str]) -> Iterator[Figure]:
    """Engines of one model side by side, in turns for each number of rows."""
    with tempfile.TemporaryDirectory(prefix="headrace-gpu-") as scratch:
        folder = Path(scratch) / "dlrm"
        folder.mkdir()
        dlrm.write_model(folder, "dlrm", dlrm.BUCKETS)
        spec, network = ModelSpec.read(folder), dlrm.network_of(folder).eval()
        reference = OnnxEngine(folder)
        found: dict[str, Engine] = {}
        for name, load in _loads(folder, spec, network.to("cuda"), device, cupy).items():
            say(f"engine {name}: made ready")
            try:
                engine = load()
                engine.warm()
                agree(name, engine, reference, spec)
                found[name] = engine
            except WrongError as error:
                wrong.append(str(error))
            except (ModelRefused, ImportError, RuntimeError, TypeError) as error:
                say(f"engine {name}: takes no part: {type(error).__name__}: {error}")
        for rows in ROWS:
            say(f"engines: {rows} rows")
            yield from _engines(found, rows, spec, seconds)


def _loads(folder: Path, spec: ModelSpec, network: dlrm.Dlrm, device: Cuda, cupy: Any) -> dict[str, Callable[[], Engine]]:
    compiled: Any = torch.compile(network, dynamic=True)
    gathering = dlrm.Gathering(network, partial(_by_kernel, cupy))
    return {
        "PyTorch": lambda: TorchEngine(spec, network, "cuda"),
        "PyTorch, compiled": lambda: TorchEngine(spec, compiled, "cuda"),
        "PyTorch, CUDA graphs": lambda: graph_engine(spec, network, ROWS, device),
        "our gather, CUDA graphs": lambda: graph_engine(spec, gathering, ROWS, device),
        "ONNX Runtime, CUDA": lambda: OnnxEngine(folder, device="cuda"),
        "TensorRT": lambda: TensorRT(buckets=ROWS)(folder),
        "TensorRT, fp16": lambda: TensorRT(precision="fp16", buckets=ROWS)(folder),
    }


def _by_kernel(cupy: Any, matrix: torch.Tensor, first: int, *arrays: torch.Tensor) -> None:
    """kernels/gather on PyTorch's tensors, where they are, and on its stream."""
    tables, starts, out = map(cupy.from_dlpack, arrays)
    with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
        gather.gather(cupy.from_dlpack(matrix), first, tables, starts, out)


def _engines(found: dict[str, Engine], rows: int, spec: ModelSpec, seconds: float) -> Iterator[Figure]:
    matrix = dlrm.matrix(rows, spec)
    calls = [partial(engine.infer, matrix) for engine in found.values()]
    if not calls:
        return
    turns = [taken(calls, seconds) for _ in range(3)]
    for k, name in enumerate(found):
        mine = [each[k] for each in turns]
        yield figure(name, f"{rows} rows, copies included", "us", [each * 1e6 for each in mine])
        yield figure(name, f"{rows} rows", "rows/s", [rows / each for each in mine])
        yield figure(name, f"{rows} rows", "TFLOP/s", [rows * dlrm.FLOP / each / 1e12 for each in mine])


def agree(name: str, engine: Engine, reference: Engine, spec: ModelSpec) -> None:
    """Raises WrongError where an engine's scores are not those of ONNX Runtime on the CPU."""
    tolerance = FP16_TOLERANCE if "fp16" in name else TOLERANCE
    for rows in (0, 1, 7, 64, 1023, 9000):
        matrix: Matrix = dlrm.matrix(rows, spec)
        got, expected = engine.infer(matrix), reference.infer(matrix)
        worst = float(np.abs(got - expected).max(initial=0.0))
        if not worst <= tolerance:
            raise WrongError(f"engine {name}: {rows} rows: expected scores to {tolerance:g}, got {number(worst)} apart")


def on_device(call: Callable[[], Any]) -> list[float]:
    """The seconds of calls on the device, after a few that are not counted; all are queued while it is kept busy."""
    for _ in range(3):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS + 1)]  # type: ignore[no-untyped-call]
    torch.cuda._sleep(BUSY_CYCLES)  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def copied() -> list[float]:
    """The bytes a second that the device reads and writes when it copies what is larger than its cache."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    return [2 * COPIED / each for each in on_device(partial(torch.empty_like(source).copy_, source))]


def _version(package: str) -> tuple[str, str] | None:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
