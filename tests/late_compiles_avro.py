"""Runs payments in Avro from memory, and prints what Numba compiles or loads once the job says that it is ready."""

import sys
from pathlib import Path
from typing import Any

from numba.core.dispatcher import Dispatcher
from payments import CHAMPION, settings, stream
from prometheus_client import CollectorRegistry
from test_avro_flow import FIRST, SECOND, avro, pipeline

from ops.fake_registry import fake_registry
from sinks.memory import MemorySink
from streams.run import run
from streams.source import MemorySource


def main(home: Path) -> None:
    compiled: list[str] = []
    original = Dispatcher.compile

    def compile(self: Any, signature: Any) -> Any:
        if compiled:
            compiled.append(f"{self.py_func.__module__}.{self.py_func.__name__} {signature}")
        return original(self, signature)

    Dispatcher.compile = compile
    with fake_registry() as registry:
        log = avro(stream(400), registry.add(FIRST), registry.add(SECOND))
        log[5:5] = [(None, None), (b"k", b"\0\0\0\0\x09"), (b"k", b"{}")]
        run(
            pipeline(registry.address), settings(home), registry=CollectorRegistry(), source=MemorySource([log], rows=3),
            sink=MemorySink(), champion=CHAMPION, on_ready=lambda: compiled.append("ready"),
        )  # fmt: skip
    print("\n".join(compiled))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
