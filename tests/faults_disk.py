"""A job whose files may have so many bytes: python tests/faults_disk.py HOME BYTES. Says in one line how it ended."""

import resource
import signal
import sys
from pathlib import Path

from payments import CHAMPION, payments, settings, stream
from prometheus_client import CollectorRegistry

from ops.errors import report
from sinks.memory import MemorySink
from streams.run import run
from streams.source import MemorySource


def main(home: Path, most: int) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    sink = MemorySink()
    job = settings(home, recovery=True, epoch_seconds=0.001)
    try:
        source = MemorySource([stream(20_000)], rows=20)
        run(payments(), job, registry=CollectorRegistry(), source=source, sink=sink, champion=CHAMPION)
    except BaseException as error:  # noqa: BLE001 - Bytewax raises panics
        return report(error)
    finally:
        print(len(sink.values("verdicts")))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
