"""What engines and kernels cost: the protocol over raw ONNX Runtime, and each kernel beside its naive twin.

python -m bench.engines [--turns 5] [--json FILE]

Calls of the same model alternate: ONNX Runtime's own, with the same settings; the engine's `infer`, which returns a matrix or
writes into one; and the guard's, which is what a pipeline calls. Kernels work on a large batch, and their results are checked
against the twin's first. Memory bandwidth is that of copying an array that is larger than any cache. Nothing but the machine is
needed; it takes about two minutes. Exit code 1 where a result is wrong.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.dense import write_model
from bench.figures import Figure, WrongError, figure, shown, timed
from bench.kernel_stand import CASES, Case
from bench.show import made, number, say, write
from models.engine import Matrix, OnnxEngine, session_of
from models.guard import Guard
from streams.pipeline import Model

MODELS = ((32, 64, 1), (64, 512, 256, 1))
ROWS = (1, 7, 64, 512, 4096)
BATCH = 64
MOST_MICROSECONDS, MOST_SHARE = 5.0, 0.05
SECONDS = 0.3
FASTER, OF_BANDWIDTH = 10.0, 0.5
COPIED = 2**28


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn of an engine  [default: 0.3]")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    try:
        figures = [*engines(options.turns, options.seconds), *kernels(options.turns)]
    except WrongError as error:
        print(f"bench.engines: {error}: no figures", file=sys.stderr)
        return 1
    print("\n".join(map(shown, figures)))
    settings = {"turns": options.turns, "seconds": options.seconds}
    write(made("engines", {"name": "engines"}, settings) | {"figures": figures}, options.json)
    return 0


def engines(
    turns: int, seconds: float, models: Sequence[Sequence[int]] = MODELS, sizes: Sequence[int] = ROWS
) -> Iterator[Figure]:
    """What a call takes, and how much more than a raw one."""
    for layers in models:
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), "stand", "x", layers)
            engine = OnnxEngine(Path(folder), seconds=Model("stand").limit)  # as a job has it
            raw = session_of((Path(folder) / "model.onnx").read_bytes())
        engine.warm()
        for rows in sizes:
            say(f"engine {layers}, {rows} rows")
            yield from _engine("-".join(map(str, layers)), engine, raw, rows, turns, seconds)
        engine.close()


def _engine(model: str, engine: OnnxEngine, raw: Any, rows: int, turns: int, seconds: float) -> Iterator[Figure]:
    matrix: Matrix = np.random.default_rng(rows).random((rows, engine.spec.columns), np.float32)
    place = raw.get_inputs()[0].name
    outputs = [raw.get_outputs()[0].name]
    out, guard = np.empty(rows, np.float32), Guard(engine)
    calls: dict[str, Callable[[], Any]] = {
        "ONNX Runtime": lambda: raw.run(outputs, {place: matrix})[0],
        "infer": lambda: engine.infer(matrix),
        "infer into a buffer": lambda: engine.infer(matrix, out),
        "guarded": lambda: guard.infer(matrix),
    }
    expected = calls["ONNX Runtime"]().reshape(rows)
    if any(not np.array_equal(call().reshape(rows), expected) for call in calls.values()):
        raise WrongError(f"{model}, {rows} rows: the engine gives other scores than ONNX Runtime")
    found = [taken(list(calls.values()), seconds) for _ in range(turns)]
    what = f"{model}, {rows} rows"
    yield figure("engine", f"{what}: ONNX Runtime", "us", [each[0] * 1e6 for each in found])
    for k, name in enumerate(list(calls)[1:], 1):
        if rows < BATCH:
            over = [(each[k] - each[0]) * 1e6 for each in found]
            yield figure("engine", f"{what}: {name}, more than that", "us", over, MOST_MICROSECONDS)
        else:
            over = [each[k] / each[0] - 1 for each in found]
            yield figure("engine", f"{what}: {name}, more by a share of", "", over, MOST_SHARE)


def taken(calls: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """The median seconds of calls that alternate for so long."""
    found: list[list[float]] = [[] for _ in calls]
    until = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    try:
        for k, call in cycle(enumerate(calls)):
            start = time.perf_counter()
            call()
            end = time.perf_counter()
            found[k].append(end - start)
            if end > until and len(found[-1]) >= 9:
                return [median(each) for each in found]
    finally:
        gc.enable()
    raise AssertionError


def kernels(turns: int) -> Iterator[Figure]:
    """What an item takes, and how many times as long the twin does, or what share of memory bandwidth is used."""
    most = bandwidth()
    yield figure("memory", "copied, read and written", "GB/s", [most / 1e9])
    for make, items in CASES:
        case = make(items, np.random.default_rng(0))
        say(f"kernel {case.kernel}")
        yield from _kernel(case, turns, most)


def _kernel(case: Case, turns: int, most: float) -> Iterator[Figure]:
    few = max(1, case.items // 20)
    if not case.agrees(case.run(), case.naive(few)):
        raise WrongError(f"{case.kernel}: {case.what}: the kernel gives other results than its twin")
    ours, theirs = [], []
    for _ in range(turns):
        gc.collect()
        ours.append(min(timed(case.run)[0] for _ in range(5)) / case.items)
        theirs.append(timed(case.naive, few)[0] / few)
    share = case.moved / case.items / median(ours) / most
    yield figure(case.kernel, case.what, "ns", [one * 1e9 for one in ours])
    yield figure(case.kernel, f"its twin; {number(share * 100)}% of memory bandwidth", "ns", [one * 1e9 for one in theirs])
    goal = 1 / FASTER if share < OF_BANDWIDTH else None
    yield figure(case.kernel, "share of the twin's time", "", [a / b for a, b in zip(ours, theirs, strict=True)], goal)


def bandwidth() -> float:
    """Bytes a second that are read and written by copying, the best of a few."""
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    np.copyto(target, source)
    return 2 * COPIED / min(timed(np.copyto, target, source)[0] for _ in range(5))


if __name__ == "__main__":
    sys.exit(main())
