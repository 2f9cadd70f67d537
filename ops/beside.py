"""Processes beside a job, which end with it; those that answer on a port, which say whether they do; forks; and priority."""

import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ops.server import PortTakenError, Server

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess

    from streams.settings import JobSettings

Process = subprocess.Popen[str]
FORK = multiprocessing.get_context("fork")
DIES_WITH_PARENT = 1
GRACE_SECONDS = 2.0
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks workers whatever proxy the environment names."""


def expect_metrics(setting: str, settings: "JobSettings") -> None:
    """Raises ValueError for a job without `metrics_port`, whose workers cannot be asked."""
    if not settings.metrics_port:
        port = getattr(settings, setting)
        raise ValueError(f"setting {setting} {port}: expected a metrics_port, which workers are asked at, got 0")


@contextmanager
def child(command: Sequence[str], more: Mapping[str, str] | None = None, output: int = subprocess.DEVNULL) -> Iterator[Process]:
    """Runs a module while this lasts. Its standard input ends when this process does, however that ends. more: of its
    environment; output: where its standard output goes."""
    from ops.workers import end

    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | (more or {}),
        process_group=0,
        stdin=subprocess.PIPE,
        stdout=output,
        text=True,
    )
    try:
        yield process
    finally:
        end([process], GRACE_SECONDS)


@contextmanager
def beside(command: Sequence[str], silent: str, more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Runs a module while this lasts, which answers on a port; more: of its environment. It ends when this process does,
    however that ends. Raises PortTakenError with what it says, or `silent` if it ends without a word."""
    with child(command, more, subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout as output:
            said = output.readline()
        if said != "\n":
            raise PortTakenError(said.strip() or silent)
        yield


def answer(server: Server) -> None:
    """What such a process does: an empty line says that it answers, which it does until standard input ends."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(flush=True)
    until_parent_ends()


def until_parent_ends() -> None:
    """Waits until standard input ends, which is when the process that started this one is gone, or has let go of it."""
    while os.read(0, 1024):
        continue


def least() -> None:
    """This process has the time that nobody else in its session wants, from now on.

    Linux: less than at nice 19, and to whoever wakes up a core that works for it is as good as an idle one.
    """
    os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def fork(do: Callable[..., None], *arguments: Any) -> "ForkProcess":
    """A fork of this process, which may have no threads and nothing that a fork cannot use (CUDA). On Linux it is killed when
    this process is gone."""
    gc.freeze()  # its collector need not touch, and so copy, what is here
    process = FORK.Process(target=_forked, args=(os.getpid(), do, arguments))
    process.start()
    return process


def _forked(parent: int, do: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() == parent:
        do(*arguments)
