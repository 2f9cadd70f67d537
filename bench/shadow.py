"""What a shadow costs the champion.

python -m bench.shadow                                 # about six minutes
python -m bench.shadow --rate 5000 --seconds 60 --json shadow.json

One job on an Apache Kafka decides at half of its highest rate, which is measured first. Phases take turns: without a shadow;
with one; with one that hangs at its first batch, and rests; with one that is killed once it is ready, looked at every five
seconds, and rests. Latency is from when a message was due to when the broker appended its decision. Exit code 1 if a message is
lost or doubled, if a shadow has scored nothing, or if p99 with one is more than 1.1 times that without.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import psutil
from onnx import TensorProto, helper

from bench.figures import Figure, figure
from bench.options import leave_on_sigterm
from bench.proving.job import NAME, graph_of, logistic
from bench.proving.lives import Life, Stand
from bench.proving.phases import Kind, at_half, compared, phased, quantiles, told
from bench.show import made
from models.registry import ModelNotFound, record, resolve, shadow
from models.shadow import READY, Compared, shadow_folder
from models.spec import ModelSpec
from ops.model_shadow import PROCESS
from streams.settings import JobSettings

GOAL_TIMES = 1.1
EVERY_SECONDS = 5.0
HANGS_FROM = 1000.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.shadow", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=None, help="messages a second  [default: half of the highest]")
    parser.add_argument("--seconds", type=float, default=25, help="of a phase  [default: 25]")
    parser.add_argument("--turns", type=int, default=3, help="of each kind of phase  [default: 3]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    leave_on_sigterm()
    head = made("shadow", {"name": "shadow"}, {})  # of the code as it is when it begins
    with at_half("shadow", options) as (stand, folder, rate):
        well, hanging = publish(stand.base, folder)
        figures, wrong = run(stand, well, hanging, rate, options)
    return told(head, figures, wrong, "nothing lost or doubled", rate, options)


def run(stand: Stand, well: int, hanging: int, rate: float, options: argparse.Namespace) -> tuple[list[Figure], list[str]]:
    """The job under load through all phases; the figures, and what is wrong."""
    uri, folder = stand.base.registry_uri, shadow_folder(stand.base.home / "models", stand.load.name)
    scored, hung, deaths = [0], [0], [0]

    def ends(life: Life) -> None:
        if (folder / READY).exists():
            deaths[0] += killed(life)

    def none(life: Life) -> None:
        found = Compared.read(folder)
        if found is not None and found.shadow == well:
            scored[0] = max(scored[0], found.rows)
        hung[0] += int(found is not None and found.shadow == hanging and not found.refused)
        with suppress(ModelNotFound):
            shadow(uri, NAME, None)

    kinds = [
        Kind("without"),
        Kind("with a shadow", begin=lambda life: shadow(uri, NAME, well), end=none),
        Kind("with one that hangs", begin=lambda life: shadow(uri, NAME, hanging), end=none),
        Kind("with one that is killed", begin=lambda life: shadow(uri, NAME, well), act=ends, end=none),
    ]
    seen = phased(stand, rate, options.workers, options.turns, options.seconds, EVERY_SECONDS, kinds)
    wrong = seen.wrong + ([] if scored[0] else ["the shadow has scored nothing"])
    wrong += [] if hung[0] == options.turns else [f"the one that hangs was there in {hung[0]} of {options.turns} phases"]
    wrong += [] if deaths[0] else ["no shadow was killed that was ready"]
    figures = compared("shadow", quantiles(seen, {"p50": 0.5, "p99": 0.99}), {}, {"p99": GOAL_TIMES})
    return [*figures, figure("shadow", "events scored by it", "", [float(scored[0])])], wrong


def killed(life: Life) -> int:
    """Kills the shadow's process, if it is there; returns how many there were."""
    deaths = 0
    for process in psutil.Process(life.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if process.name() == PROCESS:
                process.kill()
                deaths += 1
    return deaths


def publish(settings: JobSettings, folder: Path) -> tuple[int, int]:
    """A version of other weights, and one that goes round in a loop for good once a message's number is HANGS_FROM."""
    spec = ModelSpec.read(resolve(settings.registry_uri, NAME, into=settings.home / "models").folder)
    numbers = []
    for name, graph in (("well", logistic(4, 3e-7)), ("hanging", endless())):
        here = folder / f"version-{name}"
        here.mkdir()
        ModelSpec(NAME, spec.inputs).write(here)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(here / "model.onnx"))
        numbers.append(record(settings.registry_uri, NAME, here, params={}, metrics={}, alias="").version)
    return numbers[0], numbers[1]


def endless() -> onnx.GraphProto:
    """A loop of no round, and of a million million where the first input is HANGS_FROM or more anywhere."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes_on"]), helper.make_node("Identity", ["sum"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 1]),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["column"], axis=1),
        helper.make_node("ReduceMax", ["column"], ["largest"], keepdims=0),
        helper.make_node("GreaterOrEqual", ["largest", "from"], ["hangs"]),
        helper.make_node("Where", ["hangs", "many", "none"], ["rounds"]),
        helper.make_node("Loop", ["rounds", "", "column"], ["looped"], body=body),
        helper.make_node("Sigmoid", ["looped"], ["score"]),
    ]
    numbers: dict[str, npt.NDArray[Any]] = {
        "first": np.zeros(1, np.int64),
        "from": np.array(HANGS_FROM, np.float32),
        "many": np.array(10**12, np.int64),
        "none": np.array(0, np.int64),
    }
    return graph_of(nodes, 4, numbers)


if __name__ == "__main__":
    sys.exit(main())
