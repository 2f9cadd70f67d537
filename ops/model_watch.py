"""The process beside a job that looks for new versions of its model: `watching` starts and ends it.

What it needs is loaded while the job starts, which decides nothing yet: later those that decide would miss these seconds of a
core.
"""

import argparse
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streams.settings import JobSettings


@contextmanager
def watching(called: str, settings: "JobSettings") -> Iterator[None]:
    """Looks as often as the settings say while this lasts. It ends when this process does, however that ends."""
    if not settings.model_look_seconds:
        yield
        return
    from ops.beside import child
    from ops.workers import as_environment

    with child(["ops.model_watch", called, str(settings.model_look_seconds)], as_environment(settings)):
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the process; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m ops.model_watch")
    parser.add_argument("pipeline")
    parser.add_argument("seconds", type=float)
    options = parser.parse_args(arguments)
    os.nice(10)  # those that decide go first; a version is at first tried with less yet (ops/model_news.py)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))

    def waited() -> bool:
        """False when the process that started this one is gone, or has had enough."""
        ready, _, _ = select.select([sys.stdin], [], [], options.seconds)
        return not ready

    from models.registry import load_library, without_pool
    from ops.errors import hush, report
    from ops.logs import say, speak
    from ops.model_news import apart, watch
    from ops.model_shadow import Keeper
    from streams.pipeline import load
    from streams.settings import JobSettings

    hush()
    try:
        pipeline, settings = load(options.pipeline), JobSettings()
        speak(settings.log, pipeline.name)
        without_pool()
        with suppress(Exception):  # whatever it is, the look meets it again, says so, and is tried again
            load_library(settings.registry_uri)
        if not waited():
            return 0
        with closing(Keeper(pipeline, settings, say)) as keeper:
            watch(pipeline, settings, waited, say, apart, keeper.look)
    except SystemExit:
        return 0  # asked to leave
    except BaseException as error:  # noqa: BLE001 - whatever it is, people must see it
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
