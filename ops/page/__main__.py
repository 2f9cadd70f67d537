"""The process of the page; an empty line says that it answers, else why it cannot. It ends when standard input does.

What it needs to look is loaded when somebody opens the page for the first time: it takes nothing from a job that starts.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from ops.beside import answer
from ops.page import HOST, About
from ops.page.age import Age
from ops.page.collect import Collector, Look
from ops.page.surface import surface
from ops.server import at, made

NICE = 10
"""Those that decide go first; but while they take all there is, a page of the lowest priority would stand still."""


@contextmanager
def looking(about: About, age: Age) -> Iterator[Look]:
    """What looks at a job, with the settings of the environment."""
    from ops.page.look import Looker
    from streams.settings import JobSettings

    looker = Looker(about, JobSettings(), age.of)
    try:
        yield looker
    finally:
        looker.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of the process; settings come from the environment."""
    parser = argparse.ArgumentParser(prog="python -m ops.page")
    parser.add_argument("port", type=int)
    parser.add_argument("about", help="of the pipeline, as JSON")
    options = parser.parse_args(arguments)
    about = About(**json.loads(options.about))
    os.nice(NICE)
    collector = Collector(partial(looking, about, Age(about.model)))
    try:
        server = made(HOST, options.port, surface(collector, options.port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        print(f"the page cannot be served on {at(HOST, options.port)}: {reason}; name another --page", flush=True)
        return 1
    answer(server)
    os._exit(0)  # it keeps nothing, and nobody waits for a broker that may be gone


if __name__ == "__main__":
    sys.exit(main())
