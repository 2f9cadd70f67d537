"""The health of a job with all its workers, for whoever can ask one port only: a process beside the job asks each worker.

/readyz: all workers can decide. /healthz: none stands still. A worker that is not there is not ready, and no fault: whoever
started the workers knows that it died, and ends the job or starts it again. One that does not answer in time stands still.
"""

import argparse
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ops.server import PortTakenError, at, made, own, states_of

if TYPE_CHECKING:
    from streams.settings import JobSettings

ANSWER_SECONDS, GRACE_SECONDS = 2.0, 2.0
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxy the environment names."""


@contextmanager
def answering(settings: "JobSettings") -> Iterator[None]:
    """Answers on `health_port`, if there is one, while this lasts. Raises PortTakenError, and ValueError for a job without
    `metrics_port`, whose workers cannot be asked."""
    if not settings.health_port:
        yield
        return
    if not settings.metrics_port:
        raise ValueError(
            f"setting health_port {settings.health_port}: expected a metrics_port, which workers are asked at, got 0"
        )
    from ops.workers import end

    host, ports = settings.metrics_host, [str(settings.metrics_port + number) for number in range(settings.workers)]
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.probes", host, str(settings.health_port), *ports],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        with process.stdout as output:
            said = output.readline()
        if said != "\n":
            raise PortTakenError(said.strip() or "health cannot be served: the process that is to do it has ended")
        yield
    finally:
        end([process], GRACE_SECONDS)


def ask(host: str, port: int, path: str) -> bool | None:
    """What a worker says of itself; None: it is not there. One that gives no answer in time says no."""
    try:
        with DIRECTLY.open(f"http://{at(host, port)}{path}", timeout=ANSWER_SECONDS) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionError) else False
    except ConnectionError:
        return None
    except TimeoutError:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The process; an empty line says that it answers, else why it cannot. It ends when standard input does."""
    parser = argparse.ArgumentParser(prog="python -m ops.probes")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("workers", type=int, nargs="+", help="their ports")
    options = parser.parse_args(arguments)
    asked = own(options.host)

    pool = ThreadPoolExecutor(len(options.workers))

    def alive() -> bool:
        return all(said is not False for said in pool.map(lambda port: ask(asked, port, "/healthz"), options.workers))

    def ready() -> bool:
        return all(pool.map(lambda port: ask(asked, port, "/readyz"), options.workers))

    try:
        server = made(options.host, options.port, states_of(alive, ready))
    except (OSError, OverflowError) as error:
        print(f"health cannot be served on {at(options.host, options.port)}: {error}", flush=True)
        return 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(flush=True)
    while os.read(0, 1024):
        continue
    return 0


if __name__ == "__main__":
    sys.exit(main())
