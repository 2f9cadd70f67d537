"""How a life of a job begins that `headrace run --restart` starts: at once, or, on several machines, when all have met."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ops.broker import free_port
from ops.meeting import Hello, Link, join, workers_of
from streams import machines
from streams.pipeline import Pipeline
from streams.settings import JobSettings
from streams.start import RecoveryError, needs, store_of


@dataclass(frozen=True)
class Begun:
    """How a life begins: the addresses of all workers; where there are other machines, the link to them and the epoch."""

    addresses: Sequence[str]
    link: Link | None = None
    epoch: int | None = None


def begin(
    pipeline: Pipeline,
    settings: JobSettings,
    called: str,
    asked: threading.Event,
    tell: Callable[[str], None],
    *,
    rebuilds: bool = False,
) -> Begun | None:
    """Where the job runs on one machine, at once; else when all have met; None if it is asked to leave before.

    Raises RecoveryError where the machines have no whole store together, or a part is damaged: unless it `rebuilds`, when it is
    not needed.
    """
    if settings.machines == 1:
        return Begun([f"127.0.0.1:{free_port()}" for _ in range(settings.workers)])
    try:
        return met(pipeline, settings, asked, tell, rebuilds)
    except RecoveryError as error:
        raise RecoveryError(
            f"{error}: headrace run {called} --rebuild, on all machines, makes the state anew from the topic, and headrace "
            f"state move {called} brings parts from home to home"
        ) from None


def met(
    pipeline: Pipeline, settings: JobSettings, asked: threading.Event, tell: Callable[[str], None], rebuilds: bool
) -> Begun | None:
    """The same of several machines."""
    folder, asks = store_of(pipeline, settings), needs(pipeline, settings)
    try:
        has = machines.part(folder)
    except RecoveryError:
        if not rebuilds:
            raise
        has = machines.Part()
    of = {"pipeline": pipeline.name, **asks}
    hello = Hello(settings.machine, settings.machines, workers_of(settings), settings.revision, of, asdict(has))
    joined = join(settings, hello, asked, tell)
    if joined is None:
        return None
    link, plan, addresses = joined
    try:
        return Begun(addresses, link, machines.take(folder, plan, settings.machine, asks, pipeline.name))
    except BaseException:
        link.close()
        raise
