"""The health of a job with all its workers, for whoever can ask one port only: a process beside the job asks each worker.

/readyz: all workers can decide. /healthz: none stands still. A worker that is not there is not ready, and no fault: whoever
started the workers knows that it died, and ends the job or starts it again. One that does not answer in time stands still.
"""

import argparse
import sys
import urllib.error
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ops.beside import DIRECTLY, answer, beside, expect_metrics
from ops.server import at, made, own, states_of

if TYPE_CHECKING:
    from streams.settings import JobSettings

ANSWER_SECONDS = 2.0


@contextmanager
def answering(settings: "JobSettings") -> Iterator[None]:
    """Answers on `health_port`, if there is one, while this lasts. Raises PortTakenError, and ValueError for a job without
    `metrics_port`, whose workers cannot be asked."""
    if not settings.health_port:
        yield
        return
    ports = [str(settings.metrics_port + number) for number in range(settings.workers)]
    command = ["ops.probes", settings.metrics_host, str(settings.health_port), *ports]
    expect_metrics("health_port", settings)
    with beside(command, "health cannot be served: the process that is to do it has ended"):
        yield


def ask(host: str, port: int, path: str) -> bool | None:
    """What a worker says of itself; None: it is not there. One that gives no answer in time says no."""
    try:
        with DIRECTLY.open(f"http://{at(host, port)}{path}", timeout=ANSWER_SECONDS) as said:
            return bool(said.status == 200)
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
    answer(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
