"""What it costs to swap the model of a job under load every few seconds.

python -m bench.swap                                   # about a quarter of an hour
python -m bench.swap --rate 5000 --seconds 60 --json swap.json

One job on an Apache Kafka decides at half of its highest rate, which is measured first. Phases without and with swaps take
turns: in these another version is made champion every five seconds, and the job finds it by itself. The versions have other
weights or other inputs, and one is a table of 80 MB. Latency is from when a message was due to when the broker appended its
decision; the longest gap is that between any two decisions. Both are also given of windows of five seconds, which have one swap
or none. Phases are short and many, since a host that others use has minutes that are worse than others. At 20,000/s the broker
collects its garbage every 20 s, and p99.9 of a phase is then: so what counts of a phase, all but its first five seconds, should
last a multiple of 20 s, or those of one kind have more of it. Exit code 1 if a message is lost, doubled, or decided by a
version that never was champion, or if p99.9 or the longest gap is more than 10 ms over that of the phases without.
"""

import argparse
import itertools
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from bench.figures import Figure, figure
from bench.options import leave_on_sigterm
from bench.proving.job import NAME, graph_of, logistic
from bench.proving.lives import Stand
from bench.proving.phases import Kind, at_half, compared, phased, quantiles, told, windows
from bench.proving.stream import SECONDS_A_BIN
from bench.show import made
from models.registry import newest, promote, record, resolve
from models.spec import ModelSpec
from ops.beside import least
from streams.settings import JobSettings

GOAL_MS = 10.0
EVERY_SECONDS = 5.0
TABLE_ROWS = 5_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.swap", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=None, help="messages a second  [default: half of the highest]")
    parser.add_argument("--seconds", type=float, default=25, help="of a phase  [default: 25]")
    parser.add_argument("--turns", type=int, default=12, help="of a phase without and one with swaps  [default: 12]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    head = made("swap", {"name": "swap"}, {})  # of the code as it is when it begins
    with at_half("swap", options) as (stand, folder, rate):
        numbers = publish(stand.base, folder)
        figures, wrong = run(stand, numbers, rate, options)
    return told(head, figures, wrong, "nothing lost, doubled or unnamed", rate, options)


def run(stand: Stand, numbers: Sequence[int], rate: float, options: argparse.Namespace) -> tuple[list[Figure], list[str]]:
    """The job under load through all phases; the figures, and what is wrong."""
    next_one = itertools.cycle([*numbers[1:], numbers[0]])
    with elsewhere(stand.base.registry_uri) as promoted:
        kinds = [Kind("without"), Kind("with a swap every 5 s", act=lambda life: promoted(next(next_one)))]
        seen = phased(stand, rate, options.workers, options.turns, options.seconds, EVERY_SECONDS, kinds)
    versions = seen.found.versions
    wrong = seen.wrong + ([f"versions {unnamed} decided"] if (unnamed := versions.keys() - set(numbers)) else [])
    wrong += [f"version {number} never decided" for number in numbers if not versions.get(number)]
    goals = {"p99.9": GOAL_MS, "longest gap": GOAL_MS}
    figures = compared("swap", quantiles(seen, {"p50": 0.5, "p99.9": 0.999}), goals, {})
    for kind, of in quantiles(windows(seen), {"p99.9": 0.999}).items():
        figures += [figure("swap", f"{name} of {SECONDS_A_BIN:.0f} s {kind}", "ms", values) for name, values in of.items()]
    return [*figures, figure("swap", "swaps", "", [float(seen.said.count("decides from now on"))])], wrong


@contextmanager
def elsewhere(uri: str) -> Iterator[Callable[[int], None]]:
    """What makes a version the champion, in a process that stands for somebody's on another machine: it has the time that
    nobody else wants, and holds up none of what is measured."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_promoting, args=(uri, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()  # its libraries are loaded
        yield ours.send
    finally:
        with suppress(OSError):  # it is gone
            ours.send(0)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"who promotes versions ended with exit code {process.exitcode}")


def _promoting(uri: str, numbers: Connection) -> None:
    numbers.send(newest(uri, NAME))
    least()
    while number := numbers.recv():
        promote(uri, NAME, number)


def publish(settings: JobSettings, folder: Path) -> list[int]:
    """Three more versions beside the champion; returns the numbers of all four."""
    first = resolve(settings.registry_uri, NAME, into=settings.home / "models")
    spec = ModelSpec.read(first.folder)
    numbers = [first.version]
    for name, inputs, graph in (
        ("weights", spec.inputs, logistic(4, 3e-7)),
        ("inputs", (spec.inputs[2], spec.inputs[0], spec.inputs[1]), logistic(3, 2e-7)),
        ("large", spec.inputs, table()),
    ):
        here = folder / f"version-{name}"
        here.mkdir()
        ModelSpec(NAME, inputs).write(here)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(here / "model.onnx"))
        numbers.append(record(settings.registry_uri, NAME, here, params={}, metrics={}, alias="").version)
    return numbers


def table() -> Any:
    """A score that is looked up by the first input, in 80 MB."""
    rows = np.random.default_rng(0).random((TABLE_ROWS, 4), np.float32) / 4
    numbers = {"rows": rows, "first": np.array([0]), "count": np.array([TABLE_ROWS]), "axis": np.array([1])}
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["n"], axis=1),
        helper.make_node("Cast", ["n"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mod", ["whole", "count"], ["place"]),
        helper.make_node("Squeeze", ["place", "axis"], ["places"]),
        helper.make_node("Gather", ["rows", "places"], ["found"], axis=0),
        helper.make_node("ReduceSum", ["found", "axis"], ["score"], keepdims=1),
    ]
    return graph_of(nodes, 4, numbers)


if __name__ == "__main__":
    sys.exit(main())
