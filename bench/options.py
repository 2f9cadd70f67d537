"""Options that the commands share."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.peers import known
from bench.systems import System

RECORD = """
from streams.pipeline import Record

job = replace(job, record=Record(megabytes={megabytes}))
"""


def common(parser: argparse.ArgumentParser) -> None:
    """Adds workload, broker, peers, turns, workers, partitions, record, delivery, page, home and json."""
    parser.add_argument("--workload", default="flights")
    parser.add_argument("--broker", default="apache", help="apache, embedded or HOST:PORT")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[=COMMAND]",
        help="a system beside headrace; filled in: {brokers} {input} {output} {model} {width} {linger} {home} {repo} {workers}",
    )
    parser.add_argument("--without-headrace", action="store_true", help="only the peers")
    parser.add_argument("--turns", type=int, default=1, help="A B, B A: how often each system runs")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="processes of headrace, threads of peers; each further number runs headrace once more, as headrace-N",
    )
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--linger", type=float, default=None, help="of the systems' producers, ms")
    parser.add_argument("--epoch", type=float, default=0.25, help="headrace's, seconds")
    parser.add_argument(
        "--record",
        type=float,
        default=None,
        metavar="MB",
        help="headrace once more with a record of its decisions, as headrace-record; its logs are sealed when they have MB",
    )
    parser.add_argument(
        "--delivery",
        choices=["exactly_once"],
        default=None,
        help="headrace once more with exactly-once delivery, as headrace-exactly_once",
    )
    parser.add_argument(
        "--page", action="store_true", help="headrace once more with its live page and one who looks at it, as headrace-page"
    )
    parser.add_argument("--home", type=Path, default=Path(".headrace"), help="models, and what is prepared once")
    parser.add_argument("--json", type=Path, default=None)


def leave_on_sigterm() -> None:
    """Makes SIGTERM end the command as Ctrl-C does, so that the systems and brokers it started are stopped first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def in_turn(tested: Sequence[System], turn: int) -> list[System]:
    """The systems in the order of a turn: each turn begins with the next, since the first of one has it a little harder."""
    first = turn % len(tested)
    return [*tested[first:], *tested[:first]]


def systems(options: argparse.Namespace) -> list[System]:
    """headrace and the peers named, in the order of their turns. Raises ValueError."""
    ours: dict[str, Any] = {"epoch_seconds": options.epoch, "recovery": "true"}
    made = [] if options.without_headrace else [System("headrace", settings=ours)]
    made += [System(f"headrace-{workers}", settings={**ours, "workers": workers}) for workers in options.workers[1:]]
    if options.record:
        made.append(System("headrace-record", settings=ours, more=RECORD.format(megabytes=options.record)))
    if options.delivery:
        made.append(System(f"headrace-{options.delivery}", settings={**ours, "delivery": options.delivery}))
    if options.page:
        made.append(System("headrace-page", settings=ours, page=True))
    for named in options.peer:
        name, _, command = named.partition("=")
        made.append(System(name, command) if command else of_ours(name, options.workload))
    if len({system.name for system in made}) < len(made):
        raise ValueError(f"--peer: expected different names, got {', '.join(system.name for system in made)}")
    if not made:
        raise ValueError("no system to measure: expected headrace or a --peer")
    return made


def of_ours(name: str, workload: str) -> System:
    """One of our own peers. Raises ValueError."""
    peer = known(name, workload)
    return System(name, peer.command, dict(peer.settings), peer.passes_on)


def settings(options: argparse.Namespace, kind: str, linger: float | str, made: Sequence[System]) -> dict[str, Any]:
    """What stands beside the figures."""
    return {
        "broker": kind,
        "acks": "all",
        "idempotence": True,
        "linger_ms": linger,
        "compression": "none",
        "epoch_seconds": options.epoch,
        "recovery": True,
        "workers": options.workers[0],
        "partitions": options.partitions,
        "turns": options.turns,
        "record_megabytes": options.record,
        "delivery": ["at_least_once", *([options.delivery] if options.delivery else [])],
    }
